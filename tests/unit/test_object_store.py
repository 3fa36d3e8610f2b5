"""What the object store holds, in figures and in words, and who holds it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray.core.generated import common_pb2, node_manager_pb2

from ray_tune_memguard.cluster import gcs, object_holders, object_store, raylet
from ray_tune_memguard.cluster.gcs import ActorInfo
from ray_tune_memguard.cluster.object_holders import Holder, Holding, holder_of, holdings
from ray_tune_memguard.cluster.object_store import (
    NodeStore,
    StoreWatch,
    primary_bytes,
    spilled_in,
    spilled_now,
)
from ray_tune_memguard.cluster.probe import Answer, NoAnswerError
from ray_tune_memguard.cluster.raylet import (
    BORROWED,
    CAPTURED,
    LOCAL,
    PENDING,
    PINNED,
    RayletReport,
    Reference,
    StoreStats,
    WorkerObjects,
)

MIB = 2**20
NODE = "4c8fdeb91f5fd78276941ed14429b39777d1b74f6a66012082e7ad31"
RECORDED = Path(__file__).parent / "recorded" / "debug-state-2.60.0.txt"


def node_store(primary: int, spilled: int, used: int | None = None, **rest: int) -> NodeStore:
    """A store of 80 MiB; all amounts in MiB."""
    return NodeStore(
        "n",
        "10.0.0.5",
        80 * MIB,
        primary * MIB,
        spilled * MIB,
        used=None if used is None else used * MIB,
        **{name: amount * MIB for name, amount in rest.items()},
    )


PRIMARY = "are primary copies: they stay until nothing refers to them"
SPILLED = "are on disk now, because they did not fit"
COPIES = "Ray drops those that are not in use when room is needed: they are no leak"


@pytest.mark.parametrize(
    ("store", "said", "unsaid"),
    [
        pytest.param(
            node_store(0, 0, 0),
            ["The store holds next to nothing."],
            [PRIMARY, SPILLED, COPIES],
            id="empty",
        ),
        pytest.param(
            node_store(50, 0, 50, created=50),
            ["50.0 MiB (62 % of the store) " + PRIMARY],
            [SPILLED, COPIES],
            id="put",
        ),
        pytest.param(
            node_store(50, 60, 50, created=110),
            ["50.0 MiB (62 % of the store) " + PRIMARY, "60.0 MiB " + SPILLED],
            [COPIES],
            id="over capacity",
        ),
        pytest.param(
            node_store(0, 110, 70, created=170, restored=60),
            [
                "110 MiB " + SPILLED,
                "70.0 MiB (88 % of the store) are copies of spilled objects, for reading. "
                + COPIES,
            ],
            [PRIMARY],
            id="read once",
        ),
        pytest.param(
            node_store(0, 0, 0, created=170, restored=60),
            ["next to nothing; 170 MiB have come and gone"],
            [PRIMARY, SPILLED, COPIES],
            id="dropped",
        ),
        pytest.param(
            node_store(80, 0, 80, fallback=20),
            ["20.0 MiB did not fit even after spilling"],
            [COPIES],
            id="fallback",
        ),
        pytest.param(
            node_store(0, 0, 40), ["are copies of objects of other nodes"], [PRIMARY], id="fetched"
        ),
        pytest.param(node_store(50, 60), [PRIMARY, SPILLED], [COPIES], id="without grpcio"),
    ],
)
def test_each_situation_in_words(store: NodeStore, said: list[str], unsaid: list[str]) -> None:
    text = " ".join(store.sentences())
    assert all(sentence in text for sentence in said)
    assert not any(sentence in text for sentence in unsaid)


def test_what_is_in_use_without_a_reference_is_no_copy_of_another_nodes() -> None:
    [sentence] = node_store(0, 0, 40).sentences(is_only_node=True)
    assert "40.0 MiB (50 % of the store) are in use although nothing refers to" in sentence
    assert COPIES not in sentence
    [sentence] = node_store(0, 60, 40).sentences(is_only_node=True)[1:]
    assert COPIES in sentence


def test_a_node_that_is_not_idle_takes_one_byte_that_is_no_object() -> None:
    assert primary_bytes(83886080.0, 83886079.0) == 0
    assert primary_bytes(83886080.0, 31456880.0) == 52429200


def test_what_a_raylet_has_written_of_itself() -> None:
    assert spilled_in(RECORDED.read_text(), NODE) == 31458042


def test_the_files_stand_in_for_another_nodes_state(tmp_path: Path) -> None:
    assert spilled_now(NODE, tmp_path / "no session") is None
    (tmp_path / "logs").mkdir()
    assert spilled_now(NODE, tmp_path) == 0
    (tmp_path / "logs" / "debug_state.txt").write_text(RECORDED.read_text())
    assert spilled_now(NODE, tmp_path) == 31458042
    files = tmp_path / "ray_spilled_objects_other"
    files.mkdir()
    (files / "1").write_bytes(bytes(700))
    (files / "2").write_bytes(bytes(300))
    assert spilled_now("other", tmp_path) == 1000


def test_what_was_spilled_since_the_raylet_wrote_is_in_newer_files(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    state = tmp_path / "logs" / "debug_state.txt"
    state.write_text(RECORDED.read_text())
    files = tmp_path / f"ray_spilled_objects_{NODE}"
    files.mkdir()
    (files / "counted").write_bytes(bytes(5000))
    written = state.stat().st_mtime
    os.utime(files / "counted", (written - 5, written - 5))
    assert spilled_now(NODE, tmp_path) == 31458042
    (files / "new").write_bytes(bytes(700))
    os.utime(files / "new", (written + 5, written + 5))
    assert spilled_now(NODE, tmp_path) == 31458042 + 700


class Probes:
    """The way to the nodes, of which the second answers when it is told to."""

    own_node = "own"

    def __init__(self) -> None:
        self.alive = ["own", "other"]
        self.asked: list[Answer[Any]] = []

    def nodes(self) -> list[str]:
        return self.alive

    def ask_here(self, function: Callable[..., Any], *args: object) -> Answer[Any]:
        answer: Answer[Any] = Answer("own")
        try:
            answer.resolve(function(*args))
        except Exception as error:
            answer.fail(error)
        return answer

    def ask(self, node: str, function: Callable[..., Any], *args: object) -> Answer[Any]:
        assert function is spilled_now
        answer: Answer[Any] = Answer(node)
        self.asked.append(answer)
        return answer


def test_a_look_waits_for_no_node(monkeypatch: pytest.MonkeyPatch) -> None:
    resources = {"object_store_memory": 160.0 * MIB}
    monkeypatch.setattr(object_store.ray, "cluster_resources", lambda: resources)
    free = {"object_store_memory": 100.0 * MIB}
    monkeypatch.setattr(object_store.ray, "available_resources", lambda: free)
    monkeypatch.setattr(object_store, "spilled_now", spilled := lambda node: 5 * MIB)
    monkeypatch.setattr(sys.modules[__name__], "spilled_now", spilled)
    probes: Any = Probes()
    watch = StoreWatch(probes)
    assert watch.take() is None

    def look() -> tuple[int, int, int]:
        watch.look()
        reading = watch.take()
        assert reading is not None
        assert reading.held == reading.primary + reading.spilled
        return reading.capacity // MIB, reading.primary // MIB, reading.spilled // MIB

    assert look() == (160, 60, 5)
    assert look() == (160, 60, 5)
    # A node that has not answered is not asked again.
    [answer] = probes.asked
    answer.resolve(20 * MIB)
    assert look() == (160, 60, 25)
    # What it told last counts until it tells more.
    assert look() == (160, 60, 25)
    probes.asked[-1].fail(RuntimeError("it is lost"))
    probes.alive = ["own"]
    assert look() == (160, 60, 5)

    def gone() -> Any:
        raise RuntimeError("no control service")

    monkeypatch.setattr(object_store.ray, "cluster_resources", gone)
    watch.look()
    with pytest.raises(NoAnswerError, match="no control service"):
        watch.take()
    assert not watch.is_looking


def stats_reply(references: int) -> Any:
    """What a raylet answers: a driver with references, and an idle worker."""
    reply = node_manager_pb2.GetNodeStatsReply()
    store = reply.store_stats
    store.object_store_bytes_avail = 80 * MIB
    store.object_store_bytes_used = 70 * MIB
    store.object_store_bytes_fallback = 3
    store.num_local_objects = 7
    store.cumulative_created_bytes = 170 * MIB
    store.spilled_bytes_total = 110 * MIB
    store.restored_bytes_total = 60 * MIB
    driver = reply.core_workers_stats.add(pid=7, worker_type=common_pb2.WorkerType.DRIVER)
    driver.actor_id = b"\xff" * 16
    driver.num_owned_objects = driver.num_object_refs_in_scope = references
    reply.core_workers_stats.add(pid=8, actor_id=b"\x01" * 16)
    return reply


def with_references(reply: Any) -> Any:
    rows = reply.core_workers_stats[0].object_refs
    rows.add(object_id=b"\x01", object_size=100, pinned_in_memory=True, local_ref_count=1)
    rows.add(object_id=b"\x02", object_size=100, submitted_task_ref_count=1, local_ref_count=1)
    rows.add(object_id=b"\x03", object_size=100, local_ref_count=1, call_site="a.py:f:3")
    rows.add(object_id=b"\x04", object_size=100, contained_in_owned=[b"\x03"])
    rows.add(object_id=b"\x05", object_size=-1)
    return reply


def answer_with(monkeypatch: pytest.MonkeyPatch, references: int) -> list[bool]:
    """Let a raylet answer; for each question whether it was for the references as well."""
    from ray._private import internal_api

    asked: list[bool] = []

    def node_stats(address: str, port: int, include_memory_info: bool) -> Any:
        assert (address, port) == ("10.0.0.5", 4711)
        asked.append(include_memory_info)
        reply = stats_reply(references)
        return with_references(reply) if include_memory_info else reply

    monkeypatch.setattr(raylet, "is_available", lambda: True)
    monkeypatch.setattr(internal_api, "node_stats", node_stats)
    return asked


def test_what_a_raylet_says(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answer_with(monkeypatch, references=5)
    found = raylet.report("10.0.0.5", 4711, max_references=5)
    assert found is not None
    assert found.store == StoreStats(80 * MIB, 70 * MIB, 3, 7, 170 * MIB, 110 * MIB, 60 * MIB)
    driver, worker = found.workers
    assert driver.is_driver
    assert driver.actor_id == ""
    kinds = [reference.kind for reference in driver.references]
    assert kinds == [PINNED, PENDING, LOCAL, CAPTURED, BORROWED]
    assert driver.references[2] == Reference("03", 100, LOCAL, "a.py:f:3")
    assert driver.references[4].size == 0
    assert not worker.is_driver
    assert worker.actor_id == "01" * 16
    # More of them than wanted are counted only.
    assert asked == [False, True]
    few = raylet.report("10.0.0.5", 4711, max_references=4)
    assert few is not None
    assert few.workers[0].references == ()
    assert object_holders.unlisted({"n": few}) == 5
    assert raylet.owned_objects("10.0.0.5", 4711) == {7: 5, 8: 0}
    assert asked == [False, True, False, False]


def test_what_is_in_use_without_a_reference_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    answer_with(monkeypatch, references=0)
    found = raylet.report("10.0.0.5", 4711, max_references=5)
    assert found is not None
    assert found.workers[0].references[0].kind == PINNED


def test_a_raylet_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private import internal_api

    def gone(*args: object, **info: object) -> Any:
        raise ConnectionError("gone")

    monkeypatch.setattr(raylet, "is_available", lambda: True)
    monkeypatch.setattr(internal_api, "node_stats", gone)
    assert raylet.report("10.0.0.5", 4711) is None
    monkeypatch.setattr(raylet, "is_available", lambda: False)
    assert raylet.owned_objects("10.0.0.5", 4711) is None


#: As Ray writes it, from the inside to the outside.
SITE = "(put object)  | /site-packages/ray/hook.py:wrapper:134 | one.py:f:3 | two.py:g:9"


def process(pid: int, *references: Reference, **rest: Any) -> WorkerObjects:
    values = {"is_driver": False, "actor_id": "", **rest}
    count = len(references)
    return WorkerObjects(pid=pid, owned=count, in_scope=count, references=references, **values)


def report(*workers: WorkerObjects) -> RayletReport:
    return RayletReport(StoreStats(0, 0, 0, 0, 0, 0, 0), workers)


def test_who_holds_how_much() -> None:
    driver = process(
        1,
        Reference("a", 100, LOCAL, SITE),
        Reference("b", 300, LOCAL, SITE),
        # An actor on another node has it; the driver only owns it.
        Reference("c", 5000, BORROWED, "one.py:4"),
        Reference("d", 1, CAPTURED, ""),
        is_driver=True,
    )
    actor = process(2, Reference("c", 0, LOCAL, ""), Reference("handle", 0, LOCAL, ""))
    found = holdings(
        {"own": report(driver), "other": report(actor)},
        lambda node, worker: Holder("driver", f"{node} {worker.pid}"),
    )
    assert [(one.holder.name, one.kind, one.count, one.size) for one in found] == [
        ("other 2", LOCAL, 1, 5000),
        ("own 1", LOCAL, 2, 400),
        ("own 1", CAPTURED, 1, 1),
    ]
    assert found[1].call_site == "one.py:f:3 < two.py:g:9 (put object)"
    assert str(found[1]) == (
        "own 1 400 B in 2 objects (LOCAL_REFERENCE), created at one.py:f:3 < two.py:g:9 "
        "(put object)"
    )


def test_processes_have_names(monkeypatch: pytest.MonkeyPatch) -> None:
    actor = ActorInfo("ab", 4, "n", "w", "ALIVE", name="cache", class_name="Cache")
    monkeypatch.setattr(gcs, "actor_info", lambda actor_id: actor if actor_id == "ab" else None)
    assert holder_of(process(4), "t00001") == Holder("trial", "trial t00001 (pid 4)")
    assert holder_of(process(4, is_driver=True)) == Holder("driver", "driver (pid 4)")
    assert holder_of(process(4)) == Holder("task worker", "worker of tasks (pid 4)")
    named = holder_of(process(4, actor_id="ab"))
    assert named == Holder("actor", "actor 'cache' of class Cache (pid 4)")
    assert holder_of(process(4, actor_id="cd")) == Holder("actor", "actor (pid 4)")


def holding(call_site: str = "") -> Holding:
    return Holding(Holder("driver", "driver (pid 1)"), "n", LOCAL, call_site, 75, 15_000_000)


def test_the_advice_says_who_and_how_to_learn_more(monkeypatch: pytest.MonkeyPatch) -> None:
    small = Holding(Holder("driver", "driver (pid 9)"), "n", CAPTURED, "", 2, 242)
    assert "pid 9" not in object_holders.advice([holding(), small], 0, is_told=True)
    text = object_holders.advice([holding()] * 4 + [small], 0, is_told=True)
    assert text.startswith(
        "Who holds most: driver (pid 1) 14.3 MiB in 75 objects (LOCAL_REFERENCE); "
    )
    assert "; …. LOCAL_REFERENCE means that a Python variable" in text
    assert "RAY_record_ref_creation_sites=1" in text
    text = object_holders.advice([holding("train.py:3")], 0, is_told=True)
    assert "created at train.py:3. " in text
    assert "RAY_record" not in text
    monkeypatch.setattr(raylet, "is_available", lambda: False)
    assert "ray-tune-memguard[objects]" in object_holders.advice([], 0, is_told=False)
    monkeypatch.setattr(raylet, "is_available", lambda: True)
    assert "or did not in time" in object_holders.advice([], 0, is_told=False)
    assert "12,345 references are too many" in object_holders.advice([], 12_345, is_told=True)
