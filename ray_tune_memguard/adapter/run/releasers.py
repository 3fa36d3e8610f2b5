"""The places in Ray and its companions that hold on to finished trials, and how each lets go.

A *retainer* is a container attribute (dict, set or list) keyed by trial or by trial id that Ray
does not clear when a trial ends. To teach the pruner a new one, add a row to ``CONTROLLER`` or
``CALLBACKS``; what is not a container of trials has a function of its own below.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

Key = Literal["trial", "trial_id"]


@dataclass(frozen=True)
class Retainer:
    """A container ``attribute`` of ``owner`` that keeps entries of trials for ever.

    ``owner``: ``module:Class``; the attribute is that of the instances.
    """

    owner: str
    attribute: str
    key: Key = "trial"

    @property
    def name(self) -> str:
        return f"{self.owner.split(':')[1]}.{self.attribute}"

    def owner_class(self) -> type | None:
        """The class, if its module is in use. Nothing is imported for it."""
        module_name, class_name = self.owner.split(":")
        module = sys.modules.get(module_name)
        return getattr(module, class_name, None) if module else None

    def release(self, instance: Any, trials: Iterable[Any]) -> None:
        container = getattr(instance, self.attribute, None)
        if not container:
            return
        keys = trials if self.key == "trial" else [trial.trial_id for trial in trials]
        if isinstance(container, dict):
            for key in keys:
                container.pop(key, None)
        elif isinstance(container, set):
            container.difference_update(keys)


_CONTROLLER = "ray.tune.execution.tune_controller:TuneController"
_REPORTER = "ray.tune.progress_reporter:TrialProgressCallback"

CONTROLLER = (
    Retainer(_CONTROLLER, "_stopped_trials"),
    Retainer(_CONTROLLER, "_failed_trials"),
    Retainer(_CONTROLLER, "_trials_to_cache"),
    # Trials whose reset failed.
    Retainer(_CONTROLLER, "_resetting_trials"),
    Retainer(_CONTROLLER, "_trial_metadata", key="trial_id"),
    # Decisions about trials that ended otherwise before the decision was carried out.
    Retainer(_CONTROLLER, "_cached_trial_decisions", key="trial_id"),
    Retainer(_CONTROLLER, "_queued_trial_decisions", key="trial_id"),
)

# Ray never takes errored trials out of it, and some schedulers count them there.
LIVE_TRIALS = Retainer(_CONTROLLER, "_live_trials")

CALLBACKS = (
    Retainer("ray.tune.logger.json:JsonLoggerCallback", "_trial_configs"),
    Retainer("ray.tune.logger.csv:CSVLoggerCallback", "_trial_continue"),
    Retainer(
        "ray.tune.experimental.output:ProgressReporter",
        "_trial_last_printed_results",
        key="trial_id",
    ),
    Retainer(_REPORTER, "_completed_trials"),
    Retainer(_REPORTER, "_last_print"),
    Retainer(_REPORTER, "_last_print_iteration"),
    Retainer(_REPORTER, "_last_result_str"),
    Retainer("ray.air.integrations.mlflow:MLflowLoggerCallback", "_trial_runs"),
    Retainer("ray.tune.logger.aim:AimLoggerCallback", "_trial_to_run"),
)


def of_callbacks(callbacks: Iterable[Any]) -> list[tuple[Retainer, Any]]:
    """The known retainers among a sweep's callbacks, each with the instance that has it."""
    return [
        (retainer, callback)
        for callback in callbacks
        for retainer in CALLBACKS
        if (owner := retainer.owner_class()) is not None and isinstance(callback, owner)
    ]


def release_consumed_futures(controller: Any, trial: Any) -> None:
    """Forget the references to results of a running trial that have been read.

    Ray keeps the reference of every ``train()`` call until the trial stops, and each pins its
    result: small ones in the driver, large ones in the object store. A reference that the event
    manager no longer waits for has been read.
    """
    manager = controller._actor_manager
    actor = controller._trial_to_actor.get(trial)
    futures = manager._tracked_actors_to_task_futures.get(actor)
    if futures:
        awaited = manager._actor_task_events._tracked_futures
        for future in [future for future in futures if future not in awaited]:
            futures.discard(future)


def release_orphaned_tasks(controller: Any) -> None:
    """Drop the queued tasks of actors that were given up before they started.

    With reused actors Ray requests an actor for each trial, and when the trial gets a cached one it
    queues a ``stop`` for the requested one and forgets that actor, but not the queue.
    """
    manager = controller._actor_manager
    queues = manager._pending_actors_to_enqueued_actor_tasks
    for actor in [actor for actor in queues if actor not in manager._pending_actors_to_attrs]:
        del queues[actor]


# Ray's JSON encoder asks `log_once` under a key that contains the text of each object it meets.
_LOG_ONCE_PREFIX = "tune_func_encode:"


def release_log_once_keys() -> None:
    """Drop the texts of encoded objects from Ray's ``log_once`` set.

    Side effect: its debug line "Unable to encode" may come once more for an equal object.
    """
    logged = getattr(sys.modules.get("ray.util.debug"), "_logged", None)
    if isinstance(logged, set):
        for key in [key for key in logged if str(key).startswith(_LOG_ONCE_PREFIX)]:
            logged.discard(key)


class TensorboardExitHooks:
    """Stands in for ``atexit`` in ``tensorboardX.writer``, so that closed writers can be freed.

    Each tensorboardX ``FileWriter`` registers a closure over itself with ``atexit``, where it stays
    for the life of the process. Here the closures of open writers are kept and run at exit, as
    before; those of closed writers are dropped.
    """

    def __init__(self, atexit: Any) -> None:
        self._atexit = atexit
        self._cleanups: list[Callable[[], Any]] = []
        self._registered = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._atexit, name)

    def register(self, cleanup: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if args or kwargs or _writer_of(cleanup) is None:
            return self._atexit.register(cleanup, *args, **kwargs)
        if not self._registered:
            # Not before the first writer: its queue's own exit function must run after this one.
            self._registered = True
            self._atexit.register(self._run)
        self._cleanups.append(cleanup)
        return cleanup

    def release_closed(self) -> None:
        self._cleanups = [cleanup for cleanup in self._cleanups if not _is_closed(cleanup)]

    def _run(self) -> None:
        for cleanup in reversed(self._cleanups):
            cleanup()


def _writer_of(cleanup: Any) -> Any | None:
    """The event writer that a ``FileWriter``'s clean-up closes; None if it is something else."""
    for cell in getattr(cleanup, "__closure__", None) or ():
        writer = getattr(cell.cell_contents, "event_writer", None)
        if hasattr(writer, "_closed"):
            return writer
    return None


def _is_closed(cleanup: Any) -> bool:
    writer = _writer_of(cleanup)
    return writer is not None and bool(writer._closed)


def tensorboard_exit_hooks() -> TensorboardExitHooks | None:
    """The stand-in, put in place on the first call; None where tensorboardX is not installed."""
    try:
        module = importlib.import_module("tensorboardX.writer")
    except ImportError:
        return None
    hooks = getattr(module, "atexit", None)
    if hooks is not None and not isinstance(hooks, TensorboardExitHooks):
        hooks = module.atexit = TensorboardExitHooks(hooks)  # type: ignore[attr-defined]
    return hooks
