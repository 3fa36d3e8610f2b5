"""JSON as Ray writes it, with a pickle in place of what JSON cannot hold.

There are two ways to it, with the same meaning when read: Python's own encoder, which is the one
that Ray uses, and orjson, which takes a tenth of the time and would write a few things differently
without a word. A trial that is spilled is pickled as well, and its pickle tells whether there are
any such things.
"""

from __future__ import annotations

import copyreg
import io
import json
import math
import pickle
import re
from enum import Enum
from typing import Any
from uuid import UUID

import numpy as np
import orjson
from ray import cloudpickle

#: How Ray marks what JSON cannot hold.
PICKLED = "CLOUDPICKLE_FALLBACK"
# orjson makes text of these, Ray a pickle.
_ODD = (Enum, UUID)
# And null of infinities and NaN. This is how a pickle has them, and hardly anything else.
_NOT_FINITE = re.compile(rb"G[\x7f\xff][\xf0-\xff]")
_OPTIONS = (
    orjson.OPT_PASSTHROUGH_DATACLASS
    | orjson.OPT_PASSTHROUGH_DATETIME
    | orjson.OPT_PASSTHROUGH_SUBCLASS
)
# Their subclasses may have their own ways.
_WITH_OTHER_WAYS = (str, int, float, list, tuple, dict)


class _Kinds(dict[type, Any]):
    """Asked for the type of each object that is pickled and is not simply one of Python's own."""

    def __init__(self) -> None:
        super().__init__()
        self.has_odd = False

    def __missing__(self, kind: type) -> Any:
        self.has_odd = self.has_odd or issubclass(kind, _ODD)
        # As if nobody had asked.
        return copyreg.dispatch_table[kind]


def pickle_by(reducers: dict[type, Any], value: Any) -> bytes:
    """A pickle for which ``reducers`` are asked instead of those of ``copyreg``.

    Raises whatever pickling raises.
    """
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, protocol=5)
    pickler.dispatch_table = reducers
    pickler.dump(value)
    return buffer.getvalue()


def pickle_plainly(value: Any) -> tuple[bytes, bool]:
    """A pickle, and whether all that is in it may be given to :func:`encode` as ``plain``.

    Raises whatever pickling raises.
    """
    kinds = _Kinds()
    raw = pickle_by(kinds, value)
    return raw, not (kinds.has_odd or _NOT_FINITE.search(raw))


def encode(value: Any, plain: bool = False) -> str:
    """The text of a value, in ASCII. ``plain``: what :func:`pickle_plainly` says of it.

    Raises:
        Exception: something in it can neither be written nor pickled.
    """
    if plain:
        try:
            raw = orjson.dumps(value, _quick_default, _OPTIONS)
        except Exception as error:
            # Names that are no text, large numbers, …: Python's own knows them.
            if isinstance(error.__cause__, (KeyboardInterrupt, SystemExit)):
                raise error.__cause__ from None
        else:
            if raw.isascii():
                return raw.decode()
    return _encode(value)


def entry_of(state_json: str, metadata_json: str) -> bytes:
    """Both texts as one element of the experiment state file."""
    if state_json.isascii() and metadata_json.isascii():
        return orjson.dumps((state_json, metadata_json))
    return json.dumps((state_json, metadata_json)).encode()


def decode(text: str) -> Any:
    """What Ray makes of the text of an experiment state file, or of a part of it."""
    return json.loads(text, object_hook=_unpickled)


def _unpickled(value: dict[str, Any]) -> Any:
    if value.get("_type") == PICKLED:
        return cloudpickle.loads(bytes.fromhex(value["value"]))
    return value


def pickled(text: str) -> dict[str, str]:
    """What Ray writes where a pickle is; ``text``: its hexadecimal digits."""
    return {"_type": PICKLED, "value": text}


def hex_pickle(value: Any) -> str:
    """The pickle of a value in hexadecimal digits, as Ray writes it."""
    return cloudpickle.dumps(value).hex()


def _default(value: Any) -> Any:
    return pickled(hex_pickle(value))


def _quick_default(value: Any) -> Any:
    if type(value) is np.float64 and math.isfinite(value):
        return float(value)
    if isinstance(value, _WITH_OTHER_WAYS):
        raise TypeError(type(value))
    return _default(value)


_encode = json.JSONEncoder(default=_default, separators=(",", ":")).encode
