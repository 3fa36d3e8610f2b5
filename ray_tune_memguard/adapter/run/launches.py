"""Asks the gate before Ray starts the actor of a trial.

Ray's actor manager starts actors in a loop: while the resource manager has resources ready for a
request, it acquires them and starts one. So ``has_resources_ready`` of the resource manager is the
one place that is asked before each start, and the manager of this one run gets a subclass that also
asks the gate. Ray asks a second time when it acquires the resources, and must get the same answer,
so a *yes* is remembered until then.

On several nodes, the placement group decides on which node a trial runs. Where not all nodes have
room, groups that are ready are looked up (3 ms each, once), and the one on a node with room is
acquired.

With ``reuse_actors``, the actor of a finished trial is kept for the next one, which then starts
without asking for resources. So an actor is kept only if the gate admits a trial; otherwise it
ends, its memory is returned, and the next trial waits for the gate.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from ray_tune_memguard.adapter import boundary, contract
from ray_tune_memguard.adapter.boundary import Policy, RaysOwn
from ray_tune_memguard.adapter.contract import Capabilities
from ray_tune_memguard.adapter.run.controller import add_methods

if TYPE_CHECKING:
    from ray.air.execution._internal.tracked_actor import TrackedActor
    from ray.air.execution.resources import AcquiredResources, ResourceManager, ResourceRequest
    from ray.tune.utils.object_cache import _ObjectCache
    from ray.util.placement_group import PlacementGroup

    from ray_tune_memguard.adapter.seam import Controller

_LAUNCHES = "_memguard_launches"
#: An actor that is stopping holds its memory for a while, but is not waited for longer than this.
STOPPING_S = 10.0


class Gatekeeper(Protocol):
    """What is asked; see :class:`ray_tune_memguard.gate.gate.Gate`."""

    def admits(self, node: str) -> bool: ...

    def admits_everywhere(self, nodes: Sequence[str]) -> bool: ...

    def admits_successor(self, node: str, trial_id: str) -> bool: ...

    def start(self, nodes: Sequence[str]) -> None: ...


class Launches:
    """The starts of actors in one run, and the gate that they pass.

    Args:
        controller: the run's controller; held weakly.
        nodes: the ids of the nodes that are alive, the driver's own first if it is the only one.
    """

    def __init__(self, controller: Controller, nodes: Callable[[], Sequence[str]]) -> None:
        self._controller = weakref.ref(controller)
        self._nodes = nodes
        #: None lets all trials start.
        self.gate: Gatekeeper | None = None
        # By request: the admitted placement group, or None for any of those that are ready.
        self._admitted: dict[ResourceRequest, PlacementGroup | None] = {}
        self._nodes_by_group: weakref.WeakKeyDictionary[PlacementGroup, tuple[str, ...]] = (
            weakref.WeakKeyDictionary()
        )

    def live(self) -> Iterator[tuple[str | None, str]]:
        """Trial id and node of the trials that have an actor.

        The id is None for an actor that is stopping. One that is kept for a next trial is left out.
        """
        controller = self._controller()
        if controller is None:
            return
        actors = controller._actor_manager._live_actors_to_ray_actors_resources
        for tracked_actor, (_, acquired) in list(actors.items()):
            trial = controller._actor_to_trial.get(tracked_actor)
            if trial is not None:
                yield trial.trial_id, self._node_of(acquired)
            elif self._is_stopping(controller, tracked_actor):
                yield None, self._node_of(acquired)

    def may_start(self, manager: ResourceManager, request: ResourceRequest) -> bool:
        """Whether the actor of a request may start. Ray has resources ready for it."""
        gate = self.gate
        if gate is None:
            return True
        if request in self._admitted:
            admitted = self._admitted[request]
            if admitted is None or admitted in _ready_groups(manager, request):
                return True
            del self._admitted[request]
        nodes = self._nodes()
        if len(nodes) == 1:
            return self._admit(request, None, gate.admits(nodes[0]))
        if gate.admits_everywhere(nodes):
            return self._admit(request, None, True)
        return any(
            self._admit(request, group, all(gate.admits(node) for node in self._nodes_of(group)))
            for group in list(_ready_groups(manager, request))
        )

    def may_keep_actor(self, tracked_actor: TrackedActor) -> bool:
        """Whether the actor of a trial that ends may be kept for another trial."""
        gate, controller = self.gate, self._controller()
        if gate is None or controller is None:
            return True
        trial = controller._actor_to_trial.get(tracked_actor)
        live = controller._actor_manager._live_actors_to_ray_actors_resources.get(tracked_actor)
        if trial is None or live is None:
            return True
        return gate.admits_successor(self._node_of(live[1]), trial.trial_id)

    def acquire(
        self, rays: RaysOwn, manager: Any, request: ResourceRequest
    ) -> AcquiredResources | None:
        """Acquire the resources of the request that was admitted, on the node that has room."""
        # Ray acquires what it was told is ready, also if that was because the gate had failed.
        group = self._admitted.setdefault(request, None)
        if group is None:
            acquired: AcquiredResources | None = rays(manager, request)
        else:
            groups = manager._request_to_ready_pgs
            others = groups[request] - {group}
            groups[request] = {group}
            try:
                acquired = rays(manager, request)
            finally:
                groups[request] |= others
        if acquired is not None:
            self._admitted.pop(request, None)
            if self.gate is not None:
                self.gate.start(self._nodes() if group is None else self._nodes_of(group))
        return acquired

    def _admit(self, request: ResourceRequest, group: PlacementGroup | None, admits: bool) -> bool:
        if admits:
            self._admitted[request] = group
        return admits

    def _node_of(self, acquired: AcquiredResources) -> str:
        nodes = self._nodes()
        if len(nodes) == 1:
            return nodes[0]
        group = getattr(acquired, "placement_group", None)
        found = () if group is None else self._nodes_of(group)
        return found[0] if found else ""

    def _nodes_of(self, group: PlacementGroup) -> tuple[str, ...]:
        """The nodes of a placement group, that of the trial's own process first."""
        found = self._nodes_by_group.get(group)
        if found is None:
            import ray

            table = ray.util.placement_group_table(group)
            by_bundle = table.get("bundles_to_node_id") or {}
            found = tuple(dict.fromkeys(by_bundle[index] for index in sorted(by_bundle)))
            if found:
                self._nodes_by_group[group] = found
        return found

    @staticmethod
    def _is_stopping(controller: Controller, tracked_actor: TrackedActor) -> bool:
        since = controller._stopping_actors.get(tracked_actor)
        return since is not None and time.monotonic() - since < STOPPING_S


