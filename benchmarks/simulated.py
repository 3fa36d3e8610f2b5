"""A simulated actor layer: Ray Tune's own driver, with no actor process behind it.

It shows what the driver costs at ten thousand trials without waiting for ten thousand processes.
``install_simulated_actors`` replaces one name, ``RayActorManager`` in
``ray.tune.execution.tune_controller``, by ``SimulatedActorManager``. Controller, searchers,
schedulers, loggers, checkpoints and storage remain Ray's own.

The manager is a subclass of Ray's that keeps all its logic and private state (which futures belong
to which actor, what is pending, what is live). Only what would talk to another process differs:

- resources are ``concurrency`` slots instead of placement groups;
- an actor is a ``SimulatedActor`` in this process, a future is a ``SimulatedRef`` that has its
  value from the start and, like an ``ObjectRef``, keeps it alive;
- the next event is the oldest one, not the first that ``ray.wait`` returns.

A result goes through pickle on its way to the driver, as it does with Ray, so that the driver owns
a copy that shares no objects with the trial or with other results.

Trials neither fail nor save. Actors can be reused, and a sweep be stopped and resumed.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ray.air.execution._internal import RayActorManager, TrackedActor
from ray.air.execution._internal.event_manager import RayEventManager
from ray.air.execution.resources import AcquiredResources, ResourceManager, ResourceRequest
from ray.tune.execution import tune_controller
from ray.tune.trainable import Trainable

from benchmarks.problem import METRIC, score

#: Of the Ray that a benchmark starts. As many actors run at a time, as with real ones: with more in
#: use than there are, Ray would ask the cluster for its resources on every step.
CPUS = 2


class SimulatedRef:
    """Stand in for the ``ObjectRef`` of a finished task: it holds the value."""

    __slots__ = ("__weakref__", "value")

    def __init__(self, value: Any) -> None:
        self.value = value


class SimulatedTrainable(Trainable):
    """Ray's own trainable, in this process. The last of ``results_per_trial`` says ``done``."""

    def __init__(self, results_per_trial: int, config: dict[str, Any]) -> None:
        self._results_per_trial = results_per_trial
        super().__init__(dict(config))

    def _setup_logdir(self) -> None:
        """Make no directory, and stay in this one."""

    def _open_logfiles(self, *_: Any) -> None:
        """Leave the driver's output alone."""

    def step(self) -> dict[str, Any]:
        """Return the keys that a function trainable reports."""
        iteration = self._iteration + 1
        return {
            METRIC: score(self.config, iteration),
            "checkpoint_dir_name": None,
            "done": iteration >= self._results_per_trial,
        }

    def train(self) -> dict[str, Any]:
        """Return the next result, as the driver gets it."""
        return pickle.loads(pickle.dumps(super().train()))

    def reset(self, new_config: dict[str, Any], **_: Any) -> bool:
        """Start a new trial, for ``reuse_actors``."""
        return super().reset(dict(new_config))

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Accept any."""
        return True

    def __ray_ready__(self) -> bool:
        return True


@dataclass(frozen=True)
class SimulatedMethod:
    """One method of a simulated actor: ``remote`` runs it at once."""

    trainable: SimulatedTrainable
    name: str

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Return a ``SimulatedRef``.

        ``get_auto_filled_metrics`` is not fetched by the manager but by ``Trial``, which takes
        either an ``ObjectRef`` or the value; it gets the value.
        """
        value = getattr(self.trainable, self.name)(*args, **kwargs)
        return value if self.name == "get_auto_filled_metrics" else SimulatedRef(value)


class SimulatedActor:
    """Stand in for an actor handle: ``handle.train.remote()``."""

    def __init__(self, trainable: SimulatedTrainable) -> None:
        self._trainable = trainable

    def __getattr__(self, name: str) -> SimulatedMethod:
        if not hasattr(SimulatedTrainable, name):
            raise AttributeError(name)
        return SimulatedMethod(self._trainable, name)


