"""The short way of a value to a keeper's actor, between two processes. Without Ray."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pickle import PickleBuffer
from typing import Any

import numpy as np
import pytest
import ray

from ray_tune_memguard.keeping import channel, lookup
from ray_tune_memguard.keeping.channel import Channel, Server

pytestmark = pytest.mark.skipif(
    not hasattr(os, "memfd_create"), reason="Python has anonymous shared memory on Linux only"
)


class Actor:
    """What stands at the end of the way. It copies what it keeps, as the object store does."""

    def __init__(self) -> None:
        self.id = uuid.uuid4().hex[:16]
        self.kept: dict[str, tuple[list[bytes], dict[str, Any]]] = {}
        self.forgotten: list[str] = []
        self.wait: Callable[[], object] = int
        self.server = Server(self.id, 0, self.keep, self.release)

    def keep(self, key: str, parts: list[memoryview], about: dict[str, Any]) -> str:
        if about.get("fails"):
            raise MemoryError("planned")
        self.kept[key] = [bytes(part) for part in parts], about
        self.wait()
        return "node"

    def release(self, keys: list[str]) -> None:
        self.forgotten += keys


@pytest.fixture
def actor() -> Actor:
    return Actor()


def parts_of(*values: object) -> list[PickleBuffer]:
    return [PickleBuffer(value) for value in values]  # type: ignore[arg-type]


def until(is_so: Callable[[], bool]) -> bool:
    for _ in range(500):
        if is_so():
            return True
        time.sleep(0.01)
    return False


@pytest.fixture
def way(actor: Actor) -> Iterator[Channel]:
    one = Channel(actor.id, 0)
    yield one
    one.close()


def test_parts_come_as_they_were(actor: Actor, way: Channel) -> None:
    array = np.arange(12.0).reshape(3, 4)
    for number, parts in enumerate(
        [
            [b"one"],
            [b"", b"after nothing", b""],
            [b"pickle", array, np.asfortranarray(array)],
            [np.full(10 * 2**20, 7, dtype=np.uint8)],  # Larger than what stays allocated.
            [b"small again"],
        ]
    ):
        assert way.keep(str(number), parts_of(*parts), {"pid": number}) == "node"
        found, about = actor.kept[str(number)]
        assert found == [bytes(part.raw()) for part in parts_of(*parts)]
        assert about == {"pid": number}
    assert actor.forgotten == []


def test_shared_memory_of_a_large_value_is_given_back(way: Channel) -> None:
    way.keep("1", parts_of(bytes(2**20)), {})
    assert os.fstat(way._memory).st_size == 2**20
    way.keep("2", parts_of(bytes(10 * 2**20)), {})
    assert os.fstat(way._memory).st_size == 0


def test_threads_take_turns(actor: Actor, way: Channel) -> None:

    def keep(number: int) -> None:
        for turn in range(20):
            assert way.keep(f"{number} {turn}", parts_of(bytes([number]) * 1000), {}) == "node"

    threads = [threading.Thread(target=keep, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(actor.kept) == 160
    for key, (parts, _) in actor.kept.items():
        assert parts == [bytes([int(key.split()[0])]) * 1000]


def test_what_cannot_be_stored_is_said(actor: Actor, way: Channel) -> None:
    with pytest.raises(OSError, match="closed the connection"):
        way.keep("1", parts_of(b"x"), {"fails": True})
    with pytest.raises(OSError, match="Bad file descriptor"):
        way.keep("2", parts_of(b"x"), {})
    assert actor.kept == {}


def test_who_has_ended_before_it_was_told_has_kept_nothing(actor: Actor) -> None:
    is_stored, is_killed = threading.Event(), threading.Event()

    def wait() -> None:
        is_stored.set()
        is_killed.wait(10)

    actor.wait = wait
    pid = os.fork()
    if not pid:
        Channel(actor.id, 0).keep("mine", parts_of(b"x" * 1000), {})
        os._exit(0)
    assert is_stored.wait(10)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    is_killed.set()
    assert until(lambda: actor.forgotten == ["mine"])


def test_no_actor_no_channel() -> None:
    with pytest.raises(OSError, match="refused"):
        Channel("none", 0)


def test_another_users_process_is_not_told_anything(
    actor: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 4711)
    with pytest.raises(ConnectionError, match="another user's process"):
        Channel(actor.id, 0)


def test_an_interrupted_call_leaves_no_answer_for_the_next(
    actor: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by Ctrl+C between question and answer. ``lookup`` goes on with a new channel."""
    monkeypatch.setattr(lookup, "_place", lambda keeper, number: ("worker", keeper, number))
    lookup.keep(actor.id, 0, parts_of(b"first"), {})
    receive = channel._receive_message

    def interrupt(connection: socket.socket) -> Any:
        if threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt
        return receive(connection)

    with monkeypatch.context() as patched:
        patched.setattr(channel, "_receive_message", interrupt)
        with pytest.raises(KeyboardInterrupt):
            lookup.keep(actor.id, 0, parts_of(b"second"), {})
    key, _ = lookup.keep(actor.id, 0, parts_of(b"third"), {})
    assert actor.kept[key][0] == [b"third"]


