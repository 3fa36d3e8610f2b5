"""The memory of all nodes is read without waiting for any of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ray_tune_memguard.cluster import node_readings
from ray_tune_memguard.cluster.node_readings import (
    ASK_EVERY_S,
    MAX_AGE_S,
    READ_EVERY_S,
    ClusterMemory,
)
from ray_tune_memguard.cluster.probe import Answer, NoAnswerError
from ray_tune_memguard.system.node_memory import (
    MACHINE,
    MemoryLimits,
    MonitorSettings,
    NodeMemory,
    NodeMemoryReader,
)
from tests.unit import file_trees
from tests.unit.file_trees import GIB

REMOTE = NodeMemory(GIB, 8 * GIB, MACHINE)


class FakeProbes:
    """Two nodes; the test answers for the other one."""

    own_node = "own"

    def __init__(self) -> None:
        self.asked: list[Answer[MemoryLimits]] = []

    def nodes(self) -> list[str]:
        return ["own", "other"]

    def ask(self, node: str, function: Any, *args: Any) -> Answer[MemoryLimits]:
        assert node == "other"
        assert args == (MonitorSettings(),)
        self.asked.append(Answer(node))
        return self.asked[-1]


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    clock = [100.0]
    monkeypatch.setattr(node_readings.time, "monotonic", lambda: clock[0])
    return clock


@pytest.fixture
def probes() -> FakeProbes:
    return FakeProbes()


@pytest.fixture
def memory(probes: FakeProbes, tmp_path: Path) -> ClusterMemory:
    file_trees.machine(tmp_path)
    fake: Any = probes
    return ClusterMemory(NodeMemoryReader(root=tmp_path), MonitorSettings(), fake)


def test_the_own_node_is_read_at_once(
    memory: ClusterMemory, now: list[float], tmp_path: Path
) -> None:
    assert [limit.used_bytes for limit in memory.limits("own")] == [4 * GIB]
    file_trees.machine(tmp_path, available=50 * GIB)
    assert [limit.used_bytes for limit in memory.limits("own")] == [4 * GIB]
    now[0] += READ_EVERY_S
    assert [limit.used_bytes for limit in memory.limits("own")] == [14 * GIB]


def test_another_node_is_asked_once_a_second(
    memory: ClusterMemory, probes: FakeProbes, now: list[float]
) -> None:
    assert not memory.limits("other")
    now[0] += 10
    assert not memory.limits("other")
    # It has not answered, so it is not asked again.
    assert len(probes.asked) == 1
    probes.asked[0].resolve(MemoryLimits(REMOTE, None))
    assert memory.limits("other") == [REMOTE]
    assert len(probes.asked) == 2
    assert memory.limits("other") == [REMOTE]
    probes.asked[1].resolve(MemoryLimits(REMOTE, REMOTE))
    assert memory.limits("other") == [REMOTE, REMOTE]
    assert len(probes.asked) == 2
    now[0] += ASK_EVERY_S
    memory.limits("other")
    assert len(probes.asked) == 3


def test_of_a_node_that_cannot_answer_the_last_answer_counts_for_a_while(
    memory: ClusterMemory, probes: FakeProbes, now: list[float]
) -> None:
    memory.limits("other")
    probes.asked[0].resolve(MemoryLimits(REMOTE, None))
    assert memory.limits("other") == [REMOTE]
    now[0] += ASK_EVERY_S
    memory.limits("other")
    # As when Ray's memory monitor has killed the probe, which Ray starts again.
    probes.asked[1].fail(NoAnswerError("planned"))
    assert memory.limits("other") == [REMOTE]
    now[0] += MAX_AGE_S + 1
    assert memory.limits("other") == []


def test_an_old_answer_does_not_count(
    memory: ClusterMemory, probes: FakeProbes, now: list[float]
) -> None:
    memory.limits("other")
    probes.asked[0].resolve(MemoryLimits(REMOTE, None))
    assert memory.limits("other") == [REMOTE]
    # The next question is not answered: the node hangs, and it was full perhaps.
    now[0] += MAX_AGE_S - 1
    assert memory.limits("other") == [REMOTE]
    now[0] += 2
    assert memory.limits("other") == []
    probes.asked[1].resolve(MemoryLimits(REMOTE, None))
    assert memory.limits("other") == [REMOTE]


def test_what_a_probe_runs_measures_this_machine() -> None:
    assert node_readings.read_limits(MonitorSettings()) is not None
    assert node_readings._reader(MonitorSettings()) is node_readings._reader(MonitorSettings())
