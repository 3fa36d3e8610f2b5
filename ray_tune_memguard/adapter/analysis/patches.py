"""Which functions of Ray are wrapped, and how the wrappers are put in place and removed.

These are the few that no instance of ours can reach in time. Each wrapper acts only when it is
given the trials of a run that spills, or an experiment that has a trial store; for everything else
it calls Ray's function unchanged. :func:`install` runs when the package is imported, because
results are looked at long after a run.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

from ray.tune import progress_reporter
from ray.tune.analysis import experiment_analysis
from ray.tune.analysis.experiment_analysis import ExperimentAnalysis
from ray.tune.execution import tune_controller
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experimental import output
from ray.tune.impl.tuner_internal import TunerInternal
from ray.tune.result_grid import ResultGrid

from ray_tune_memguard.adapter.analysis import frames, opening, progress, results
from ray_tune_memguard.adapter.restore import tuner_file


class Patch(NamedTuple):
    """One function of Ray, and the one that is called instead, with Ray's as its first argument."""

    owner: object
    name: str
    around: Callable[..., object]


PATCHES = (
    Patch(output, "_get_trials_by_state", progress.trials_by_state),
    Patch(progress_reporter, "_get_trials_by_state", progress.trials_by_state),
    Patch(output, "_get_trials_with_error", progress.trials_with_error),
    Patch(output.TuneReporterBase, "_get_heartbeat", progress.heartbeat),
    Patch(progress_reporter.TuneReporterBase, "_progress_str", progress.old_report),
    Patch(progress_reporter.JupyterNotebookReporter, "_progress_html", progress.old_report),
    Patch(ExperimentAnalysis, "_fetch_trial_dataframes", results.dataframes),
    Patch(ExperimentAnalysis, "get_all_configs", results.configs),
    Patch(ExperimentAnalysis, "dataframe", frames.dataframe),
    Patch(ExperimentAnalysis, "get_best_trial", results.best_trial),
    Patch(ResultGrid, "__init__", results.result_grid),
    Patch(ExperimentAnalysis, "_load_trials", opening.load_trials),
    Patch(experiment_analysis, "_find_newest_experiment_checkpoint", opening.newest_state_file),
    Patch(tune_controller, "_find_newest_experiment_checkpoint", opening.newest_state_file),
    Patch(TuneController, "resume", opening.resume),
    Patch(TunerInternal, "_restore_from_path_or_uri", tuner_file.restore_tuner),
)

_ABSENT = object()


class _Installed(NamedTuple):
    wrapper: object
    #: What the owner itself had; absent if a class only inherited the function.
    original: object


_installed: dict[Patch, _Installed] = {}


def install() -> None:
    """Put the wrappers in place. Those that are there already stay as they are."""
    for patch in PATCHES:
        if patch not in _installed:
            wrapper = _wrapper(patch)
            _installed[patch] = _Installed(wrapper, vars(patch.owner).get(patch.name, _ABSENT))
            setattr(patch.owner, patch.name, wrapper)


def uninstall() -> None:
    """Put Ray's own functions back.

    Where something else has wrapped our wrapper since, that one stays, and ours only passes the
    call on to Ray's function.
    """
    for patch, (wrapper, original) in list(_installed.items()):
        del _installed[patch]
        if vars(patch.owner).get(patch.name) is not wrapper:
            continue
        if original is _ABSENT:
            delattr(patch.owner, patch.name)
        else:
            setattr(patch.owner, patch.name, original)


def _wrapper(patch: Patch) -> Callable[..., object]:
    original = getattr(patch.owner, patch.name)

    @functools.wraps(original)
    def wrapper(*args: object, **kwargs: object) -> object:
        if patch not in _installed:
            return original(*args, **kwargs)
        return patch.around(original, *args, **kwargs)

    return wrapper
