"""What a user has of a kept value."""

from __future__ import annotations

import time
from typing import Any

import ray
from ray.exceptions import ObjectLostError, RayTaskError

from ray_tune_memguard.keeping.lookup import ActorEndedError, ask
from ray_tune_memguard.keeping.packing import unpack

#: A keeper is asked for so long at least, also by who does not want to wait for a value.
_MIN_TO_FIND_S = 1.0


class KeptLostError(Exception):
    """A kept value cannot be read any more. The message says why.

    Args:
        message: what happened, and to which value.

    Examples:
        >>> from ray_tune_memguard import KeptLostError, explain
        >>> explain(KeptLostError("It was released.")).startswith("It was released. Compute it")
        True
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)


class Kept:
    """A value that a :class:`Keeper` keeps. :meth:`Keeper.keep` and :meth:`Keeper.run` return it.

    It is a few hundred bytes, has no reference to the value, and can be pickled: in a result, in a
    file, or as the argument of a task. Any process of the same cluster can read the value, as long
    as the keeper lives.

    Args:
        keeper: the id of the keeper.
        key: the key of the value in the keeper.
        node: the id of the node whose actor keeps it.
        bytes: its size, or None for the result of a task.

    Examples:
        >>> import pickle
        >>> from ray_tune_memguard import Kept
        >>> kept = Kept("3f2a", "0-8c1d02a94e7b", "c81b", 5242880)
        >>> kept
        Kept('3f2a', '0-8c1d02a94e7b', 5.0 MiB)
        >>> pickle.loads(pickle.dumps(kept)) == kept
        True
    """

    __slots__ = ("bytes", "keeper", "key", "node")

    def __init__(self, keeper: str, key: str, node: str, bytes: int | None = None) -> None:
        self.keeper = keeper
        self.key = key
        self.node = node
        self.bytes = bytes

    def get(self, timeout_s: float | None = None) -> Any:
        """The value. Arrays are read-only and share memory with the object store, as in Ray.

        Args:
            timeout_s: seconds to wait at most for the value; None waits. 0 gives the value if it is
                there. The keeper may take a second to say where it is.

        Raises:
            KeptLostError: the value was released, or its keeper or its node has ended.
            ray.exceptions.GetTimeoutError: the time is over.
            ray.exceptions.RayTaskError: the task of :meth:`Keeper.run` has failed.
        """
        until = None if timeout_s is None else time.monotonic() + timeout_s
        to_find = None if timeout_s is None else max(timeout_s, _MIN_TO_FIND_S)
        try:
            found = ask(self.keeper, self._number, "find", self.key, timeout_s=to_find)
        except ActorEndedError as error:
            raise KeptLostError(f"{self!r} cannot be read, because {self._end()}.") from error
        if found is None:
            raise KeptLostError(f"{self!r} cannot be read, because it was released.")
        [reference], is_packed = found
        try:
            left = None if until is None else max(0.0, until - time.monotonic())
            value = ray.get(reference, timeout=left)
        except RayTaskError:
            raise
        except ObjectLostError as error:
            # It was released, or its node was lost, a moment ago.
            reason = f"Ray has lost its object ({type(error).__name__})"
            raise KeptLostError(f"{self!r} cannot be read, because {reason}.") from error
        return unpack(value) if is_packed else value

    def release(self) -> None:
        """Let the object store free the value. Releasing what is not kept any more is no error.

        Memory that is in use stays: of an array that :meth:`get` returned and that still exists.
        """
        try:
            ask(self.keeper, self._number, "release", [self.key])
        except ActorEndedError:
            pass  # And with the actor its values.

    @property
    def _number(self) -> int:
        """The number of the actor that has it."""
        return int(self.key.partition("-")[0])

    def _end(self) -> str:
        """Why the actor cannot be found."""
        if not ray.is_initialized():
            return "Ray is not running in this process"
        if not any(node["NodeID"] == self.node and node["Alive"] for node in ray.nodes()):
            return f"node {self.node}, where it was kept, is not in the cluster (any more)"
        try:
            ask(self.keeper, 0, "numbers")
        except ActorEndedError:
            return (
                "its Keeper was closed, the process that made the Keeper has ended, or the "
                "Keeper's first actor was killed"
            )
        return f"the process that kept it on node {self.node} has ended, and its values with it"

    def __repr__(self) -> str:
        size = "" if self.bytes is None else f", {self.bytes / 2**20:.1f} MiB"
        return f"Kept({self.keeper!r}, {self.key!r}{size})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Kept):
            return NotImplemented
        return (self.keeper, self.key) == (other.keeper, other.key)

    def __hash__(self) -> int:
        return hash((self.keeper, self.key))

    def __reduce__(self) -> tuple[Any, ...]:
        return Kept, (self.keeper, self.key, self.node, self.bytes)
