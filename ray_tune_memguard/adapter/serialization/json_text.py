"""Encodes values as Ray does: as JSON, with a pickle for each value that JSON cannot hold.

Two encoders write texts of the same meaning: Python's own, which Ray uses, and orjson, for values
that ``plain_pickle`` has checked.
"""

from __future__ import annotations

import itertools
import json
import math
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import orjson
from ray import cloudpickle

from ray_tune_memguard.adapter.serialization import unpickling

#: How Ray marks what JSON cannot hold.
PICKLED = "CLOUDPICKLE_FALLBACK"
_OPTIONS = (
    orjson.OPT_PASSTHROUGH_DATACLASS
    | orjson.OPT_PASSTHROUGH_DATETIME
    | orjson.OPT_PASSTHROUGH_SUBCLASS
)
# Subclasses of these may encode differently.
_MAX_INTEGER = 2.0**63
_WITH_OTHER_WAYS = (str, int, float, list, tuple, dict)


def encode(value: object, plain: bool = False) -> str:
    """Encode a value as ASCII text.

    Args:
        value: the value.
        plain: whether orjson may encode it; ``plain_pickle.pickle_plainly`` returns this.

    Raises:
        Exception: a part of the value can be neither encoded nor pickled.
    """
    if plain:
        try:
            raw = orjson.dumps(value, _quick_default, _OPTIONS)
        except Exception as error:
            # Python's own encoder also writes keys that are not text, large numbers, and so on.
            if isinstance(error.__cause__, (KeyboardInterrupt, SystemExit)):
                raise error.__cause__ from None
        else:
            if raw.isascii():
                return raw.decode()
    return _encode(value)


def decode(text: str) -> Any:
    """Decode the text of an experiment state file, or a part of it, as Ray does."""
    return json.loads(text, object_hook=_unpickled)


def parse(text: str | bytes) -> Any:
    """The value of a JSON text, as Python's own decoder reads it, in a fraction of its time.

    Raises:
        ValueError: the text is not JSON.
    """
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:  # NaN and infinities, which are not JSON.
        pass
    else:
        # orjson reads an integer of more than 64 bits as a float.
        if not _has_large_float(value):
            return value
    return json.loads(text.decode() if isinstance(text, bytes) else text)


def _has_large_float(value: Any) -> bool:
    kind = type(value)
    if kind is float:
        return not -_MAX_INTEGER < value < _MAX_INTEGER
    if kind is dict:
        return any(map(_has_large_float, value.values()))
    return kind is list and any(map(_has_large_float, value))


def _unpickled(value: dict[str, object]) -> object:
    if value.get("_type") == PICKLED:
        return unpickling.loads(bytes.fromhex(str(value["value"])))
    return value


@contextmanager
def for_ray(text: str) -> Iterator[str]:
    """A text that Ray decodes to the same, without changing the classes that this process has.

    Its pickles were read here, see ``unpickling``, and have pickles of their number instead. It can
    be decoded once.
    """
    if not unpickling.has_class(text):
        yield text
        return
    numbers: list[int] = []

    def read(value: dict[str, object]) -> object:
        if value.get("_type") != PICKLED:
            return value
        numbers.append(next(_NUMBERS))
        _read[numbers[-1]] = _unpickled(value)
        return pickled(pickle.dumps(_Read(numbers[-1])).hex())

    try:
        yield json.dumps(json.loads(text, object_hook=read))
    finally:
        for number in numbers:
            _read.pop(number, None)


# What was read and not taken yet; any thread may add to it.
_read: dict[int, object] = {}
_NUMBERS = itertools.count()


class _Read:
    """Is unpickled as the value with this number."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __reduce__(self) -> tuple[Any, ...]:
        return _take, (self._number,)


def _take(number: int) -> object:
    return _read.pop(number)


def pickled(text: str) -> dict[str, str]:
    """Ray's JSON object for a pickle; ``text`` is the pickle in hexadecimal digits."""
    return {"_type": PICKLED, "value": text}


def hex_pickle(value: object) -> str:
    """The pickle of a value in hexadecimal digits, as Ray writes it."""
    return cloudpickle.dumps(value).hex()


def _default(value: object) -> dict[str, str]:
    return pickled(hex_pickle(value))


def _quick_default(value: object) -> object:
    if type(value) is np.float64 and math.isfinite(value):
        return float(value)
    if isinstance(value, _WITH_OTHER_WAYS):
        raise TypeError(type(value))
    return _default(value)


_encode = json.JSONEncoder(default=_default, separators=(",", ":")).encode
