"""Results of a run whose trials are spilled: DataFrames, configs, the best trial, ``ResultGrid``.

Ray builds all of these for every trial when the run ends. Here each is built when it is asked for,
of the trial as it was when Ray would have built it.
Each function here is called in place of one of Ray's, which it is given first (``patches``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Protocol, TypeGuard, cast

import pandas
from ray.tune import Result, ResultGrid
from ray.tune.analysis import experiment_analysis
from ray.tune.analysis.experiment_analysis import ExperimentAnalysis
from ray.tune.experiment import Trial

from ray_tune_memguard.lazy.best import MODES, SCOPES
from ray_tune_memguard.lazy.containers import LazyTrialDict, LazyTrialSequence
from ray_tune_memguard.lazy.trial_list import SpilledTrials

Frames = dict[str, pandas.DataFrame]
Configs = dict[str, dict[str, object]]


def dataframes(
    original: Callable[[ExperimentAnalysis], Frames], analysis: ExperimentAnalysis
) -> Frames:
    trials = analysis.trials
    return LazyTrialDict(trials, _FrameReader(trials)) if _spills(trials) else original(analysis)


class _FrameReader:
    """Reads a trial's DataFrame as Ray does.

    A trial whose DataFrame cannot be read is named in the log, the first one only: Ray reads all of
    them at once and names them in one line; without loggers of results these are all trials.
    """

    def __init__(self, trials: SpilledTrials[Trial]) -> None:
        self._cache = trials.cache
        self._version = trials.cache.freeze()
        self._has_warned = False
        self._analysis: ExperimentAnalysis = ExperimentAnalysis.__new__(ExperimentAnalysis)

    def __call__(self, trial: Trial) -> pandas.DataFrame:
        try:
            return self._analysis._fetch_trial_dataframe(self._cache.as_of(trial, self._version))
        except Exception as error:
            if not self._has_warned:
                self._has_warned = True
                experiment_analysis.logger.warning(
                    "Failed to fetch metrics for a trial: %r. Trials that are read later may lack "
                    "theirs as well.",
                    error,
                )
            return pandas.DataFrame()


class _ConfigsMethod(Protocol):
    def __call__(self, analysis: object, prefix: bool = False, /) -> Configs: ...


def configs(
    original: _ConfigsMethod, analysis: ExperimentAnalysis, prefix: bool = False
) -> Configs:
    trials = analysis.trials
    if not _spills(trials):
        return original(analysis, prefix)
    # The first call is that of the constructor, which only keeps what it gets.
    if "_configs" not in analysis.__dict__:
        return LazyTrialDict(trials, lambda trial: trial.config)
    if prefix:
        # Flattened ones are copies: nobody gets hold of a trial's own.
        return original(SimpleNamespace(trials=map(trials.cache.peek, trials)), prefix)
    return original(analysis, prefix)


class _BestTrialMethod(Protocol):
    def __call__(
        self,
        analysis: ExperimentAnalysis,
        metric: str | None,
        mode: str | None,
        scope: str,
        filter_nan_and_inf: bool,
        /,
    ) -> Trial | None: ...


def best_trial(
    original: _BestTrialMethod,
    analysis: ExperimentAnalysis,
    metric: str | None = None,
    mode: str | None = None,
    scope: str = "last",
    filter_nan_and_inf: bool = True,
) -> Trial | None:
    """Among the few trials of which one is the best; among all where that is not known."""
    trials = analysis.trials
    few = None
    # Of a single trial Ray does not ask what it has reported.
    if _spills(trials) and len(trials) > 1 and filter_nan_and_inf:
        asked_metric = metric or analysis.default_metric
        asked_mode = mode or analysis.default_mode
        if asked_metric and asked_mode in MODES and scope in SCOPES:
            few = trials.best_candidates(asked_metric, asked_mode, scope)
    if few is None:
        return original(analysis, metric, mode, scope, filter_nan_and_inf)
    # Not by `copy`: what Ray's class gives for that is made of all trials.
    among_few: ExperimentAnalysis = ExperimentAnalysis.__new__(type(analysis))
    among_few.__dict__.update(analysis.__dict__)
    among_few.trials = few * 2 if len(few) == 1 else few
    return original(among_few, metric, mode, scope, filter_nan_and_inf)


def result_grid(
    original: Callable[[ResultGrid, ExperimentAnalysis], None],
    grid: ResultGrid,
    experiment_analysis: ExperimentAnalysis,
) -> None:
    trials = experiment_analysis.trials
    if _spills(trials):
        grid._experiment_analysis = experiment_analysis
        lazy: Sequence[Result] = LazyTrialSequence(trials, grid._trial_to_result)
        # A list to Ray, which only reads it.
        grid._results = cast("list[Result]", lazy)
        return
    original(grid, experiment_analysis)


def _spills(trials: object) -> TypeGuard[SpilledTrials[Trial]]:
    return isinstance(trials, SpilledTrials)
