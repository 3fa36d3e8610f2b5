"""Releases finished trials from the retention sites of Ray and of the libraries that it uses.

These *retention sites* are containers, keyed by trial or by trial id, that Ray does not clear when
a trial ends. They are rows of the contract; to add a site, add a row there. Memory that is not kept
by trial is released by a function of its own below.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler

from ray_tune_memguard.adapter import boundary, contract
from ray_tune_memguard.adapter.boundary import Policy, RaysOwn
from ray_tune_memguard.adapter.contract import Capabilities
from ray_tune_memguard.private_names import PrivateName

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

    from ray_tune_memguard.adapter.seam import Controller

#: These schedulers never read the set of live trials, in which errored trials stay.
BLIND_TO_LIVE_TRIALS = (FIFOScheduler, AsyncHyperBandScheduler)


def sites_of(
    controller: Controller, capabilities: Capabilities
) -> list[tuple[PrivateName, object]]:
    """The retention sites of a run, each with the object that owns it."""
    found: list[tuple[PrivateName, object]] = [
        (site, controller)
        for site in contract.retention_sites(contract.CONTROLLER)
        if site.needed_by[0] != contract.RELEASE_LIVE_TRIALS
        or type(controller._scheduler_alg) in BLIND_TO_LIVE_TRIALS
    ]
    found += [
        (site, callback)
        for callback in controller._callbacks._callbacks
        for site in contract.retention_sites()
        if (owner := site.owner_class()) is not None and isinstance(callback, owner)
    ]
    return [(site, owner) for site, owner in found if site.needed_by[0] in capabilities]


def release(site: PrivateName, owner: object, trials: Sequence[Trial]) -> None:
    """Remove trials from a retention site of ``owner``."""
    container = getattr(owner, site.name, None)
    if not container:
        return
    keys: Sequence[object] = trials
    if site.released == "trial_id":
        keys = [trial.trial_id for trial in trials]
    if isinstance(container, dict):
        for key in keys:
            container.pop(key, None)
    elif isinstance(container, set):
        container.difference_update(keys)


def release_consumed_futures(controller: Controller, trial: Trial) -> None:
    """Discard the object references of a running trial's results that Ray has read.

    Ray keeps the reference of every ``train()`` call until the trial stops. Each reference pins its
    result: small ones in the driver, large ones in the object store. Ray has read the result if the
    event manager no longer waits for the reference.
    """
    manager = controller._actor_manager
    actor = controller._trial_to_actor.get(trial)
    futures = manager._tracked_actors_to_task_futures.get(actor)
    if futures:
        awaited = manager._actor_task_events._tracked_futures
        for future in [future for future in futures if future not in awaited]:
            futures.discard(future)


def release_orphaned_tasks(controller: Controller) -> None:
    """Drop the queued tasks of actors that Ray removed before they started.

    With reused actors Ray requests an actor for each trial. When the trial gets a cached actor, Ray
    queues a ``stop`` for the requested one and forgets that actor, but not the queue.
    """
    manager = controller._actor_manager
    queues = manager._pending_actors_to_enqueued_actor_tasks
    for actor in [actor for actor in queues if actor not in manager._pending_actors_to_attrs]:
        del queues[actor]


# Ray's JSON encoder calls `log_once` with a key that contains the text of the encoded object.
_LOG_ONCE_PREFIX = "tune_func_encode:"


def release_log_once_keys() -> None:
    """Drop the texts of encoded objects from Ray's ``log_once`` set.

    Ray may therefore log "Unable to encode" (at debug level) again for an equal object.
    """
    logged = getattr(sys.modules.get("ray.util.debug"), "_logged", None)
    if isinstance(logged, set):
        for key in [key for key in logged if str(key).startswith(_LOG_ONCE_PREFIX)]:
            logged.discard(key)


class TensorboardExitHooks:
    """Stands in for ``atexit`` in ``tensorboardX.writer``, so that closed writers can be freed.

    Each tensorboardX ``FileWriter`` registers a closure over itself with ``atexit``, where it stays
    for the life of the process. This object keeps the closures of open writers and runs them at
    exit, as ``atexit`` does; it drops those of closed writers.
    """

    def __init__(self, atexit: ModuleType) -> None:
        self.atexit = atexit
        self._cleanups: list[Callable[[], object]] = []
        self._registered = False

    def __getattr__(self, name: str) -> object:
        return getattr(self.atexit, name)

    def register(self, cleanup: Callable[..., object], *args: object, **kwargs: object) -> object:
        return _REGISTER_AT_EXIT(self, cleanup, *args, **kwargs)

    def release_closed(self) -> None:
        self._cleanups = [cleanup for cleanup in self._cleanups if not _is_closed(cleanup)]

    def keep(self, cleanup: Callable[[], object]) -> None:
        """Run the clean-up of an open writer at exit."""
        if not self._registered:
            # Not before the first writer: its queue's own exit function must run after this one.
            self._registered = True
            self.atexit.register(_RUN_AT_EXIT, self)
        self._cleanups.append(cleanup)

    def run(self) -> None:
        """Close the writers that are open."""
        with ExitStack() as stack:
            for cleanup in self._cleanups:
                stack.callback(cleanup)

    def take_out(self) -> None:
        """Let ``atexit`` itself close the writers that are open, and later ones."""
        module = sys.modules["tensorboardX.writer"]
        if getattr(module, "atexit", None) is self:
            module.atexit = self.atexit  # type: ignore[attr-defined]
        for cleanup in self._cleanups:
            self.atexit.register(cleanup)
        self._cleanups.clear()


def _register_with_atexit(
    hooks: TensorboardExitHooks, cleanup: Callable[..., object], *args: object, **kwargs: object
) -> object:
    return hooks.atexit.register(cleanup, *args, **kwargs)


@boundary.entry("tensorboardX atexit.register", Policy.CALL_RAY)
def _register(
    rays: RaysOwn,
    hooks: TensorboardExitHooks,
    cleanup: Callable[..., object],
    *args: object,
    **kwargs: object,
) -> object:
    if args or kwargs or _writer_of(cleanup) is None:
        return rays(hooks, cleanup, *args, **kwargs)
    hooks.keep(cleanup)
    return cleanup


_REGISTER_AT_EXIT = _register.in_place_of(_register_with_atexit)


@boundary.entry("tensorboardX at exit", Policy.KEEP)
def _run_at_exit(hooks: TensorboardExitHooks) -> None:
    hooks.run()


_RUN_AT_EXIT = _run_at_exit.on_its_own()


def _writer_of(cleanup: object) -> Any | None:
    """The event writer that a ``FileWriter``'s clean-up closes; None for other functions."""
    for cell in getattr(cleanup, "__closure__", None) or ():
        writer = getattr(cell.cell_contents, "event_writer", None)
        if hasattr(writer, "_closed"):
            return writer
    return None


def _is_closed(cleanup: object) -> bool:
    writer = _writer_of(cleanup)
    return writer is not None and bool(writer._closed)


def tensorboard_exit_hooks() -> TensorboardExitHooks | None:
    """The stand-in, installed by the first call; None if tensorboardX is not installed."""
    try:
        module = importlib.import_module("tensorboardX.writer")
    except ImportError:
        return None
    hooks = getattr(module, "atexit", None)
    if hooks is not None and not isinstance(hooks, TensorboardExitHooks):
        hooks = module.atexit = TensorboardExitHooks(hooks)  # type: ignore[attr-defined]
    return hooks
