"""The memory of trials on the driver's node, as a gate without a reporter measures it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from ray_tune_memguard.adapter.run.trial_memory import _OwnNode
from ray_tune_memguard.cluster import gcs
from tests.unit.worker_processes import MIB, WorkerProcess

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the processes read /proc")


class Trial:
    def __init__(self, trial_id: str) -> None:
        self.trial_id = trial_id
        self.status = "RUNNING"

    def is_finished(self) -> bool:
        return self.status in ("TERMINATED", "ERROR")


class Sweep:
    """A controller with trials in actors; actors with processes on a node."""

    def __init__(self) -> None:
        self._actor_to_trial: dict[str, Trial] = {}
        self._actor_manager = SimpleNamespace(_live_actors_to_ray_actors_resources={})
        self.asked: list[str] = []
        self.places: dict[str, tuple[str, int]] = {}

    def start(self, trial: Trial, actor: str, pid: int, node: str = "own") -> None:
        handle = SimpleNamespace(_actor_id=SimpleNamespace(hex=lambda: actor))
        self._actor_to_trial[actor] = trial
        self._actor_manager._live_actors_to_ray_actors_resources[actor] = (handle, None)
        self.places[actor] = node, pid

    def stop(self, actor: str, status: str) -> None:
        self._actor_to_trial.pop(actor).status = status
        del self._actor_manager._live_actors_to_ray_actors_resources[actor]

    def actor_info(self, actor: str) -> gcs.ActorInfo:
        self.asked.append(actor)
        node, pid = self.places[actor]
        return gcs.ActorInfo(actor, pid, node, "worker", "ALIVE")


@pytest.fixture
def sweep(monkeypatch: pytest.MonkeyPatch) -> Sweep:
    made = Sweep()
    monkeypatch.setattr(gcs, "actor_info", made.actor_info)
    return made


@pytest.fixture
def worker() -> Iterator[WorkerProcess]:
    with WorkerProcess() as one:
        yield one


def own_node(sweep: Any) -> _OwnNode:
    return _OwnNode(sweep, "own")


def test_a_trial_that_starts_again_is_measured_in_its_new_process(
    sweep: Sweep, worker: WorkerProcess
) -> None:
    trial, own = Trial("t"), own_node(sweep)
    with WorkerProcess() as first:
        first.take(60)
        sweep.start(trial, "a", first.pid)
        assert own.read()["t"].peak_bytes > 60 * MIB
        first.kill()
        assert own.read() == {}
    sweep.stop("a", "PENDING")
    sweep.start(trial, "b", worker.pid)
    use = own.read()["t"]
    assert 0 < use.bytes <= use.peak_bytes < 40 * MIB


def test_the_peak_of_a_trial_counts_once_it_has_finished(
    sweep: Sweep, worker: WorkerProcess
) -> None:
    trial, own = Trial("t"), own_node(sweep)
    for actor, status in (("a", "PAUSED"), ("b", "PENDING"), ("c", "TERMINATED")):
        sweep.start(trial, actor, worker.pid)
        own.read()
        sweep.stop(actor, status)
        assert own.read() == {}
        assert len(own.peaks) == (status == "TERMINATED")


def test_a_reused_actor_is_measured_for_each_trial(sweep: Sweep, worker: WorkerProcess) -> None:
    own, first, second = own_node(sweep), Trial("one"), Trial("two")
    sweep.start(first, "a", worker.pid)
    assert set(own.read()) == {"one"}
    first.status = "TERMINATED"
    sweep.start(second, "a", worker.pid)
    assert set(own.read()) == {"two"}
    assert len(own.peaks) == 1


def test_an_actor_on_another_node_is_asked_about_once(sweep: Sweep) -> None:
    own = own_node(sweep)
    sweep.start(Trial("far"), "a", 1, node="other")
    for _ in range(3):
        assert own.read() == {}
    assert sweep.asked == ["a"]
    sweep.stop("a", "TERMINATED")
    own.read()
    assert not own._elsewhere
