"""Reads pickles without changing the classes that this process has.

Reason: cloudpickle writes a class of a script or a notebook by value. Where the pickle is read in
the process that has this class, cloudpickle sets all of its attributes anew: methods get a copy of
the globals that they use, and counters on the class their earlier values. A user's stopper that
fills a global list would from then on fill another one. Ray reads its pickles in other processes,
or before a run begins; we read them during a run.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import Any

_SETS_CLASS = "_class_setstate"
#: In a pickle that has a class by value.
_MARK = _SETS_CLASS.encode()
#: The same in the hexadecimal digits of a pickle in JSON.
_HEX_MARK = _MARK.hex()
_CLOUDPICKLES = ("cloudpickle.cloudpickle", "cloudpickle.cloudpickle_fast")
_REGISTERED = "_abc_impl"


def loads(raw: bytes) -> Any:
    """The value of a pickle, also of one by cloudpickle."""
    return _Unpickler(io.BytesIO(raw)).load() if _MARK in raw else pickle.loads(raw)


def has_class(text: str) -> bool:
    """Whether a text of Ray's, with pickles in hexadecimal digits, has a class by value."""
    return _HEX_MARK in text


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name)
        if name == _SETS_CLASS and module.endswith(_CLOUDPICKLES):
            return _only_missing(found)
        return found


def _only_missing(set_class: Callable[[type, Any], type]) -> Callable[[type, Any], type]:
    """cloudpickle's function, which then leaves alone what the class has.

    A class that the pickle has just made lacks all of it.
    """

    def set_missing(kind: type, state: tuple[dict[str, Any], Any]) -> type:
        attributes, slots = state
        own = vars(kind)
        missing = {
            name: value
            for name, value in attributes.items()
            if name not in own or name == _REGISTERED or (name == "__doc__" and own[name] is None)
        }
        return set_class(kind, (missing, slots))

    return set_missing
