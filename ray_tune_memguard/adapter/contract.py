"""Says whether this Ray has what MemGuard needs of its private parts.

Everything outside this room may assume that what is listed here is there.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import ray

# Attributes of a TuneController that adopting it relies on, beyond the retainers.
_CONTROLLER_ATTRIBUTES = (
    "_trials",
    "_live_trials",
    "_stopped_trials",
    "_failed_trials",
    "_trials_to_cache",
    "_trial_metadata",
    "_trial_to_actor",
    "_resetting_trials",
    "_stop_queue",
    "_callbacks",
    "_scheduler_alg",
    "_search_alg",
    "_storage",
    "_session_str",
    "_actor_manager",
    "_checkpoint_manager",
    "_placeholder_resolvers",
    "_pending_trials",
    "_pending_trials_list",
    "_paused_trials",
    "_resources_to_pending_trials",
)
# Methods that are overridden or called, with the parameters they must take.
_CONTROLLER_METHODS: dict[str, tuple[str, ...]] = {
    "save_to_dir": (),
    "get_trials": (),
    "get_trial": ("tid",),
    "is_finished": (),
    "_wrapped": (),
    "_maybe_add_actors": (),
    "_get_trial_checkpoints": (),
    "checkpoint": ("force", "wait"),
    "__getstate__": (),
    "__setstate__": ("state",),
    "resume": ("resume_config",),
    "_restore_trials": ("experiment_state",),
    "_requeue_restored_trials": ("trials", "resume_config"),
}
_MANAGER_ATTRIBUTES = (
    "_tracked_actors_to_task_futures",
    "_actor_task_events",
    "_pending_actors_to_enqueued_actor_tasks",
    "_pending_actors_to_attrs",
)
_STORAGE_ATTRIBUTES = (
    "storage_filesystem",
    "syncer",
    "experiment_driver_staging_path",
    "experiment_fs_path",
)
_MODULE_NAMES: dict[str, tuple[str, ...]] = {
    "ray.train._internal.storage": (
        "_FilesystemSyncer._sync_up_command",
        "_pyarrow_fs_copy_files",
        "_upload_to_fs_path",
        "get_fs_and_path",
    ),
    "ray.tune.experiment.trial": ("_Location", "_TemporaryTrialState"),
    "ray.tune.experimental.output": (
        "TuneReporterBase._get_heartbeat",
        "_get_trials_by_state",
        "_get_trials_with_error",
    ),
    "ray.tune.progress_reporter": (
        "TuneReporterBase._progress_str",
        "JupyterNotebookReporter._progress_html",
        "_get_trials_by_state",
    ),
    "ray.tune.analysis.experiment_analysis": (
        "_find_newest_experiment_checkpoint",
        "ExperimentAnalysis.get_best_trial",
        "ExperimentAnalysis._load_trials",
        "ExperimentAnalysis._fetch_trial_dataframe",
        "ExperimentAnalysis._fetch_trial_dataframes",
        "ExperimentAnalysis.get_all_configs",
    ),
    "ray.tune.execution.experiment_state": (
        "_find_newest_experiment_checkpoint",
        "_ExperimentCheckpointManager.sync_down_experiment_state",
    ),
    "ray.tune.impl.tuner_internal": ("TunerInternal",),
    "ray.tune.execution.tune_controller": ("TuneController.resume",),
    "ray.tune": ("ResumeConfig.ResumeType.SKIP",),
    "ray.tune.search": ("SearchGenerator", "BasicVariantGenerator"),
    "ray.tune.result_grid": ("ResultGrid.__init__", "ResultGrid._trial_to_result"),
}


def missing_names(controller: Any) -> list[str]:
    """What of the above this Ray does not have, as readable names; empty on a known Ray."""
    kind = type(controller).__name__
    missing = [f"{kind}.{name}" for name in _lacks(controller, _CONTROLLER_ATTRIBUTES)]
    for name, parameters in _CONTROLLER_METHODS.items():
        if not _takes(getattr(type(controller), name, None), parameters):
            missing.append(f"{kind}.{name}({', '.join(parameters)})")
    storage = getattr(controller, "_storage", None)
    missing += [f"StorageContext.{name}" for name in _lacks(storage, _STORAGE_ATTRIBUTES)]
    saver = getattr(controller, "_checkpoint_manager", None)
    missing += [f"_ExperimentCheckpointManager.{name}" for name in _lacks(saver, ("_storage",))]
    manager = getattr(controller, "_actor_manager", None)
    missing += [f"{type(manager).__name__}.{name}" for name in _lacks(manager, _MANAGER_ATTRIBUTES)]
    return missing + missing_module_names()


def missing_module_names() -> list[str]:
    """The part of :func:`missing_names` for which no sweep is needed."""
    return [
        f"{module}.{name}"
        for module, names in _MODULE_NAMES.items()
        for name in names
        if not _has_name(module, name)
    ]


def ray_version() -> str:
    return str(ray.__version__)


def _lacks(owner: Any, names: Iterable[str]) -> list[str]:
    return [name for name in names if not hasattr(owner, name)]


def _takes(method: Callable[..., Any] | None, parameters: tuple[str, ...]) -> bool:
    if not callable(method):
        return False
    known = list(inspect.signature(method).parameters)[1:]
    return tuple(known[: len(parameters)]) == parameters


def _has_name(module_name: str, dotted: str) -> bool:
    try:
        found: Any = importlib.import_module(module_name)
        for part in dotted.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError):
        return False
    return True
