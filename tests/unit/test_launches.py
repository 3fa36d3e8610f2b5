"""The gate is asked before each start of an actor, and the actor starts on a node with room."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from ray_tune_memguard.adapter import contract
from ray_tune_memguard.adapter.contract import Capabilities
from ray_tune_memguard.adapter.run import launches as module
from ray_tune_memguard.adapter.run.launches import Launches, watch_launches
from ray_tune_memguard.cluster.monitor import settings_from
from ray_tune_memguard.cluster.settings import given_in
from ray_tune_memguard.gate.admission import Rules
from ray_tune_memguard.gate.gate import Gate
from ray_tune_memguard.gate.interfaces import TrialUsage
from ray_tune_memguard.system.node_memory import MACHINE, MonitorSettings, NodeMemory

REQUEST: Any = "one CPU"


class Group:
    """A placement group that is ready."""

    def __init__(self, *nodes: str) -> None:
        self.nodes = nodes


class FakeManager:
    """A resource manager as Ray's, whose placement groups are all ready at once."""

    def __init__(self) -> None:
        self._request_to_ready_pgs: Any = defaultdict(set)

    def has_resources_ready(self, resource_request: Any) -> bool:
        return bool(self._request_to_ready_pgs[resource_request])

    def acquire_resources(self, resource_request: Any) -> Any:
        if not self.has_resources_ready(resource_request):
            return None
        group = self._request_to_ready_pgs[resource_request].pop()
        return SimpleNamespace(placement_group=group)


class FakeCache:
    def __init__(self) -> None:
        self.kept: list[Any] = []

    def cache_object(self, key: Any, obj: Any) -> bool:
        self.kept.append(obj)
        return True


class FakeGate:
    """Admits so many trials on each node."""

    def __init__(self, **room: int) -> None:
        self.room = room
        self.asked: list[str] = []

    def admits(self, node: str) -> bool:
        self.asked.append(node)
        return self.room[node] > 0

    def admits_everywhere(self, nodes: Sequence[str]) -> bool:
        return all(self.room[node] > 0 for node in nodes)

    def admits_successor(self, node: str, trial_id: str) -> bool:
        return self.room[node] > 0

    def start(self, nodes: Sequence[str]) -> None:
        for node in nodes:
            self.room[node] -= 1


class FakeController:
    def __init__(self) -> None:
        manager = SimpleNamespace(
            _resource_manager=FakeManager(), _live_actors_to_ray_actors_resources={}
        )
        self._actor_manager = manager
        self._actor_cache = FakeCache()
        self._actor_to_trial: dict[Any, Any] = {}
        self._stopping_actors: dict[Any, float] = {}

    def start_all(self) -> list[Any]:
        """As Ray's actor manager does; the groups of what was started."""
        manager = self._actor_manager._resource_manager
        started = []
        while manager.has_resources_ready(REQUEST):
            acquired = manager.acquire_resources(REQUEST)
            assert acquired
            started.append(acquired.placement_group)
        return started


@pytest.fixture
def controller() -> FakeController:
    return FakeController()


def watch(
    controller: FakeController, gate: FakeGate | None, monkeypatch: pytest.MonkeyPatch
) -> Launches:
    monkeypatch.setattr(Launches, "_nodes_of", lambda self, group: group.nodes)
    everything = Capabilities(frozenset(contract.WITHOUT))
    nodes = list(gate.room) if gate else ["own"]
    watched: Any = controller
    launches = watch_launches(watched, everything, lambda: nodes)
    launches.gate = gate
    return launches


def ready(controller: FakeController, *groups: Group) -> None:
    controller._actor_manager._resource_manager._request_to_ready_pgs[REQUEST] = set(groups)


