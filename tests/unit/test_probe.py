"""Probes on other nodes, with a stand-in for Ray: how they end, and what follows."""

from __future__ import annotations

import os
import threading
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import (
    ActorDiedError,
    ActorUnschedulableError,
    OutOfMemoryError,
    RayError,
    WorkerCrashedError,
)

from ray_tune_memguard.cluster import probe as module
from ray_tune_memguard.cluster.probe import NoAnswerError, NodeProbes
from ray_tune_memguard.notices import Notices


class Cluster:
    """Its probes answer with the number of the probe, but for errors that are planned."""

    def __init__(self) -> None:
        self.errors: list[Exception] = []
        self.started = 0
        self.nodes = ["here", "there"]
        self.kill: Any = lambda actor: None

    def start(self, node: str) -> SimpleNamespace:
        self.started += 1
        number = self.started

        def remote(function: object, *args: object) -> SimpleNamespace:
            future: Future[int] = Future()
            if self.errors:
                future.set_exception(self.errors.pop(0))
            else:
                future.set_result(number)
            return SimpleNamespace(future=lambda: future)

        actor = SimpleNamespace(run=SimpleNamespace(remote=remote))
        return SimpleNamespace(actor=actor, unanswered=0, ended=None, followed_at=float("inf"))


class Said(Notices):
    def __init__(self) -> None:
        super().__init__()
        self.topics: list[str] = []

    def warn(self, topic: str, message: str) -> None:
        self.topics.append(topic)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    made = Cluster()
    context = SimpleNamespace(get_node_id=lambda: "here")
    ray = SimpleNamespace(
        is_initialized=lambda: True,
        get_runtime_context=lambda: context,
        nodes=lambda: [{"NodeID": node, "Alive": True} for node in made.nodes],
        kill=lambda actor: made.kill(actor),
    )
    monkeypatch.setattr(module, "ray", ray)
    monkeypatch.setattr(module, "_Probe", made.start)
    monkeypatch.setattr(module, "AGAIN_AFTER_S", 0.0)
    return made


def answer_of(probes: NodeProbes) -> object:
    answer = probes.ask("there", os.getpid)
    assert answer.is_ready(10)
    # The probes' thread has done what follows from the answer when it runs this.
    assert probes.ask_here(int).is_ready(10)
    try:
        return answer.get()
    except NoAnswerError as error:
        return type(error.__cause__)


@pytest.mark.parametrize("error", [ActorDiedError(), OutOfMemoryError("low"), WorkerCrashedError()])
def test_another_probe_follows_one_that_died(cluster: Cluster, error: Exception) -> None:
    said = Said()
    probes = NodeProbes(said).take(cluster)
    assert answer_of(probes) == 1
    cluster.errors = [error]
    assert answer_of(probes) is type(error)
    assert answer_of(probes) == 2
    assert said.topics == []
    probes.give_back(cluster)


def cannot_start() -> RayError:
    error = ActorDiedError()
    error._actor_init_failed = True
    return error


@pytest.mark.parametrize("error", [cannot_start(), ActorUnschedulableError("full")])
def test_none_follows_one_that_cannot_start(cluster: Cluster, error: Exception) -> None:
    said = Said()
    probes = NodeProbes(said).take(cluster)
    cluster.errors = [error]
    assert [answer_of(probes) for _ in range(3)] == [type(error), NoAnswerError, NoAnswerError]
    assert cluster.started == 1
    assert said.topics == ["ended"]
    probes.give_back(cluster)


def test_a_lost_node_is_one_line(cluster: Cluster) -> None:
    said = Said()
    probes = NodeProbes(said).take(cluster)
    assert answer_of(probes) == 1
    cluster.nodes = ["here"]
    cluster.errors = [ActorDiedError(), ActorUnschedulableError("no such node")]
    for _ in range(4):
        answer_of(probes)
    assert set(said.topics) == {"lost"}
    assert cluster.started == 2
    probes.give_back(cluster)


@pytest.mark.parametrize("end", ["close", "give_back"])
def test_an_answer_may_come_while_probes_are_killed(cluster: Cluster, end: str) -> None:
    """Ray's ``kill`` waits for the thread in which Ray tells that the actor has died."""
    probes = NodeProbes(Said()).take(cluster)
    assert answer_of(probes) == 1
    is_stuck = []

    def kill(actor: object) -> None:
        tells = threading.Thread(target=probes._run_in_thread, args=(id,), daemon=True)
        tells.start()
        tells.join(5)
        is_stuck.append(tells.is_alive())

    cluster.kill = kill
    if end == "close":
        probes.close()
    else:
        probes.give_back(cluster)
    assert is_stuck == [False]
