"""Lets a trial that Ray's memory monitor kills fail like any other trial.

Ray reports such a kill as ``OutOfMemoryError``, which Tune's actor manager does not expect: it
raises, and the whole run ends, whatever ``max_failures`` is (Ray 2.50 to 2.60; Ray reports a worker
that the kernel kills as ``ActorDiedError``, which Tune handles). Here the manager of one run
receives ``RayActorError`` with the same text instead. It has to be this class: Tune asserts it, and
keeps the error of a trial for its ``Result`` only if it is one of Ray's two.

Where a task or an actor that the trial has started is killed, the trial's own code may raise the
error. It comes as ``RayTaskError(OutOfMemoryError)``, which is both; the trial's process lives, and
Tune handles it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError

from ray_tune_memguard.adapter import boundary
from ray_tune_memguard.adapter.boundary import Policy, RaysOwn
from ray_tune_memguard.cluster import gcs

if TYPE_CHECKING:
    from ray.air.execution._internal.actor_manager import RayActorManager
    from ray.air.execution._internal.tracked_actor import TrackedActor
    from ray.air.execution._internal.tracked_actor_task import TrackedActorTask
    from ray.tune.experiment import Trial

    from ray_tune_memguard.adapter.seam import Controller

# By manager class: the subclass that replaces it.
_subclasses: dict[type, type] = {}


@boundary.entry("RayActorManager._actor_task_failed", Policy.CALL_RAY)
def _task_failed(
    rays: RaysOwn,
    manager: RayActorManager,
    tracked_actor_task: TrackedActorTask,
    exception: Exception,
) -> None:
    death = _as_actor_death(exception, manager, getattr(tracked_actor_task, "_tracked_actor", None))
    rays(manager, tracked_actor_task=tracked_actor_task, exception=death)


@boundary.entry("RayActorManager._actor_start_failed", Policy.CALL_RAY)
def _start_failed(
    rays: RaysOwn, manager: RayActorManager, tracked_actor: TrackedActor, exception: Exception
) -> None:
    death = _as_actor_death(exception, manager, tracked_actor)
    rays(manager, tracked_actor=tracked_actor, exception=death)


_METHODS = {"_actor_task_failed": _task_failed, "_actor_start_failed": _start_failed}


def _as_actor_death(
    exception: Exception, manager: RayActorManager, tracked_actor: object
) -> Exception:
    if isinstance(exception, OutOfMemoryError) and not isinstance(exception, RayTaskError):
        # Ray's error names no actor, and Ray forgets the actor before it tells who failed.
        death = RayActorError(error_msg=str(exception))
        # Its constructor is declared to take no None.
        death.actor_id = _actor_id(manager, tracked_actor)  # type: ignore[assignment]
        death.__cause__ = exception
        return death
    return exception


def _actor_id(manager: object, tracked_actor: object) -> str | None:
    live = getattr(manager, "_live_actors_to_ray_actors_resources", {})
    try:
        handle, _resources = live[tracked_actor]
    except (LookupError, TypeError, ValueError):
        return None
    return gcs.actor_id_or_none(handle)


def default_result(rays: RaysOwn, trial: Trial) -> object:
    """Stands in for ``Trial._get_default_result_or_future``.

    A process that is killed before it has told the trial's default result has none to tell. Ray
    knows this of a ``RayActorError`` only; the other error would end the run wherever somebody
    reads ``last_result``, for example in Ray's own progress output.
    """
    try:
        return rays(trial)
    except OutOfMemoryError:
        trial._default_result_or_future = None
        return None


def tolerate_out_of_memory(controller: Controller) -> None:
    """Replace the class of the run's actor manager.

    Args:
        controller: the run's controller, before its first step.
    """
    manager = controller._actor_manager
    plain = type(manager)
    if plain not in _subclasses:
        methods = {
            name: entry.in_place_of(getattr(plain, name)) for name, entry in _METHODS.items()
        }
        _subclasses[plain] = type(
            plain.__name__, (plain,), {"__module__": plain.__module__, **methods}
        )
    manager.__class__ = _subclasses[plain]
