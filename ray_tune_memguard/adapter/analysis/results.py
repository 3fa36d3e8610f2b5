"""Results of a run whose trials are spilled: DataFrames, configs, the best trial, ``ResultGrid``.

Ray builds all of these for every trial when the run ends. Here each is built when it is asked for.
Each function here is called in place of one of Ray's, which it is given first (``patches``).
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pandas
from ray.tune.analysis import experiment_analysis
from ray.tune.analysis.experiment_analysis import ExperimentAnalysis

from ray_tune_memguard.lazy.best import MODES, SCOPES
from ray_tune_memguard.lazy.containers import LazyTrialDict, LazyTrialSequence
from ray_tune_memguard.lazy.ghost import TrialCache
from ray_tune_memguard.lazy.trial_list import SpilledTrials

Original = Callable[..., Any]


def dataframes(original: Original, analysis: Any) -> Any:
    if isinstance(analysis.trials, SpilledTrials):
        return LazyTrialDict(analysis.trials, _TrialFrames(analysis.trials.cache))
    return original(analysis)


class _TrialFrames:
    """Reads a trial's DataFrame as Ray does. That one cannot be read is said once for all trials.

    Ray reads all of them at once and then says it of all; without loggers of results that is so.
    """

    def __init__(self, cache: TrialCache) -> None:
        self._residency = cache
        self._said = False
        self._analysis: Any = ExperimentAnalysis.__new__(ExperimentAnalysis)

    def __call__(self, trial: Any) -> Any:
        try:
            return self._analysis._fetch_trial_dataframe(self._residency.read(trial))
        except Exception as error:
            if not self._said:
                self._said = True
                experiment_analysis.logger.warning(
                    "Failed to fetch metrics for a trial: %r. Trials that are read later may lack "
                    "theirs as well.",
                    error,
                )
            return pandas.DataFrame()


def configs(original: Original, analysis: Any, prefix: bool = False) -> Any:
    trials = analysis.trials
    if isinstance(trials, SpilledTrials):
        # The first call is that of the constructor, which only keeps what it gets.
        if "_configs" not in analysis.__dict__:
            return LazyTrialDict(trials, lambda trial: trial.config)
        if prefix:
            # Flattened ones are copies: nobody gets hold of a trial's own.
            analysis = SimpleNamespace(trials=map(trials.cache.read, trials))
    return original(analysis, prefix)


def best_trial(
    original: Original,
    analysis: Any,
    metric: str | None = None,
    mode: str | None = None,
    scope: str = "last",
    filter_nan_and_inf: bool = True,
) -> Any:
    few = None
    # Of a single trial Ray does not ask what it has reported.
    many = isinstance(analysis.trials, SpilledTrials) and len(analysis.trials) > 1
    if many and filter_nan_and_inf:
        asked = metric or analysis.default_metric, mode or analysis.default_mode, scope
        if asked[0] and asked[1] in MODES and scope in SCOPES:
            few = analysis.trials.deciding(*asked)
    if few is None:
        return original(analysis, metric, mode, scope, filter_nan_and_inf)
    # Not by `copy`: what Ray's class gives for that is made of all trials.
    among_few = ExperimentAnalysis.__new__(type(analysis))
    among_few.__dict__.update(analysis.__dict__)
    among_few.trials = few * 2 if len(few) == 1 else few
    return original(among_few, metric, mode, scope, filter_nan_and_inf)


def result_grid(original: Original, grid: Any, experiment_analysis: Any) -> None:
    if isinstance(experiment_analysis.trials, SpilledTrials):
        grid._experiment_analysis = experiment_analysis
        grid._results = LazyTrialSequence(experiment_analysis.trials, grid._trial_to_result)
        return
    original(grid, experiment_analysis)
