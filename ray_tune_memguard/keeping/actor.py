"""The actors of a keeper, one on each node where something is kept.

Ray gives an object up when the process that owns it ends, and the owner of what ``ray.put`` stores
is the process that calls it, of a task's result the one that submits the task. So the actor does
both itself. The first actor, number 0, belongs to the process that made the keeper; it starts the
others, which belong to it. When that process ends, all of them end.

This module is sent to its actors by value (:func:`ray_tune_memguard.keeping.lookup.start_first`),
so it uses nothing else of this package but ``channel``, which is sent with it.
"""

from __future__ import annotations

import contextlib
import pickle
import time
from collections.abc import Iterable
from typing import Any

import ray
from ray.experimental import get_local_object_locations
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_tune_memguard.keeping.channel import Server


def name_of(number: int) -> str:
    return f"keeper-{number}"


def namespace_of(keeper: str) -> str:
    return f"memguard-{keeper}"


def start(keeper: str, number: int, node: str) -> Any:
    """Start an actor on this node. It does not wait for it.

    It is not restarted, because its values are gone. Ray's memory monitor then also kills it after
    what can be restarted.
    """
    return (
        ray.remote(KeeperActor)
        .options(
            num_cpus=0,
            # Of what needs nothing at all Ray lets any node choose the place, also one that has
            # just joined and does not know this node yet. Of CPUs and memory the trials may have
            # reserved all that there is; the name of a node is used to pin something to it.
            resources=_a_bit_of(node),
            max_restarts=0,
            name=name_of(number),
            namespace=namespace_of(keeper),
            # Not soft: on a node that has gone it ends, and nobody waits for it.
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
        )
        .remote(keeper, number, node)
    )


def _a_bit_of(node: str) -> dict[str, float]:
    """A resource that only this node has, and that stands for its address."""
    for one in ray.nodes():
        if one["NodeID"] == node:
            name = f"node:{one['NodeManagerAddress']}"
            return {name: 0.0001} if name in one["Resources"] else {}
    return {}


class KeeperActor:
    """Holds the references to the values of one node.

    Args:
        keeper: the id of the keeper.
        number: its number among the keeper's actors.
        node: the id of the node that it serves.
    """

    def __init__(self, keeper: str, number: int, node: str) -> None:
        self._keeper = keeper
        self._number = number
        self._node: str = ray.get_runtime_context().get_node_id()
        # Read and changed by several threads; each time by one operation.
        self._values: dict[str, tuple[Any, dict[str, Any]]] = {}
        # Of the first actor: which actor serves a node, and the handles that keep them alive.
        self._serving = {node: number}
        self._others: dict[int, Any] = {}
        with contextlib.suppress(OSError, AttributeError):  # Then values come by calls.
            self._server = Server(keeper, number, self.keep, self.release)

    def number_on(self, node: str, instead_of: int | None) -> int:
        """The number of the actor for a node, started if there is none.

        Args:
            node: the id of the node.
            instead_of: the number of one that has ended.
        """
        if self._serving.get(node, instead_of) == instead_of:
            number = len(self._others) + 1
            self._others[number] = start(self._keeper, number, node)
            self._serving[node] = number
        return self._serving[node]

    def numbers(self) -> list[int]:
        """The numbers of all actors, this one first."""
        return [self._number, *self._others]

    def keep(self, key: str, parts: list[Any], about: dict[str, Any]) -> str:
        """Store a packed value; the node where it is. The same call may come twice.

        The value is not unpacked here: this process needs none of the libraries that it needs.
        """
        if key not in self._values:
            reference = ray.put([pickle.PickleBuffer(part) for part in parts])
            self._add(key, reference, is_packed=True, about=about)
        return self._node

    def run(self, key: str, call: tuple[Any, Any, Any], about: dict[str, Any]) -> str:
        """Submit a task and keep its result; this node. The same call may come twice."""
        if key not in self._values:
            task, args, kwargs = call
            reference = task.remote(*args, **kwargs)
            if not isinstance(reference, ray.ObjectRef):
                raise TypeError(f"A task must return one object; this one returns {reference!r}")
            self._add(key, reference, is_packed=False, about=about)
        return self._node

    def find(self, key: str) -> tuple[list[Any], bool] | None:
        """The reference, in a list, and whether its value is packed; None if it was released."""
        found = self._values.get(key)
        if found is None:
            return None
        reference, about = found
        return [reference], about["is_packed"]

    def release(self, keys: Iterable[str] | None) -> None:
        """Release these, or all."""
        for key in list(self._values) if keys is None else keys:
            self._values.pop(key, None)

    def held(self) -> list[dict[str, Any]]:
        """What is known of each value."""
        values = dict(self._values)
        unknown = [one for one, about in values.values() if about["bytes"] is None]
        places = get_local_object_locations(unknown) if unknown else {}
        rows = []
        for key, (reference, about) in values.items():
            if about["bytes"] is None:  # Until the task has ended.
                about["bytes"] = places.get(reference, {}).get("object_size")
            rows.append({"key": key, **about})
        return rows

    def _add(self, key: str, reference: Any, is_packed: bool, about: dict[str, Any]) -> None:
        here = {"node": self._node, "since": time.time(), "is_packed": is_packed}
        self._values[key] = reference, {**about, **here}