@dataclass(frozen=True)
class SimulatedActorClass:
    """Stand in for the remote class: ``remote`` makes an actor."""

    results_per_trial: int

    def remote(self, *, config: dict[str, Any], **_: Any) -> SimulatedActor:
        """Start an actor for the trial whose configuration this is."""
        return SimulatedActor(SimulatedTrainable(self.results_per_trial, config))


@dataclass
class SimulatedSlot(AcquiredResources):
    """One of the slots, taken. Whatever would start in it becomes a simulated actor."""

    actor_class: SimulatedActorClass

    def annotate_remote_entities(self, entities: list[Any]) -> list[Any]:
        """Return the simulated class in place of each remote class."""
        return [self.actor_class] * len(entities)


class SimulatedResources(ResourceManager):
    """Grant ``concurrency`` slots, whatever is asked for."""

    def __init__(self, concurrency: int, actor_class: SimulatedActorClass) -> None:
        self._free = self._concurrency = concurrency
        self._actor_class = actor_class

    def request_resources(self, resource_request: ResourceRequest) -> None:
        """Do nothing: a slot needs no preparation."""

    def cancel_resource_request(self, resource_request: ResourceRequest) -> None:
        """Do nothing: nothing was prepared."""

    def has_resources_ready(self, resource_request: ResourceRequest) -> bool:
        """Return whether a slot is free."""
        return self._free > 0

    def acquire_resources(self, resource_request: ResourceRequest) -> SimulatedSlot:
        """Take a slot."""
        self._free -= 1
        return SimulatedSlot(resource_request, self._actor_class)

    def free_resources(self, acquired_resource: AcquiredResources) -> None:
        """Give a slot back."""
        self._free += 1

    def clear(self) -> None:
        """Give all slots back."""
        self._free = self._concurrency


class SimulatedEvents(RayEventManager):
    """Ray's event manager, for futures that hold their value."""

    def oldest(self) -> SimulatedRef | None:
        """Return the future that has been tracked longest."""
        return next(iter(self._tracked_futures), None)

    def resolve_future(self, future: SimulatedRef) -> None:
        """Hand the future's value to its callback."""
        on_result, _ = self._tracked_futures.pop(future)
        if on_result:
            on_result(future.value)


class SimulatedActorManager(RayActorManager):
    """Ray's actor manager, for actors in this process. Takes a ``SimulatedResources``."""

    def __init__(self, resource_manager: ResourceManager) -> None:
        super().__init__(resource_manager)
        self._actor_state_events = SimulatedEvents()
        self._actor_task_events = SimulatedEvents()

    def next(self, timeout: float | None = None) -> bool:
        """Handle one event, actors' starts and stops first, as Ray does."""
        if self._try_kill_actor():
            return True
        self._try_start_actors()
        for events in (self._actor_state_events, self._actor_task_events):
            future = events.oldest()
            if future is not None:
                events.resolve_future(future)
                self._try_start_actors()
                return True
        return False

    def cleanup(self) -> None:
        """Forget the actors that are left: there is no process to kill."""
        self._live_actors_to_ray_actors_resources.clear()
        super().cleanup()

    def _try_kill_actor(self) -> bool:
        if not self._live_actors_to_kill:
            return False
        tracked_actor: TrackedActor = self._live_actors_to_kill.pop()
        self._actor_stop_resolved(tracked_actor)
        return True


@contextmanager
def install_simulated_actors(concurrency: int = CPUS, results_per_trial: int = 1) -> Iterator[None]:
    """Let every sweep that starts in this block run on simulated actors.

    The placement-group manager that the controller makes for itself is left unused.
    """
    actor_class = SimulatedActorClass(results_per_trial)

    def make_manager(**_: Any) -> SimulatedActorManager:
        return SimulatedActorManager(SimulatedResources(concurrency, actor_class))

    original = tune_controller.RayActorManager
    tune_controller.RayActorManager = make_manager
    try:
        yield
    finally:
        tune_controller.RayActorManager = original
