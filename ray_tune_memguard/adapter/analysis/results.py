"""Builds the results of spilled trials on access: DataFrames, configs, ``ResultGrid``.

Ray builds all of these for every trial when the run ends. Here each is built on access, from the
trial as it was when Ray would have built it. Each function here replaces one of Ray's, which is its
first argument (``patches``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, cast

import pandas
from ray.tune import Result, ResultGrid
from ray.tune.analysis.experiment_analysis import ExperimentAnalysis
from ray.tune.experiment import Trial

from ray_tune_memguard.adapter.analysis import frames
from ray_tune_memguard.lazy.best import MODES, SCOPES
from ray_tune_memguard.lazy.containers import LazyTrialDict, LazyTrialSequence

Frames = dict[str, pandas.DataFrame]
Configs = dict[str, dict[str, object]]


def dataframes(
    original: Callable[[ExperimentAnalysis], Frames], analysis: ExperimentAnalysis
) -> Frames:
    trials = analysis.trials
    if not frames.is_spilled(trials):
        return original(analysis)
    return LazyTrialDict(trials, frames.FrameReader(trials))


class _ConfigsMethod(Protocol):
    def __call__(self, analysis: object, prefix: bool = False, /) -> Configs: ...


def configs(
    original: _ConfigsMethod, analysis: ExperimentAnalysis, prefix: bool = False
) -> Configs:
    trials = analysis.trials
    if not frames.is_spilled(trials):
        return original(analysis, prefix)
    # The first call comes from the constructor, which only stores the result.
    if "_configs" not in analysis.__dict__:
        # The trial's own config, so that a change to it is one to the trial.
        return LazyTrialDict(trials, lambda trial: trial.config)
    return frames.configs(trials, prefix)


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
    """Search the few trials that may be the best; all trials if those are not known."""
    trials = analysis.trials
    few = None
    # Ray returns a single trial whatever it has reported.
    if frames.is_spilled(trials) and len(trials) > 1 and filter_nan_and_inf:
        asked_metric = metric or analysis.default_metric
        asked_mode = mode or analysis.default_mode
        if asked_metric and asked_mode in MODES and scope in SCOPES:
            few = trials.best_candidates(asked_metric, asked_mode, scope)
    if few is None:
        return original(analysis, metric, mode, scope, filter_nan_and_inf)
    # Not by `copy`, for which Ray's class would read all trials.
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
    if frames.is_spilled(trials):
        grid._experiment_analysis = experiment_analysis
        lazy: Sequence[Result] = LazyTrialSequence(trials, grid._trial_to_result)
        # A list to Ray, which only reads it.
        grid._results = cast("list[Result]", lazy)
        return
    original(grid, experiment_analysis)
