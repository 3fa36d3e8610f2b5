"""Wraps the few Ray functions that no instance of ours can reach in time.

Each wrapper acts only when it is handed the trials of an adopted sweep, or an experiment that has a
trial store; for everything else the call goes to Ray's function unchanged. They are put in place
when the package is imported and stay, because results are looked at long after a sweep.
"""

from __future__ import annotations

import functools
import sqlite3
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas
from pyarrow.fs import LocalFileSystem
from ray.tune import progress_reporter
from ray.tune.analysis import experiment_analysis
from ray.tune.analysis.experiment_analysis import ExperimentAnalysis
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experimental import output
from ray.tune.impl.tuner_internal import TunerInternal
from ray.tune.result_grid import ResultGrid

from ray_tune_memguard.adapter import contract as probe
from ray_tune_memguard.adapter import paths
from ray_tune_memguard.adapter.restore import experiments
from ray_tune_memguard.adapter.restore import resume as restoring
from ray_tune_memguard.lazy.best import MODES, SCOPES
from ray_tune_memguard.lazy.containers import LazyTrialDict, LazyTrialSequence
from ray_tune_memguard.lazy.ghost import TrialCache
from ray_tune_memguard.lazy.progress import ProgressView
from ray_tune_memguard.lazy.trial_list import SpilledTrials
from ray_tune_memguard.notices import Notices, logger
from ray_tune_memguard.store.trial_store import TrialStore

Original = Callable[..., Any]


def install() -> None:
    """Put the wrappers in place, once."""
    for module in (output, progress_reporter):
        _wrap(module, "_get_trials_by_state", _trials_by_state)
    _wrap(output, "_get_trials_with_error", _trials_with_error)
    _wrap(output.TuneReporterBase, "_get_heartbeat", _heartbeat)
    _wrap(progress_reporter.TuneReporterBase, "_progress_str", _old_report)
    _wrap(progress_reporter.JupyterNotebookReporter, "_progress_html", _old_report)
    _wrap(ExperimentAnalysis, "_fetch_trial_dataframes", _dataframes)
    _wrap(ExperimentAnalysis, "get_all_configs", _configs)
    _wrap(ExperimentAnalysis, "get_best_trial", _best_trial)
    _wrap(ResultGrid, "__init__", _result_grid)
    _wrap(ExperimentAnalysis, "_load_trials", _load_trials)
    _wrap(experiment_analysis, "_find_newest_experiment_checkpoint", _newest_state_file)
    _wrap(TuneController, "resume", _resume)


def _wrap(owner: Any, name: str, around: Callable[..., Any]) -> None:
    original = getattr(owner, name)
    if getattr(original, "_memguard_wraps", None) is around:
        return

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return around(original, *args, **kwargs)

    wrapper._memguard_wraps = around  # type: ignore[attr-defined]
    setattr(owner, name, wrapper)


# Progress output.


def _trials_by_state(original: Original, trials: Any) -> Any:
    return trials.by_status() if isinstance(trials, ProgressView) else original(trials)


def _trials_with_error(original: Original, trials: Any) -> Any:
    if isinstance(trials, SpilledTrials):
        return _report_on(trials, original, None, errors=True)
    return original(trials)


def _heartbeat(original: Original, reporter: Any, trials: Any, *args: Any, **kwargs: Any) -> Any:
    def report(some: Any) -> Any:
        return original(reporter, some, *args, **kwargs)

    if isinstance(trials, SpilledTrials):
        # The module is Ray's own to use: nobody else's reporter is called with the groups.
        return _report_on(trials, report, reporter._metric, only_reads=True)
    return report(trials)


def _old_report(original: Original, reporter: Any, trials: Any, *args: Any, **kwargs: Any) -> Any:
    # A table sorted by metric needs the metric of every trial, so it gets them all.
    def report(some: Any) -> Any:
        return original(reporter, some, *args, **kwargs)

    if isinstance(trials, SpilledTrials) and not reporter._sort_by_metric:
        inferred = list(reporter._inferred_metrics)
        only = inferred[0] if len(inferred) == 1 else None
        return _report_on(trials, report, reporter._metric or only, errors=True)
    return report(trials)


