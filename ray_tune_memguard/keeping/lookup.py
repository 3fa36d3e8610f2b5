"""How any process of the cluster finds and asks the actors of a keeper."""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Sequence
from pickle import PickleBuffer
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, ActorUnschedulableError, RayActorError

from ray_tune_memguard.by_value import by_value
from ray_tune_memguard.keeping import actor, channel

#: An actor that cannot be reached is asked again for this time: by then Ray knows whether it lives.
UNAVAILABLE_S = 60.0
_ASK_AGAIN_S = 0.5

# By the process as Ray knows it, since a handle of an earlier cluster is of no use; by keeper and
# number. The handle of the first actor, in the process that started it, is what keeps it alive.
_handles: dict[tuple[str, str, int], Any] = {}
#: By the id of the process as well: a forked one must not answer for its parent.
_channels: dict[tuple[int, str, str, int], channel.Channel] = {}
#: Held while a channel is opened or closed, not while it is used.
_opening = threading.Lock()


class ActorEndedError(Exception):
    """The actor has ended, or Ray is not running in this process."""


def start_first(keeper: str) -> None:
    """Start the first actor of a keeper, on this process's node, and Ray if it is not running."""
    if not ray.is_initialized():
        ray.init()
    node = ray.get_runtime_context().get_node_id()
    with by_value(actor, channel):
        _handles[_place(keeper, 0)] = actor.start(keeper, 0, node)


def ask(
    keeper: str, number: int, method: str, *args: object, timeout_s: float | None = None
) -> Any:
    """What a method of an actor returns. A method may be asked twice.

    Raises:
        ActorEndedError: see there.
        ActorUnavailableError: it cannot be reached, and Ray does not know that it has ended.
        ray.exceptions.GetTimeoutError: the time is over.
    """
    began = time.monotonic()
    until = began + (UNAVAILABLE_S if timeout_s is None else min(timeout_s, UNAVAILABLE_S))
    while True:
        handle = _find(keeper, number)
        left = None if timeout_s is None else max(0.0, began + timeout_s - time.monotonic())
        try:
            return ray.get(getattr(handle, method).remote(*args), timeout=left)
        except ActorUnavailableError:
            if time.monotonic() > until:
                raise
            time.sleep(_ASK_AGAIN_S)
        # Unschedulable: its node had gone before it was there.
        except (RayActorError, ActorUnschedulableError) as error:
            _forget(keeper, number)
            raise ActorEndedError(str(error)) from error


def keep(
    keeper: str, number: int, parts: Sequence[PickleBuffer], about: dict[str, Any]
) -> tuple[str, str]:
    """Let the actor of this process's node store the parts of a value; the key and the node.

    Raises:
        ActorEndedError: see there.
        ActorUnavailableError: it cannot be reached, and Ray does not know that it has ended.
    """
    first = None
    if sum(part.raw().nbytes for part in parts) <= channel.MAX_BYTES:
        way = _channel(keeper, number)
        if way is not None:
            first = new_key(number)
            try:
                return first, way.keep(first, parts, about)
            except BaseException as error:
                _close_channel(keeper, number, way)
                if not isinstance(error, OSError):
                    raise
    # Another key: the actor may be about to forget the first.
    key = new_key(number)
    node: str = ask(keeper, number, "keep", key, list(parts), about)
    if first is not None:  # Its answer may have come too late.
        ask(keeper, number, "release", [first])
    return key, node


def _channel(keeper: str, number: int) -> channel.Channel | None:
    """The channel of this process to an actor; None if there is no such way."""
    place = os.getpid(), *_place(keeper, number)
    with _opening:
        if place not in _channels:
            try:
                _channels[place] = channel.Channel(keeper, number)
            except OSError:
                return None
        return _channels[place]


def _close_channel(keeper: str, number: int, way: channel.Channel | None = None) -> None:
    """Close the channel to an actor, or this one, so that the next value opens another."""
    place = os.getpid(), *_place(keeper, number)
    with _opening:
        if way is None or _channels.get(place) is way:
            way = _channels.pop(place, way)
    if way is not None:
        way.close()


def _forget(keeper: str, number: int) -> None:
    """Give back what this process has of an actor that has ended."""
    _handles.pop(_place(keeper, number), None)
    _close_channel(keeper, number)


def new_key(number: int) -> str:
    """A key for a value of this actor. Who keeps the value makes it, as a call may come twice."""
    return f"{number}-{uuid.uuid4().hex[:12]}"


def end(keeper: str, number: int) -> None:
    """End an actor. One that has ended is no error."""
    try:
        ray.kill(_find(keeper, number))
    except ActorEndedError:
        return
    _forget(keeper, number)


def _place(keeper: str, number: int) -> tuple[str, str, int]:
    return ray.get_runtime_context().get_worker_id(), keeper, number


def _find(keeper: str, number: int) -> Any:
    # Ray would start a cluster.
    if not ray.is_initialized():
        raise ActorEndedError("Ray is not running in this process.")
    place = _place(keeper, number)
    if place not in _handles:
        try:
            found = ray.get_actor(actor.name_of(number), actor.namespace_of(keeper))
        # AssertionError: the job of the actor has just ended, and Ray no longer has its class.
        except (ValueError, AssertionError) as error:
            raise ActorEndedError(str(error)) from error
        _handles[place] = found
    return _handles[place]