def _ready_groups(manager: Any, request: ResourceRequest) -> set[PlacementGroup]:
    groups: set[PlacementGroup] = manager._request_to_ready_pgs[request]
    return groups


@boundary.entry("PlacementGroupResourceManager.has_resources_ready", Policy.CALL_RAY)
def _has_resources_ready(
    rays: RaysOwn, manager: ResourceManager, resource_request: ResourceRequest
) -> bool:
    is_ready = bool(rays(manager, resource_request))
    launches: Launches = getattr(manager, _LAUNCHES)
    return is_ready and launches.may_start(manager, resource_request)


@boundary.entry("PlacementGroupResourceManager.acquire_resources", Policy.CALL_RAY)
def _acquire_resources(
    rays: RaysOwn, manager: ResourceManager, resource_request: ResourceRequest
) -> AcquiredResources | None:
    launches: Launches = getattr(manager, _LAUNCHES)
    return launches.acquire(rays, manager, resource_request)


@boundary.entry("_ObjectCache.cache_object", Policy.CALL_RAY)
def _cache_object(rays: RaysOwn, cache: _ObjectCache, key: object, obj: TrackedActor) -> bool:
    launches: Launches = getattr(cache, _LAUNCHES)
    return launches.may_keep_actor(obj) and bool(rays(cache, key, obj))


def _override(owner: Any, launches: Launches, **methods: boundary.Entry) -> None:
    """Give one object a subclass of its class with these methods."""
    plain = type(owner)
    replaced = {name: entry.in_place_of(getattr(plain, name)) for name, entry in methods.items()}
    add_methods(owner, {_LAUNCHES: launches, **replaced})


def watch_launches(
    controller: Controller, capabilities: Capabilities, nodes: Callable[[], Sequence[str]]
) -> Launches:
    """Let a gate be asked before each start of an actor.

    Args:
        controller: the run's controller, before its first step.
        capabilities: what this Ray allows.
        nodes: the ids of the nodes that are alive.

    Returns:
        The starts, which have no gate yet.
    """
    launches = Launches(controller, nodes)
    _override(
        controller._actor_manager._resource_manager,
        launches,
        has_resources_ready=_has_resources_ready,
        acquire_resources=_acquire_resources,
    )
    if contract.GATE_REUSE in capabilities:
        _override(controller._actor_cache, launches, cache_object=_cache_object)
    return launches