def _report_on(
    trials: SpilledTrials,
    report: Callable[[Any], Any],
    metric: str | None,
    errors: bool = False,
    only_reads: bool = False,
) -> Any:
    """Report on a digest; if the store cannot be read, on what is in memory."""
    try:
        return report(ProgressView(trials, metric, errors, only_reads))
    except sqlite3.Error as error:
        logger.warning("Progress is shown without finished trials: %s", error)
        return report(trials.resident())


# Results.


def _dataframes(original: Original, analysis: Any) -> Any:
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


def _configs(original: Original, analysis: Any, prefix: bool = False) -> Any:
    trials = analysis.trials
    if isinstance(trials, SpilledTrials):
        # The first call is that of the constructor, which only keeps what it gets.
        if "_configs" not in analysis.__dict__:
            return LazyTrialDict(trials, lambda trial: trial.config)
        if prefix:
            # Flattened ones are copies: nobody gets hold of a trial's own.
            analysis = SimpleNamespace(trials=map(trials.cache.read, trials))
    return original(analysis, prefix)


def _best_trial(
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


def _result_grid(original: Original, grid: Any, experiment_analysis: Any) -> None:
    if isinstance(experiment_analysis.trials, SpilledTrials):
        grid._experiment_analysis = experiment_analysis
        grid._results = LazyTrialSequence(experiment_analysis.trials, grid._trial_to_result)
        return
    original(grid, experiment_analysis)


# Opening and resuming experiments.


def _load_trials(original: Original, analysis: Any) -> Any:
    experiment = experiments.Experiment(analysis._fs, str(analysis._experiment_fs_path))
    try:
        if analysis._experiment_json_fs_path != experiment.state_file():
            return original(analysis)  # The file of an earlier run was asked for.
        store = experiments.current_store(experiment)
        if store is not None:
            return experiments.open_trials(experiment, store)
    except sqlite3.OperationalError as error:
        logger.debug("Its sweep is running, or the store may not be read: %s", error)
    except Exception as error:
        logger.warning(
            "The trial store of %s cannot be read (%s). The experiment is opened as Ray does it, "
            "from the experiment state file.",
            analysis._experiment_fs_path,
            error,
        )
    return original(analysis)


def _newest_state_file(original: Original, experiment_path: str, fs: Any = None) -> Any:
    # Ray makes an object of each of the directory's entries, of which there is one for each trial.
    if isinstance(fs, LocalFileSystem) and Path(experiment_path, paths.DIRECTORY).is_dir():
        return paths.newest_state_file(experiment_path)
    return original(experiment_path, fs)


def _resume(original: Original, controller: Any, resume_config: Any) -> Any:
    pruners = [getattr(callback, "prunes", None) for callback in controller._callbacks._callbacks]
    pruner = next((pruner for pruner in pruners if pruner is not None), None)
    if pruner is None or probe.missing_names(controller):
        return original(controller, resume_config)
    sweep = restoring.resume(controller, resume_config, pruner.spill_dir, Notices())
    if sweep is None:
        return original(controller, resume_config)
    sweep.offer()
    tuner = paths.calling(TunerInternal)
    if tuner is not None:
        _lighten(tuner, sweep)
    return None


def _lighten(tuner: Any, sweep: Any) -> None:
    """Free the trials that ``Tuner.restore`` has loaded plainly, before this package was there.

    That is so with ``RAY_TUNE_CALLBACKS``. The tuner keeps them until its ``fit()`` returns.
    """
    analysis = tuner._experiment_analysis
    if analysis is None or isinstance(analysis.trials, SpilledTrials) or sweep.replaces is None:
        return
    try:
        experiment = experiments.Experiment(analysis._fs, str(analysis._experiment_fs_path))
        analysis.trials = experiments.open_trials(experiment, TrialStore.open(sweep.replaces))
        analysis._trial_dataframes = analysis._fetch_trial_dataframes()
        del analysis._configs
        analysis._configs = analysis.get_all_configs()
    except Exception as error:
        logger.debug("The tuner keeps what it has loaded: %r", error)
