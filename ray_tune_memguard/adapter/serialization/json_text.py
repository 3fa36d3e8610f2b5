"""JSON as Ray writes it, with a pickle in place of what JSON cannot hold.

There are two ways to it, with the same meaning when read: Python's own encoder, which is the one
that Ray uses, and orjson, where ``plain_pickle`` has found that it writes the same.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import orjson
from ray import cloudpickle

#: How Ray marks what JSON cannot hold.
PICKLED = "CLOUDPICKLE_FALLBACK"
_OPTIONS = (
    orjson.OPT_PASSTHROUGH_DATACLASS
    | orjson.OPT_PASSTHROUGH_DATETIME
    | orjson.OPT_PASSTHROUGH_SUBCLASS
)
# Their subclasses may have their own ways.
_WITH_OTHER_WAYS = (str, int, float, list, tuple, dict)


def encode(value: object, plain: bool = False) -> str:
    """The text of a value, in ASCII. ``plain``: what ``pickle_plainly`` says of it.

    Raises:
        Exception: something in it can neither be written nor pickled.
    """
    if plain:
        try:
            raw = orjson.dumps(value, _quick_default, _OPTIONS)
        except Exception as error:
            # Keys that are not text, large numbers, …: Python's own encoder knows them.
            if isinstance(error.__cause__, (KeyboardInterrupt, SystemExit)):
                raise error.__cause__ from None
        else:
            if raw.isascii():
                return raw.decode()
    return _encode(value)


def decode(text: str) -> Any:
    """What Ray makes of the text of an experiment state file, or of a part of it."""
    return json.loads(text, object_hook=_unpickled)


def _unpickled(value: dict[str, object]) -> object:
    if value.get("_type") == PICKLED:
        return cloudpickle.loads(bytes.fromhex(str(value["value"])))
    return value


def pickled(text: str) -> dict[str, str]:
    """What Ray writes where a pickle is; ``text``: its hexadecimal digits."""
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
