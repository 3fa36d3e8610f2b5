"""The contract with Ray: every private name that this package uses, and what needs it.

One table, :data:`NAMES`; its rows about Ray's core are those of ``cluster/core_names.py``. From it
follow what a Ray lacks (:func:`probe`), which capabilities are therefore on, the containers that a
spill releases trials from (:func:`retention_sites`), and the containers that a failed restore
empties (:func:`emptied_by_rollback`). A public name is in it if this package overrides or replaces
it. A test walks the source and fails on a private name that the table does not have.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
import types
from collections.abc import Iterable
from dataclasses import dataclass

import ray

from ray_tune_memguard.cluster import core_names
from ray_tune_memguard.private_names import PrivateName
from ray_tune_memguard.private_names import rows_of as _of

# Capabilities. Each is switched by the names that it needs, and by those of what it builds on.
SPILL = "spill"
UPLOADS = "uploads"
TRAINABLES = "trainables"
CHOOSE_TRIAL = "choose_trial"
SURVIVE_OOM = "survive_oom"
TRIAL_DEATHS = "trial_deaths"
LAUNCH_GATE = "launch_gate"
GATE_REUSE = "gate_reuse"
SHED_TRIALS = "shed_trials"
STOP_IN_TIME = "stop_in_time"
RELEASE_FUTURES = "release_futures"
RELEASE_ORPHANED_TASKS = "release_orphaned_tasks"
RELEASE_LIVE_TRIALS = "release_live_trials"
RELEASE_RESETTING_TRIALS = "release_resetting_trials"
RELEASE_DECISIONS = "release_decisions"
RELEASE_LOG_KEYS = "release_log_keys"
RELEASE_TENSORBOARD = "release_tensorboard"
RELEASE_JSON_LOGGER = "release_json_logger"
RELEASE_CSV_LOGGER = "release_csv_logger"
RELEASE_REPORTER = "release_reporter"
RELEASE_OLD_REPORTER = "release_old_reporter"
RELEASE_MLFLOW = "release_mlflow"
RELEASE_AIM = "release_aim"
PROGRESS = "progress"
LAST_TABLE = "last_table"
LAZY_RESULTS = "lazy_results"
BEST_TRIAL = "best_trial"
OPEN = "open"
RESUME = "resume"
TUNER_FILE = "tuner_file"
SEARCHER_CATCH_UP = "searcher_catch_up"
OPTUNA_STUDY = "optuna_study"
RETENTION_SITES = "retention_sites"
TRIAL_MEMORY = core_names.TRIAL_MEMORY
TRIAL_PROFILES = core_names.TRIAL_PROFILES
KEEP_CLASSES = "keep_classes"
HISTORIES = "histories"
SPARE_DIRECTORIES = "spare_directories"
EXPORT = "export"

#: What is different in a run without the capability.
WITHOUT: dict[str, str] = {
    SPILL: "finished trials are not spilled, and memory grows as it does without MemGuard",
    UPLOADS: "each upload copies the whole staging directory, as Ray does",
    TRAINABLES: "Ray fetches the trainable again for each trial",
    SURVIVE_OOM: "a trial that Ray's memory monitor kills ends the whole run",
    TRIAL_DEATHS: "deaths of trials are not reported",
    LAUNCH_GATE: "trials start although they do not fit into memory",
    GATE_REUSE: "with reuse_actors, trials start in kept actors although they do not fit",
    SHED_TRIALS: "no running trial is paused when memory is short",
    STOP_IN_TIME: "a run does not end before memory is used up",
    CHOOSE_TRIAL: "schedulers search all trials to choose the next one",
    RELEASE_FUTURES: "results of a running trial stay in memory until it ends",
    RELEASE_ORPHANED_TASKS: "tasks of actors that never started stay in memory",
    RELEASE_LIVE_TRIALS: "errored trials stay in the set of live trials",
    RELEASE_RESETTING_TRIALS: "trials whose reset failed stay in memory",
    RELEASE_DECISIONS: "decisions about finished trials stay in memory",
    RELEASE_LOG_KEYS: "keys of Ray's `log_once` stay in memory",
    RELEASE_TENSORBOARD: "closed TensorBoard writers stay in memory",
    RELEASE_JSON_LOGGER: "finished trials stay in the JSON logger",
    RELEASE_CSV_LOGGER: "finished trials stay in the CSV logger",
    RELEASE_REPORTER: "results of finished trials stay in the progress reporter",
    RELEASE_OLD_REPORTER: "finished trials stay in the old progress reporter",
    RELEASE_MLFLOW: "finished trials stay in the MLflow logger",
    RELEASE_AIM: "finished trials stay in the Aim logger",
    PROGRESS: "progress output reads all trials",
    LAZY_RESULTS: "the results of all trials are loaded at the end of the run",
    LAST_TABLE: "the console's last table of all trials is made as a whole, in memory",
    BEST_TRIAL: "the search for the best result reads all trials",
    OPEN: "experiments are opened from the experiment state file, as Ray does",
    RESUME: "experiments are resumed from the experiment state file, as Ray does",
    TUNER_FILE: "a damaged or missing tuner.pkl is not replaced by its copy",
    SEARCHER_CATCH_UP: "a restored searcher lacks the results of the trials that finished last",
    OPTUNA_STUDY: "after a crash a persistent Optuna study may receive a trial's result twice",
    RETENTION_SITES: "the memory of the run's parts is not measured",
    KEEP_CLASSES: "a class of a script or a notebook may lose what it keeps in its globals",
    HISTORIES: "results are kept in files for each trial, as Ray does",
    SPARE_DIRECTORIES: "a directory is made for each trial, and removed if nothing is in it",
    EXPORT: "results that are in a store are not exported to the files of Ray's loggers",
    **core_names.WITHOUT,
}
#: The capabilities that a capability needs.
BUILDS_ON: dict[str, tuple[str, ...]] = {
    UPLOADS: (SPILL,),
    TRAINABLES: (SPILL,),
    CHOOSE_TRIAL: (SPILL,),
    RESUME: (SPILL,),
    SEARCHER_CATCH_UP: (RESUME,),
    SPARE_DIRECTORIES: (HISTORIES,),
    LAUNCH_GATE: (core_names.CLUSTER_STATE,),
    GATE_REUSE: (LAUNCH_GATE,),
    SHED_TRIALS: (LAUNCH_GATE,),
    STOP_IN_TIME: (LAUNCH_GATE,),
    **{name: (SPILL,) for name in WITHOUT if name.startswith("release_")},
}

# Names that the advice to users is looked up by.
STUDY_OF_OPTUNA = "_ot_study"
RESULTS_READ = "_tracked_actors_to_task_futures"

CONTROLLER = "ray.tune.execution.tune_controller:TuneController"
_CHECKPOINTS = "ray.tune.execution.experiment_state:_ExperimentCheckpointManager"
_ACTORS = "ray.air.execution._internal.actor_manager:RayActorManager"
_RESOURCES = "ray.air.execution.resources.placement_group:PlacementGroupResourceManager"
_ACTOR_CACHE = "ray.tune.utils.object_cache:_ObjectCache"
_ACTOR_TASK = "ray.air.execution._internal.tracked_actor_task:TrackedActorTask"
_EVENTS = "ray.air.execution._internal.event_manager:RayEventManager"
_CALLBACKS = "ray.tune.callback:CallbackList"
_STORAGE = "ray.train._internal.storage"
_CONTEXT = "ray.train._internal.storage:StorageContext"
_SYNCER = "ray.train._internal.storage:_FilesystemSyncer"
_TRIALS = "ray.tune.experiment.trial"
_TRIAL = "ray.tune.experiment.trial:Trial"
_METADATA = "ray.tune.experiment.trial:_TrainingRunMetadata"
_REGISTRY = "ray.tune.registry"
_REGISTERED = "ray.tune.registry:_Registry"
_NEW_OUTPUT = "ray.tune.experimental.output"
_OLD_OUTPUT = "ray.tune.progress_reporter"
_ANALYSIS = "ray.tune.analysis.experiment_analysis"
_EXPERIMENT_ANALYSIS = "ray.tune.analysis.experiment_analysis:ExperimentAnalysis"
_GRID = "ray.tune.result_grid:ResultGrid"
_TUNER = "ray.tune.impl.tuner_internal:TunerInternal"
_GENERATOR = "ray.tune.search.search_generator:SearchGenerator"
_OPTUNA = "ray.tune.search.optuna.optuna_search:OptunaSearch"
_OLD_REPORTER = "ray.tune.progress_reporter:TrialProgressCallback"

NAMES: tuple[PrivateName, ...] = (
    # The controller of a run.
    *_of(CONTROLLER, (SPILL, HISTORIES), "_trials", "_storage", "_callbacks"),
    *_of(CONTROLLER, SPILL, "_session_str", "_trial_to_actor"),
    *_of(CONTROLLER, SPILL, "_stop_queue", "_search_alg", "_checkpoint_manager"),
    *_of(CONTROLLER, SPILL, "_scheduler_alg", "save_to_dir()", "get_trial(tid)", "is_finished()"),
    *_of(CONTROLLER, SPILL, "_get_trial_checkpoints()", "checkpoint(force, wait)"),
    *_of(CONTROLLER, SPILL, "experiment_state_file_name", "experiment_state_path"),
    *_of(CONTROLLER, SPILL, "_stopped_trials", "_failed_trials", released="trial", emptied=True),
    *_of(CONTROLLER, SPILL, "_trials_to_cache", released="trial", emptied=True),
    *_of(CONTROLLER, SPILL, "_trial_metadata", released="trial_id", emptied=True),
    *_of(CONTROLLER, CHOOSE_TRIAL, "get_trials()"),
    *_of(
        CONTROLLER,
        (RELEASE_LIVE_TRIALS, RESUME),
        "_live_trials",
        released="trial",
        emptied=True,
    ),
    *_of(CONTROLLER, RELEASE_RESETTING_TRIALS, "_resetting_trials", released="trial"),
    *_of(
        CONTROLLER,
        RELEASE_DECISIONS,
        "_cached_trial_decisions",
        "_queued_trial_decisions",
        released="trial_id",
    ),
    *_of(CONTROLLER, RESUME, "_pending_trials", "_pending_trials_list", emptied=True),
    *_of(CONTROLLER, RESUME, "_paused_trials", "_resources_to_pending_trials", emptied=True),
    *_of(CONTROLLER, RESUME, "_placeholder_resolvers", "_wrapped()", "resume(resume_config)"),
    *_of(CONTROLLER, RESUME, "_restore_trials(experiment_state)", "__setstate__(state)"),
    *_of(CONTROLLER, RESUME, "_requeue_restored_trials(trials, resume_config)"),
    *_of(CONTROLLER, (RELEASE_FUTURES, RELEASE_ORPHANED_TASKS), "_actor_manager"),
    *_of(CONTROLLER, SURVIVE_OOM, "_actor_manager"),
    *_of(CONTROLLER, TRIAL_DEATHS, "_process_trial_failure(trial, exception)"),
    *_of(CONTROLLER, TRIAL_DEATHS, "_trial_to_actor"),
    *_of(CONTROLLER, TRIAL_PROFILES, "_schedule_trial_stop(trial, exception)"),
    *_of(_ACTORS, TRIAL_DEATHS, "_live_actors_to_ray_actors_resources"),
    *_of(_ACTOR_TASK, TRIAL_DEATHS, "_tracked_actor"),
    *_of(CONTROLLER, RETENTION_SITES, "_actor_manager", "_reuse_actors"),
    *_of(_CALLBACKS, (SPILL, RETENTION_SITES, HISTORIES), "_callbacks"),
    *_of(_CHECKPOINTS, UPLOADS, "_storage"),
    *_of(_CHECKPOINTS, RESUME, "sync_down_experiment_state()"),
    # Its actors.
    *_of(_ACTORS, RELEASE_FUTURES, RESULTS_READ, "_actor_task_events"),
    *_of(_EVENTS, RELEASE_FUTURES, "_tracked_futures"),
    *_of(_ACTORS, RELEASE_ORPHANED_TASKS, "_pending_actors_to_enqueued_actor_tasks"),
    *_of(_ACTORS, RELEASE_ORPHANED_TASKS, "_pending_actors_to_attrs"),
    *_of(_ACTORS, SURVIVE_OOM, "_actor_task_failed(tracked_actor_task, exception)"),
    *_of(_ACTORS, SURVIVE_OOM, "_actor_start_failed(tracked_actor, exception)"),
    *_of(_TRIAL, SURVIVE_OOM, "_get_default_result_or_future()"),
    # What the launch gate is asked for.
    *_of(CONTROLLER, LAUNCH_GATE, "_actor_manager", "_actor_to_trial", "_stopping_actors"),
    *_of(_ACTORS, LAUNCH_GATE, "_resource_manager", "_live_actors_to_ray_actors_resources"),
    *_of(_RESOURCES, LAUNCH_GATE, "has_resources_ready(resource_request)"),
    *_of(_RESOURCES, LAUNCH_GATE, "acquire_resources(resource_request)", "_request_to_ready_pgs"),
    *_of(CONTROLLER, GATE_REUSE, "_actor_cache"),
    *_of(_ACTOR_CACHE, GATE_REUSE, "cache_object(key, obj)"),
    *_of(CONTROLLER, SHED_TRIALS, "_trial_to_actor", "_scheduler_alg"),
    *_of(CONTROLLER, SHED_TRIALS, "pause_trial(trial, should_checkpoint)"),
    *_of("ray.tune.schedulers.pbt:PopulationBasedTraining", SHED_TRIALS, "_synch"),
    *_of("ray.tune.tune", STOP_IN_TIME, "_setup_signal_catching()"),
    # Storage and uploads.
    *_of(_CONTEXT, (SPILL, TRIAL_PROFILES), "storage_filesystem"),
    *_of(_CONTEXT, SPILL, "experiment_driver_staging_path"),
    *_of(_CONTEXT, SPILL, "experiment_fs_path", "syncer"),
    *_of(_CONTEXT, RESUME, "_timestamp"),
    *_of(_STORAGE, UPLOADS, "_pyarrow_fs_copy_files", "_upload_to_fs_path"),
    *_of(_STORAGE, OPEN, "get_fs_and_path"),
    *_of(_SYNCER, UPLOADS, "_sync_up_command(local_path, uri, exclude)", "_sync_process"),
    # A trial, serialized and deserialized.
    *_of(_TRIALS, SPILL, "_Location", "_TemporaryTrialState"),
    *_of(_TRIAL, (SPILL, SURVIVE_OOM), "_default_result_or_future"),
    *_of(_TRIAL, SPILL, "_state_json", "_nonjson_fields"),
    *_of(_TRIAL, (SPILL, TRIAL_MEMORY, TRIAL_DEATHS, TRIAL_PROFILES), "temporary_state"),
    *_of(_TRIAL, (SPILL, TRIAL_DEATHS), "run_metadata"),
    *_of(_METADATA, SPILL, "_cached_json"),
    # The trainable of a run.
    *_of(_REGISTRY, TRAINABLES, "_global_registry", "TRAINABLE_CLASS"),
    *_of(_REGISTERED, TRAINABLES, "get(category, key)", "contains(category, key)"),
    *_of(_REGISTERED, TRAINABLES, "register(category, key)", "unregister(category, key)"),
    # Progress output.
    *_of(_NEW_OUTPUT, PROGRESS, "_get_trials_by_state(trials)", "_get_trials_with_error(trials)"),
    *_of(f"{_NEW_OUTPUT}:TuneReporterBase", PROGRESS, "_get_heartbeat(trials)", "_metric"),
    *_of(_NEW_OUTPUT, LAST_TABLE, "tabulate(tabular_data, headers, tablefmt)"),
    *_of(f"{_NEW_OUTPUT}:TuneTerminalReporter", LAST_TABLE, "_print_heartbeat(trials)"),
    *_of(_OLD_OUTPUT, PROGRESS, "_get_trials_by_state(trials)"),
    *_of(f"{_OLD_OUTPUT}:TuneReporterBase", PROGRESS, "_progress_str(trials)", "_metric"),
    *_of(f"{_OLD_OUTPUT}:TuneReporterBase", PROGRESS, "_sort_by_metric", "_inferred_metrics"),
    *_of(f"{_OLD_OUTPUT}:JupyterNotebookReporter", PROGRESS, "_progress_html(trials)"),
    # Results.
    *_of(_EXPERIMENT_ANALYSIS, (LAZY_RESULTS, HISTORIES), "_fetch_trial_dataframe(trial)"),
    *_of(_EXPERIMENT_ANALYSIS, LAZY_RESULTS, "_fetch_trial_dataframes()", "_trial_dataframes"),
    *_of(_EXPERIMENT_ANALYSIS, LAZY_RESULTS, "get_all_configs(prefix)", "_configs"),
    *_of(_EXPERIMENT_ANALYSIS, LAZY_RESULTS, "dataframe(metric, mode)", "_delimiter()"),
    *_of(_EXPERIMENT_ANALYSIS, LAZY_RESULTS, "_retrieve_rows(metric, mode)"),
    *_of(_GRID, LAZY_RESULTS, "__init__(experiment_analysis)", "_trial_to_result(trial)"),
    *_of(_GRID, LAZY_RESULTS, "_experiment_analysis", "_results"),
    *_of(
        _EXPERIMENT_ANALYSIS,
        BEST_TRIAL,
        "get_best_trial(metric, mode, scope, filter_nan_and_inf)",
    ),
    # Opening and resuming.
    *_of(_EXPERIMENT_ANALYSIS, OPEN, "_load_trials()", "_fs", "_experiment_fs_path"),
    *_of(_EXPERIMENT_ANALYSIS, OPEN, "_experiment_json_fs_path"),
    *_of(_ANALYSIS, OPEN, "_find_newest_experiment_checkpoint(experiment_path, fs)"),
    *_of(
        "ray.tune.execution.tune_controller",
        RESUME,
        "_find_newest_experiment_checkpoint(experiment_path, fs)",
    ),
    *_of(_TUNER, RESUME, "_experiment_analysis"),
    *_of(_TUNER, TUNER_FILE, "_restore_from_path_or_uri(path_or_uri, trainable)"),
    *_of(_GENERATOR, SEARCHER_CATCH_UP, "_counter"),
    *_of(_OPTUNA, OPTUNA_STUDY, STUDY_OF_OPTUNA, "_ot_trials", "_completed_trials", optional=True),
    # Results in the place of files.
    *_of(CONTROLLER, HISTORIES, "_resumed"),
    # In pickles of user's classes.
    *_of(
        "ray.cloudpickle.cloudpickle",
        KEEP_CLASSES,
        "_class_setstate(obj, state)",
        "_make_skeleton_class",
        "_make_skeleton_enum",
        "_DYNAMIC_CLASS_TRACKER_BY_ID",
    ),
    *_of("ray.tune.utils.callback", HISTORIES, "DEFAULT_CALLBACK_CLASSES"),
    *_of("ray.tune.tune", HISTORIES, "_create_default_callbacks(callbacks)"),
    *_of(_TRIALS, SPARE_DIRECTORIES, "_create_unique_logdir_name(root, relative_logdir)"),
    *_of(
        "ray.tune.logger.tensorboardx:TBXLoggerCallback",
        EXPORT,
        "_summary_writer_cls",
        "_trial_writer",
    ),
    # What else keeps finished trials.
    *_of(
        "ray.tune.logger.json:JsonLoggerCallback",
        RELEASE_JSON_LOGGER,
        "_trial_configs",
        released="trial",
    ),
    *_of(
        "ray.tune.logger.csv:CSVLoggerCallback",
        RELEASE_CSV_LOGGER,
        "_trial_continue",
        released="trial",
    ),
    *_of(
        f"{_NEW_OUTPUT}:ProgressReporter",
        RELEASE_REPORTER,
        "_trial_last_printed_results",
        released="trial_id",
    ),
    *_of(
        _OLD_REPORTER,
        RELEASE_OLD_REPORTER,
        "_completed_trials",
        "_last_print",
        "_last_print_iteration",
        "_last_result_str",
        released="trial",
    ),
    *_of(
        "ray.air.integrations.mlflow:MLflowLoggerCallback",
        RELEASE_MLFLOW,
        "_trial_runs",
        released="trial",
        optional=True,
    ),
    *_of(
        "ray.tune.logger.aim:AimLoggerCallback",
        RELEASE_AIM,
        "_trial_to_run",
        released="trial",
        optional=True,
    ),
    *_of("ray.util.debug", RELEASE_LOG_KEYS, "_logged", optional=True),
    *_of("tensorboardX.writer", RELEASE_TENSORBOARD, "atexit", optional=True),
    *_of(
        "tensorboardX.event_file_writer:EventFileWriter",
        RELEASE_TENSORBOARD,
        "_closed",
        optional=True,
    ),
    *core_names.NAMES,
)


@dataclass(frozen=True)
class Capabilities:
    """What this Ray allows.

    Attributes:
        on: the capabilities of which this Ray has all names.
        missing: the names that this Ray lacks.
    """

    on: frozenset[str]
    missing: tuple[PrivateName, ...] = ()

    def __contains__(self, capability: str) -> bool:
        return capability in self.on

    def warning(self) -> str | None:
        """The warning for the user; None if this Ray has all names."""
        if not self.missing:
            return None
        lost = [name for name in WITHOUT if any(name in row.needed_by for row in self.missing)]
        effects = "; ".join(f"{name} ({WITHOUT[name]})" for name in lost)
        return (
            f"Ray {ray.__version__} lacks {', '.join(dict.fromkeys(map(str, self.missing)))}, "
            f"which this version of ray-tune-memguard needs for: {effects}. "
            "Everything else works as usual."
        )


def probe(controller: object | None = None) -> Capabilities:
    """Find out what this Ray allows.

    Args:
        controller: the run's controller. If given, its own parts are probed instead of Ray's
            classes, because a part may be a stand-in for one.
    """
    parts = _parts(controller)
    missing = tuple(row for row in NAMES if not is_there(row, parts.get(row.owner)))
    off = {capability for row in missing for capability in row.needed_by}
    while more := {name for name, base in BUILDS_ON.items() if off.intersection(base)} - off:
        off |= more
    return Capabilities(frozenset(WITHOUT) - off, missing)


def is_there(row: PrivateName, part: object | None = None) -> bool:
    """Whether this Ray has a name.

    Args:
        row: the name.
        part: the object of the run that must have it, if there is one.
    """
    if row.optional and row.module not in sys.modules:
        return True
    try:
        owner = importlib.import_module(row.module)
        if row.class_name and part is None:
            owner = getattr(owner, row.class_name)
    except (ImportError, AttributeError):
        return False
    if row.older is not None and hasattr(owner, row.older):
        return True
    if row.takes is not None:
        return _takes(getattr(type(part) if part is not None else owner, row.name, None), row)
    if part is not None:
        return hasattr(part, row.name)
    # The names that a method sets on its instance are among the names in its code.
    is_set = isinstance(owner, type) and row.name in _names_in_methods(owner)
    return hasattr(owner, row.name) or is_set


def retention_sites(owner: str | None = None) -> list[PrivateName]:
    """The containers that keep finished trials for ever; of one ``owner``, or of callbacks."""
    return [
        row
        for row in NAMES
        if row.released is not None and (row.owner == owner if owner else row.owner != CONTROLLER)
    ]


def emptied_by_rollback() -> list[str]:
    """The controller's containers that are emptied when a restore is rolled back."""
    return list(dict.fromkeys(row.name for row in NAMES if row.emptied))


def _parts(controller: object | None) -> dict[str, object]:
    """The objects of a run by the owner whose names they must have."""
    manager = getattr(controller, "_actor_manager", None)
    found = {
        CONTROLLER: controller,
        _CHECKPOINTS: getattr(controller, "_checkpoint_manager", None),
        _CALLBACKS: getattr(controller, "_callbacks", None),
        _CONTEXT: getattr(controller, "_storage", None),
        _ACTORS: manager,
        _EVENTS: getattr(manager, "_actor_task_events", None),
    }
    return {owner: part for owner, part in found.items() if part is not None}


def _takes(function: object, row: PrivateName) -> bool:
    if not callable(function):
        return False
    known = [name for name in inspect.signature(function).parameters if name != "self"]
    takes = row.takes or ()
    return tuple(known[: len(takes)]) == takes


@functools.cache
def _names_in_methods(owner: type) -> frozenset[str]:
    functions: Iterable[object] = (
        getattr(value, "fget", value) for base in owner.__mro__ for value in vars(base).values()
    )
    found: set[str] = set()
    for function in functions:
        if isinstance(function, types.FunctionType):
            found.update(function.__code__.co_names)
    return frozenset(found)
