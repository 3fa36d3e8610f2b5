"""Pickles a value and finds out whether orjson would encode it as Ray's JSON encoder does.

Reason: orjson takes a tenth of the time of Python's encoder, but silently encodes a few values
differently: null for NaN and infinities, text for enumerations and UUIDs. A spilled trial is
pickled in any case, and the pickler looks up the type of each object that is not one of
Python's basic types. Gain: a trial's JSON takes 0.003 ms of CPU time instead of 0.023 ms.
``tests/unit/test_json_text.py`` compares both encoders on values of every kind.

Which types it looks up also says whether a pickle has a type that was never read back.
"""

from __future__ import annotations

import copyreg
import io
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import cast
from uuid import UUID

from ray.cloudpickle import CloudPickler

# The result of a reducer, and reducers by the type of the object.
Reduced = str | tuple[Callable[..., object], tuple[object, ...]]
Reducers = dict[type, Callable[..., Reduced]]

# orjson encodes these as text, Ray as a pickle.
_ODD = (Enum, UUID)
# orjson encodes infinities and NaN as null. In a pickle they look like this, and little else does.
_NOT_FINITE = re.compile(rb"G[\x7f\xff][\xf0-\xff]")


@dataclass
class Pickled:
    """A pickle.

    Attributes:
        raw: the pickle.
        kinds: the types of the objects in it, but for Python's basic types.
        is_plain: whether ``json_text.encode`` may encode the value as ``plain``.
    """

    raw: bytes
    kinds: set[type]
    is_plain: bool = False


class _ObservedReducers(Reducers):
    """Notes the types that are looked up."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds: set[type] = set()

    def __missing__(self, kind: type) -> Callable[..., Reduced]:
        self.kinds.add(kind)
        reducer = _rays_own.get(kind)
        if reducer is not None and reducer.__module__ != CloudPickler.__module__:
            raise TypeError(f"{kind} has a serializer of the user's, which Ray uses")
        # As `copyreg` does: after a KeyError the pickler uses the object's own `__reduce_ex__`.
        return cast("Callable[..., Reduced]", copyreg.dispatch_table[kind])


class _ObservedCloudReducers:
    """Those of cloudpickle, with the types that are looked up."""

    def __init__(self) -> None:
        self.kinds: set[type] = set()

    def __getitem__(self, kind: type) -> Callable[..., Reduced]:
        self.kinds.add(kind)
        return cast("Callable[..., Reduced]", CloudPickler.dispatch_table[kind])


class _ObservedCloudPickler(CloudPickler):
    def __init__(self, file: io.BytesIO) -> None:
        self.observed = _ObservedCloudReducers()
        super().__init__(file)

    # The pickler reads it once, when it is created.
    @property
    def dispatch_table(self) -> _ObservedCloudReducers:  # type: ignore[override]
        return self.observed


#: cloudpickle's reducers, and those of `ray.util.register_serializer`.
_rays_own: Mapping[type, Callable[..., object]] = CloudPickler.dispatch.maps[0]


def pickle_by(reducers: Reducers, *values: object) -> bytes:
    """Pickle values with ``reducers`` instead of those of ``copyreg``, each behind the other.

    What they share is in the first pickle that has it, so all of them must be read to read the last
    (``unpickling.load_second``).

    Raises:
        Exception: a value cannot be pickled.
    """
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, protocol=5)
    pickler.dispatch_table = reducers
    for value in values:
        pickler.dump(value)
    return buffer.getvalue()


def pickle_plainly(*values: object) -> Pickled:
    """Pickle values as Python does, each behind the other.

    Raises:
        Exception: a value cannot be pickled so, or Ray would not pickle it so.
    """
    reducers = _ObservedReducers()
    raw = pickle_by(reducers, *values)
    is_odd = any(issubclass(kind, _ODD) for kind in reducers.kinds) or _NOT_FINITE.search(raw)
    return Pickled(raw, reducers.kinds, not is_odd)


def pickle_as_ray(*values: object) -> Pickled:
    """Pickle values by Ray's cloudpickle, which knows lambdas and the code of scripts.

    Raises:
        Exception: a value cannot be pickled.
    """
    buffer = io.BytesIO()
    pickler = _ObservedCloudPickler(buffer)
    for value in values:
        pickler.dump(value)
    return Pickled(buffer.getvalue(), pickler.observed.kinds)
