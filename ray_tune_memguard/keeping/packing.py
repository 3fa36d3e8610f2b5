"""A value as a list of buffers, and back, so that the keeper need not unpickle it.

The first buffer is the pickle; the others are what pickle protocol 5 leaves out of it, such as the
data of arrays. None of them is copied here. What is unpacked of Ray's object store refers to it,
without a copy, and is read-only as what ``ray.get`` returns.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import ray
from ray.cloudpickle import CloudPickler


class _Pickler(CloudPickler):
    """Ray's own, with the serializers that were registered with Ray, but without references."""

    def reducer_override(self, obj: object) -> Any:
        if isinstance(obj, ray.ObjectRef):
            raise TypeError(
                "it contains an ObjectRef, and the object behind it ends with its owner; "
                "put ray.get(reference) in its place"
            )
        return super().reducer_override(obj)


def pack(value: object) -> list[pickle.PickleBuffer]:
    """A value as buffers.

    Raises:
        TypeError: it cannot be pickled, or it contains an ``ObjectRef``.
    """
    stream = io.BytesIO()
    buffers: list[pickle.PickleBuffer] = []
    try:
        _Pickler(stream, protocol=5, buffer_callback=buffers.append).dump(value)
    except Exception as error:  # Of the value's own methods as well.
        name = type(value).__name__
        raise TypeError(f"This value of type {name} cannot be kept: {error}") from error
    # `getbuffer` would crash Python in a garbage collection, if an error with its traceback is in a
    # cycle; `getvalue` does not copy either.
    return [pickle.PickleBuffer(stream.getvalue()), *buffers]


def unpack(parts: list[Any]) -> Any:
    """The value of its buffers, as they come from Ray's object store."""
    return pickle.loads(memoryview(parts[0]), buffers=parts[1:])
