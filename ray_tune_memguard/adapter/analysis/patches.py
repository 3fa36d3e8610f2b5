"""Lists the functions of Ray that this package wraps, and installs and removes the wrappers.

Ray calls these few functions outside of any run that a callback could change. A wrapper acts only
on the trials of a run that spills, on experiments that have a trial store, and on trials that Ray's
memory monitor killed; otherwise it calls Ray's function unchanged. Importing the package calls
:func:`install`, because results are read long after a run.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

from ray_tune_memguard.adapter import boundary, contract
from ray_tune_memguard.adapter.boundary import Entry, Policy
from ray_tune_memguard.adapter.contract import Capabilities
from ray_tune_memguard.notices import logger


class Patch(NamedTuple):
    """A function of Ray, and the entry that replaces it."""

    owner: object
    name: str
    entry: Entry


def _patch(owner: object, name: str, around: Callable[..., object]) -> Patch:
    """A patch by ``around``, whose first argument is Ray's function."""
    of = getattr(owner, "__qualname__", None) or getattr(owner, "__name__", "")
    return Patch(owner, name, boundary.entry(f"{of}.{name}", Policy.CALL_RAY)(around))


def _of_progress() -> tuple[Patch, ...]:
    from ray.tune import progress_reporter
    from ray.tune.experimental import output

    from ray_tune_memguard.adapter.analysis import progress

    old = progress_reporter
    return (
        _patch(output, "_get_trials_by_state", progress.trials_by_state),
        _patch(old, "_get_trials_by_state", progress.trials_by_state),
        _patch(output, "_get_trials_with_error", progress.trials_with_error),
        _patch(output.TuneReporterBase, "_get_heartbeat", progress.heartbeat),
        _patch(old.TuneReporterBase, "_progress_str", progress.old_report),
        _patch(old.JupyterNotebookReporter, "_progress_html", progress.old_report),
    )


def _of_last_table() -> tuple[Patch, ...]:
    from ray.tune.experimental import output

    from ray_tune_memguard.adapter.analysis import last_table

    return (
        _patch(output.TuneTerminalReporter, "_print_heartbeat", last_table.print_heartbeat),
        _patch(output, "tabulate", last_table.table),
    )


def _of_lazy_results() -> tuple[Patch, ...]:
    from ray.tune import ExperimentAnalysis, ResultGrid

    from ray_tune_memguard.adapter.analysis import frames, results

    return (
        _patch(ExperimentAnalysis, "_fetch_trial_dataframes", results.dataframes),
        _patch(ExperimentAnalysis, "get_all_configs", results.configs),
        _patch(ExperimentAnalysis, "dataframe", frames.dataframe),
        _patch(ExperimentAnalysis, "results_df", frames.results_df),
        _patch(ResultGrid, "__init__", results.result_grid),
    )


def _of_best_trial() -> tuple[Patch, ...]:
    from ray.tune import ExperimentAnalysis

    from ray_tune_memguard.adapter.analysis import results

    return (_patch(ExperimentAnalysis, "get_best_trial", results.best_trial),)


def _of_opening() -> tuple[Patch, ...]:
    from ray.tune import ExperimentAnalysis
    from ray.tune.analysis import experiment_analysis

    from ray_tune_memguard.adapter.analysis import opening

    return (
        _patch(ExperimentAnalysis, "_load_trials", opening.load_trials),
        _patch(
            experiment_analysis, "_find_newest_experiment_checkpoint", opening.newest_state_file
        ),
    )


def _of_resuming() -> tuple[Patch, ...]:
    from ray.tune.execution import tune_controller

    from ray_tune_memguard.adapter.analysis import opening

    return (
        _patch(tune_controller, "_find_newest_experiment_checkpoint", opening.newest_state_file),
        _patch(tune_controller.TuneController, "resume", opening.resume),
    )


def _of_tuner_file() -> tuple[Patch, ...]:
    from ray.tune.impl.tuner_internal import TunerInternal

    from ray_tune_memguard.adapter.restore import tuner_file

    return (_patch(TunerInternal, "_restore_from_path_or_uri", tuner_file.restore_tuner),)


def _of_survival() -> tuple[Patch, ...]:
    from ray.tune.experiment import Trial

    from ray_tune_memguard.adapter.run import actor_manager

    return (_patch(Trial, "_get_default_result_or_future", actor_manager.default_result),)


def _of_histories() -> tuple[Patch, ...]:
    import importlib

    from ray.tune import ExperimentAnalysis

    from ray_tune_memguard.adapter.histories import logger, reading

    return (
        _patch(
            # `ray.tune` has a function of this name as well.
            importlib.import_module("ray.tune.tune"),
            "_create_default_callbacks",
            logger.default_callbacks,
        ),
        _patch(ExperimentAnalysis, "_fetch_trial_dataframe", reading.trial_dataframe),
    )


def _of_spare_directories() -> tuple[Patch, ...]:
    from ray.tune.experiment import trial

    from ray_tune_memguard.adapter.histories import directories

    return (_patch(trial, "_create_unique_logdir_name", directories.unique_name),)


#: The patches by capability. Their modules are imported only if the capability is on.
PATCHES: dict[str, Callable[[], tuple[Patch, ...]]] = {
    contract.PROGRESS: _of_progress,
    contract.LAST_TABLE: _of_last_table,
    contract.LAZY_RESULTS: _of_lazy_results,
    contract.BEST_TRIAL: _of_best_trial,
    contract.OPEN: _of_opening,
    contract.RESUME: _of_resuming,
    contract.TUNER_FILE: _of_tuner_file,
    contract.HISTORIES: _of_histories,
    contract.SPARE_DIRECTORIES: _of_spare_directories,
    contract.SURVIVE_OOM: _of_survival,
}

_ABSENT = object()


class _Installed(NamedTuple):
    wrapper: object
    #: The owner's own function; ``_ABSENT`` if a class only inherits it.
    original: object


_installed: dict[Patch, _Installed] = {}


def install(capabilities: Capabilities) -> None:
    """Install the wrappers of all capabilities that are on. Installed ones stay as they are.

    Args:
        capabilities: what this Ray allows.
    """
    for capability, patches in PATCHES.items():
        if capability not in capabilities:
            continue
        try:
            found = patches()
        except ImportError as error:  # The contract does not list every public name.
            logger.debug("%s is off: %s", capability, error)
            continue
        for patch in found:
            if patch not in _installed:
                wrapper = _wrapper(patch)
                _installed[patch] = _Installed(wrapper, vars(patch.owner).get(patch.name, _ABSENT))
                setattr(patch.owner, patch.name, wrapper)


def uninstall() -> None:
    """Restore Ray's own functions.

    If other code has wrapped our wrapper since, its wrapper stays, and ours only calls Ray's
    function.
    """
    for patch, (wrapper, original) in list(_installed.items()):
        del _installed[patch]
        if vars(patch.owner).get(patch.name) is not wrapper:
            continue
        if original is _ABSENT:
            delattr(patch.owner, patch.name)
        else:
            setattr(patch.owner, patch.name, original)


def _wrapper(patch: Patch) -> object:
    original = getattr(patch.owner, patch.name)
    if isinstance(original, property):
        assert original.fget is not None
        return property(_function(patch, original.fget), doc=original.__doc__)
    return _function(patch, original)


def _function(patch: Patch, original: Callable[..., object]) -> Callable[..., object]:
    stand_in = patch.entry.in_place_of(original)

    @functools.wraps(original)
    def wrapper(*args: object, **kwargs: object) -> object:
        return (stand_in if patch in _installed else original)(*args, **kwargs)

    return wrapper