def test_without_a_gate_all_start(
    controller: FakeController, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch(controller, None, monkeypatch)
    ready(controller, *(Group("own") for _ in range(5)))
    assert len(controller.start_all()) == 5


def test_as_many_start_as_the_gate_admits(
    controller: FakeController, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = FakeGate(own=2)
    watch(controller, gate, monkeypatch)
    ready(controller, *(Group("own") for _ in range(5)))
    assert len(controller.start_all()) == 2
    # Ray asks twice for each start; the gate answers once.
    assert len(gate.asked) == 3
    assert type(controller._actor_manager._resource_manager).__name__ == "FakeManager"


def test_the_group_on_the_node_with_room_is_taken(
    controller: FakeController, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch(controller, FakeGate(full=0, free=2), monkeypatch)
    groups = [Group("full"), Group("free"), Group("full"), Group("free"), Group("free", "full")]
    ready(controller, *groups)
    started = controller.start_all()
    assert [group.nodes for group in started] == [("free",), ("free",)]
    left = controller._actor_manager._resource_manager._request_to_ready_pgs[REQUEST]
    assert left == set(groups) - set(started)


def test_groups_are_not_looked_up_while_all_nodes_have_room(
    controller: FakeController, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = FakeGate(one=3, two=3)
    watch(controller, gate, monkeypatch)
    ready(controller, Group("one"), Group("two"))
    assert len(controller.start_all()) == 2
    # Where they started is not known, so they count on each node.
    assert gate.room == {"one": 1, "two": 1}
    assert not gate.asked


def test_an_admitted_group_that_is_gone_is_asked_for_again(
    controller: FakeController, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch(controller, FakeGate(full=0, free=1), monkeypatch)
    manager = controller._actor_manager._resource_manager
    first, second = Group("free"), Group("free")
    ready(controller, first)
    assert manager.has_resources_ready(REQUEST)
    ready(controller, second)
    assert controller.start_all() == [second]


def test_an_actor_is_kept_only_if_another_trial_fits(
    controller: FakeController, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = FakeGate(own=0)
    watch(controller, gate, monkeypatch)
    actor = SimpleNamespace()
    trial = SimpleNamespace(trial_id="t1")
    cache = controller._actor_cache
    # No trial of the run's.
    assert cache.cache_object(REQUEST, actor)
    identified = id(actor)
    controller._actor_to_trial = {identified: trial}
    live = controller._actor_manager._live_actors_to_ray_actors_resources
    live[identified] = None, SimpleNamespace(placement_group=Group("own"))
    assert not cache.cache_object(REQUEST, identified)
    gate.room["own"] = 1
    assert cache.cache_object(REQUEST, identified)
    assert cache.kept == [actor, identified]


def test_what_is_live(controller: FakeController, monkeypatch: pytest.MonkeyPatch) -> None:
    launches = watch(controller, FakeGate(own=1), monkeypatch)
    monkeypatch.setattr(module.time, "monotonic", lambda: 100.0)
    acquired = SimpleNamespace(placement_group=Group("own"))
    names = ("running", "stopping", "stopping for long", "kept")
    controller._actor_manager._live_actors_to_ray_actors_resources.update(
        dict.fromkeys(names, (None, acquired))
    )
    controller._actor_to_trial = {"running": SimpleNamespace(trial_id="t1")}
    controller._stopping_actors = {"stopping": 95.0, "stopping for long": 50.0}
    assert list(launches.live()) == [("t1", "own"), (None, "own")]


def test_an_error_of_the_gate_starts_the_trial(
    controller: FakeController, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(node: str) -> bool:
        raise RuntimeError("planned")

    gate = FakeGate(own=0)
    monkeypatch.setattr(gate, "admits", fail)
    watch(controller, gate, monkeypatch)
    ready(controller, Group("own"))
    assert len(controller.start_all()) == 1


class Whims:
    """Nodes and trials whose readings are anything: full, unknown, contradictory, an error."""

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw
        self.names = ["head", "one", "two"]

    def nodes(self) -> list[str]:
        # The head has no CPU for trials. A node may join, or be lost.
        return self.names[: self.draw.choice([1, 3, 3, 3])]

    def limits(self, node: str) -> list[NodeMemory]:
        if self.draw.random() < 0.05:
            raise OSError("planned")
        shares = self.draw.choice([[], [0.2], [0.85], [0.99], [0.99], [0.2, 0.97]])
        return [NodeMemory(int(share * 1000), 1000, MACHINE) for share in shares]

    def running(self) -> dict[str, TrialUsage]:
        return {
            f"trial{number}": TrialUsage(self.draw.choice(["", *self.names]), 900, 5000)
            for number in range(0, 30, 2)
        }

    def finished_peaks(self) -> list[int]:
        return self.draw.choice([[], [3000], [10, 5000] * 10])


def test_an_error_of_the_gate_does_not_make_it_contradict_itself(
    controller: FakeController, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray asks again when it acquires, and stops the run if the answer is another one."""
    answers = iter([RuntimeError("planned"), False, False])

    def fail_once(node: str) -> bool:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    gate = FakeGate(own=0)
    monkeypatch.setattr(gate, "admits", fail_once)
    watch(controller, gate, monkeypatch)
    ready(controller, Group("own"), Group("own"))
    assert len(controller.start_all()) == 1


@pytest.mark.parametrize("seed", range(20))
def test_one_trial_always_runs_whatever_is_measured(
    controller: FakeController, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    draw = random.Random(seed)
    monkeypatch.setattr(Launches, "_nodes_of", lambda self, group: group.nodes)
    whims, now = Whims(draw), [0.0]
    watched: Any = controller
    launches = watch_launches(watched, Capabilities(frozenset(contract.WITHOUT)), whims.nodes)
    rules = Rules(slow_start=seed % 2 == 0, memory_per_trial=draw.choice([None, 10**6]))
    launches.gate = Gate(
        rules, whims, whims, launches.live, lambda record: None, clock=lambda: now[0]
    )
    live = controller._actor_manager._live_actors_to_ray_actors_resources
    places = [("one",), ("one",), ("two",), ("two", "one")]
    ready(controller, *(Group("one"), Group("one"), Group("two")))
    started = steps_without = 0
    while started < 30:
        now[0] += draw.choice([0.01, 0.1, 0.5])
        begun = controller.start_all()
        for group in begun:
            actor = f"actor{started}"
            live[actor] = None, SimpleNamespace(placement_group=group)
            controller._actor_to_trial[actor] = SimpleNamespace(trial_id=f"trial{started}")
            started += 1
        steps_without = 0 if begun or live else steps_without + 1
        # An answer holds for a quarter of a second.
        assert steps_without < 30
        if live and draw.random() < 0.5:
            actor = draw.choice(sorted(live))
            del live[actor], controller._actor_to_trial[actor]
            manager = controller._actor_manager._resource_manager
            manager._request_to_ready_pgs[REQUEST].add(Group(*draw.choice(places)))


@pytest.mark.parametrize(
    ("given", "environment", "settings"),
    [
        ({}, {}, MonitorSettings()),
        ({}, {"RAY_memory_usage_threshold": "0.7"}, MonitorSettings(threshold=0.7)),
        (
            {"memory_usage_threshold": 0.6},
            {"RAY_memory_usage_threshold": "0.7"},
            MonitorSettings(threshold=0.6),
        ),
        ({}, {"RAY_memory_usage_threshold": "much"}, MonitorSettings()),
        ({}, {"RAY_memory_monitor_refresh_ms": "0"}, MonitorSettings(is_on=False)),
        ({"memory_monitor_refresh_ms": 0}, {}, MonitorSettings(is_on=False)),
        ({"min_memory_free_bytes": 1000}, {}, MonitorSettings(min_free_bytes=1000)),
        ({}, {"RAY_count_swap_in_memory_monitor": "1"}, MonitorSettings(counts_swap=True)),
    ],
)
def test_the_settings_of_the_monitor(
    given: dict[str, object], environment: dict[str, str], settings: MonitorSettings
) -> None:
    assert settings_from(given, given_in(environment)) == settings