def test_what_cannot_go_this_way_goes_by_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def ask(*question: Any) -> str:
        asked.append(question)
        return "node"

    monkeypatch.setattr(lookup, "_place", lambda keeper, number: ("worker", keeper, number))
    monkeypatch.setattr(lookup, "ask", ask)
    parts = parts_of(b"x")
    key, node = lookup.keep("none", 0, parts, {"pid": 1})
    assert node == "node"
    assert asked == [("none", 0, "keep", key, parts, {"pid": 1})]


def test_a_large_value_goes_by_a_call(actor: Actor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "_place", lambda keeper, number: ("worker", keeper, number))
    monkeypatch.setattr(lookup, "ask", lambda *question: "by call")
    monkeypatch.setattr(channel, "MAX_BYTES", 1000)
    assert lookup.keep(actor.id, 0, parts_of(bytes(1000)), {})[1] == "node"
    assert lookup.keep(actor.id, 0, parts_of(bytes(1001)), {})[1] == "by call"


def test_channels_are_closed_with_their_keeper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "_place", lambda keeper, number: ("worker", keeper, number))
    monkeypatch.setattr(lookup, "_find", lambda keeper, number: object())
    monkeypatch.setattr(ray, "kill", lambda handle: None)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        one = Actor()
        lookup.keep(one.id, 0, parts_of(b"x"), {})
        assert until(lambda actor=one: len(actor.kept) == 1)  # type: ignore[misc]
        lookup.end(one.id, 0)
        one.server._listener.close()
    assert until(lambda: len(os.listdir("/proc/self/fd")) <= before)


def test_threads_that_begin_together_have_one_channel(
    actor: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookup, "_place", lambda keeper, number: ("worker", keeper, number))
    opened: list[Channel] = []

    class Counted(Channel):
        def __init__(self, keeper: str, number: int) -> None:
            time.sleep(0.01)
            super().__init__(keeper, number)
            opened.append(self)

    monkeypatch.setattr(channel, "Channel", Counted)
    barrier = threading.Barrier(8)

    def keep() -> None:
        barrier.wait()
        lookup.keep(actor.id, 0, parts_of(b"x"), {})

    threads = [threading.Thread(target=keep) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(actor.kept) == 8
    assert len(opened) == 1


def test_an_actor_without_room_for_a_thread_refuses_at_once(
    actor: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def no_room(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", no_room)
    with pytest.raises(OSError, match=r"closed the connection|Connection reset|Broken pipe"):
        Channel(actor.id, 0).keep("1", parts_of(b"x"), {})
    monkeypatch.setattr(threading.Thread, "start", start)
    assert until(lambda: actor.server._listener.fileno() < 0)
    with pytest.raises(OSError, match="refused"):
        Channel(actor.id, 0)


def test_an_answer_that_came_too_late_leaves_no_second_value(
    actor: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(lookup, "_place", lambda keeper, number: ("worker", keeper, number))
    monkeypatch.setattr(lookup, "ask", lambda *question: asked.append(question[2:]))
    monkeypatch.setattr(channel, "_TIMEOUT_S", 0.05)
    actor.wait = lambda: time.sleep(0.2)
    key, _ = lookup.keep(actor.id, 0, parts_of(b"x"), {})
    assert until(lambda: len(actor.kept) == 1)
    [first] = actor.kept
    assert [question[:2] for question in asked] == [("keep", key), ("release", [first])]
