"""Keeps values, and results of tasks, for as long as the process that made the keeper lives."""

from __future__ import annotations

import functools
import os
import sys
import uuid
import warnings
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayTaskError

from ray_tune_memguard.keeping.kept import Kept
from ray_tune_memguard.keeping.lookup import ActorEndedError, ask, end, keep, new_key, start_first
from ray_tune_memguard.keeping.packing import pack

if TYPE_CHECKING:
    import pandas as pd

#: The actor of a node is started anew so often for one value.
_ATTEMPTS = 3
_COLUMNS = {"trial": object, "pid": int, "node": object, "bytes": "Int64"}


class Keeper:
    """Keeps arrays and other values that outlive the worker that made them.

    Ray drops an object when the process that owns it ends: the one that called ``ray.put``, or that
    submitted the task. A trial that ends, or is killed, takes its objects with it. A keeper has an
    actor on each node where something is kept, which owns what it keeps; values stay on their node.
    The actors use no CPU, and start with the first value.

    Make it in the driver, and pass it to trials by closure or ``tune.with_parameters``: pickled, it
    is an id. The values live until they are released, the keeper is closed (at the end of ``with``)
    or the process that made it ends.

    Raises:
        ConnectionError: Ray is not running and cannot be started.

    Examples:
        >>> import numpy as np
        >>> from ray import tune
        >>> from ray_tune_memguard import Keeper
        >>> def train_fn(config, keeper):
        ...     kept = keeper.keep(np.zeros(650_000))
        ...     tune.report({"loss": 1.0, "predictions": kept})
        >>> def best_predictions():
        ...     with Keeper() as keeper:
        ...         trainable = tune.with_parameters(train_fn, keeper=keeper)
        ...         best = tune.Tuner(trainable).fit().get_best_result("loss", "min")
        ...         return best.metrics["predictions"].get().copy()
    """

    def __init__(self) -> None:
        self._id = uuid.uuid4().hex[:16]
        #: The number of the actor of this node, once it is known.
        self._here: int | None = None
        start_first(self._id)

    def keep(self, value: object) -> Kept:
        """Keep a copy of a value. When this returns, the value no longer needs this process.

        Meanwhile there are two copies of it: one in the object store of this node, one on its way.

        Args:
            value: what can be pickled, and neither is nor contains an ``ObjectRef``.

        Raises:
            TypeError: it is not such a value.
            ValueError: it is larger than the object store of this node.
            RuntimeError: the keeper has ended, or its process on this node does again and again.
        """
        if isinstance(value, ray.ObjectRef):
            raise TypeError(
                "keep() takes a value, and this is an ObjectRef. Keep ray.get(reference), or let "
                "keeper.run(task) submit the task whose result it is."
            )
        if isinstance(value, Kept):
            raise TypeError(f"{value!r} is kept already.")
        parts = pack(value)
        size = sum(part.raw().nbytes for part in parts)
        if not ray.is_initialized():  # What follows would start it.
            raise self._ended()
        node = ray.get_runtime_context().get_node_id()
        capacity = _object_store_bytes(node)
        if size > capacity:
            raise ValueError(
                f"The value has {size / 2**20:,.0f} MiB, and the object store of this node "
                f"{capacity / 2**20:,.0f} MiB. Keep it in parts, or start Ray with a larger "
                "object_store_memory."
            )
        if self._here is None:
            self._here = self._ask_first("number_on", node, None)
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return Kept(self._id, *keep(self._id, self._here, parts, _about(size)), size)
            except ActorEndedError as error:
                if attempt == _ATTEMPTS:
                    raise RuntimeError(
                        f"The process of {self!r} on node {node} has ended {attempt} times: {error}"
                    ) from error
                self._here = self._ask_first("number_on", node, self._here)
        raise AssertionError("a last attempt returns or raises")

    def run(self, task: Any, *args: object, **kwargs: object) -> Kept:
        """Submit a task whose result no trial owns. It costs no further copy of the result.

        The arguments go through the keeper, so pass large ones as :class:`Kept`, and call
        :meth:`Kept.get` in the task. If the node with the result is lost, Ray runs the task again,
        as often as its ``max_retries`` allows.

        Args:
            task: a function decorated with ``ray.remote``, or such a function with ``options()``.
            args: its arguments.
            kwargs: its arguments.

        Returns:
            The result, before it is there; :meth:`Kept.get` waits for it.

        Raises:
            TypeError: ``task`` cannot be submitted, or returns more or less than one object.
            RuntimeError: the keeper has ended.
        """
        if not callable(getattr(task, "remote", None)):
            raise TypeError(f"run() takes a function decorated with @ray.remote; got {task!r}")
        try:
            key = new_key(0)
            node = self._ask_first("run", key, (task, args, kwargs), _about(None))
        except RayTaskError as error:
            # Of the task's arguments or options; the task itself runs later.
            if isinstance(error.cause, TypeError):
                raise TypeError(str(error.cause)) from error
            raise
        return Kept(self._id, key, node)

    def held(self) -> pd.DataFrame:
        """What is kept now, for example to see which trial keeps how much.

        Returns:
            A DataFrame with a row for each value, the oldest first: its ``key`` as index; ``kept``
            (:class:`Kept`); ``trial`` (the id, or None outside a function trainable) and ``pid`` of
            the process that kept it; ``node``; ``bytes`` (NA for a task that runs); ``since``.
            ``held().groupby("trial")["bytes"].agg(["count", "sum"])`` is a table by trial. What was
            on a lost node is not in it.

        Raises:
            RuntimeError: the keeper has ended.
        """
        import pandas as pd

        rows = [row for number in self._numbers() for row in self._ask_living(number, "held") or ()]
        rows.sort(key=lambda row: row["since"])
        table = pd.DataFrame(rows, columns=["key", *_COLUMNS, "since"]).astype(_COLUMNS)
        table["since"] = pd.to_datetime(table["since"], unit="s", utc=True)
        known = zip(table["key"], table["node"], (row["bytes"] for row in rows), strict=True)
        table.insert(1, "kept", [Kept(self._id, *one) for one in known])
        return table.set_index("key")

    def release_all(self) -> None:
        """Release every value, of all trials. The keeper can be used again.

        Raises:
            RuntimeError: the keeper has ended.
        """
        for number in self._numbers():
            self._ask_living(number, "release", None)

    def close(self) -> None:
        """Release every value and end the keeper. Closing one that has ended is no error."""
        try:
            self.release_all()
            numbers = self._numbers()
        except RuntimeError:
            return
        for number in reversed(numbers):
            end(self._id, number)

    def __enter__(self) -> Keeper:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _same_keeper, (self._id,)

    def __repr__(self) -> str:
        return f"<Keeper {self._id}>"

    def _numbers(self) -> list[int]:
        numbers: list[int] = self._ask_first("numbers")
        return numbers

    def _ask_first(self, method: str, *args: object) -> Any:
        try:
            return ask(self._id, 0, method, *args)
        except ActorEndedError as error:
            raise self._ended() from error

    def _ended(self) -> RuntimeError:
        return RuntimeError(
            f"{self!r} has ended: it was closed, the process that made it has ended, or its first "
            "actor was killed."
        )

    def _ask_living(self, number: int, method: str, *args: object) -> Any:
        """What the actor says; None if it has ended."""
        try:
            return ask(self._id, number, method, *args)
        except ActorEndedError:
            return None


def _same_keeper(keeper: str) -> Keeper:
    """The keeper with this id, in another process."""
    same = object.__new__(Keeper)
    same._id = keeper
    same._here = None
    return same


def _about(size: int | None) -> dict[str, object]:
    """Who keeps a value, and its size."""
    trial = None
    if "ray.tune" in sys.modules:
        with warnings.catch_warnings():
            # Outside a function trainable there is no id, and Ray warns.
            warnings.simplefilter("ignore")
            trial = sys.modules["ray.tune"].get_context().get_trial_id()
    return {"trial": trial, "pid": os.getpid(), "bytes": size}


@functools.lru_cache(maxsize=64)
def _object_store_bytes(node: str) -> float:
    resources = (one["Resources"] for one in ray.nodes() if one["NodeID"] == node)
    return next((each.get("object_store_memory", 0.0) for each in resources), 0.0) or float("inf")
