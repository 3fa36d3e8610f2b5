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
import threading
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

_SETS_CLASS = "_class_setstate"
#: They find a class by its number, or make one.
_MAKE_CLASS = ("_make_skeleton_class", "_make_skeleton_enum")
#: The classes of this process, by their numbers.
_BY_NUMBER = "_DYNAMIC_CLASS_TRACKER_BY_ID"
#: In a pickle that has a class by value.
_MARK = _SETS_CLASS.encode()
#: The same in the hexadecimal digits of a pickle in JSON.
_HEX_MARK = _MARK.hex()
_CLOUDPICKLES = ("cloudpickle.cloudpickle", "cloudpickle.cloudpickle_fast")


def loads(raw: bytes) -> Any:
    """The value of a pickle, also of one by cloudpickle; of several, that of the first."""
    return _Unpickler(io.BytesIO(raw)).load() if _MARK in raw else pickle.loads(raw)


def load_second(raw: bytes) -> Any:
    """The value of the second pickle, which one pickler has written behind the first."""
    unpickler = (_Unpickler if _MARK in raw else pickle.Unpickler)(io.BytesIO(raw))
    unpickler.load()
    return unpickler.load()


def has_class(text: str) -> bool:
    """Whether a text of Ray's, with pickles in hexadecimal digits, has a class by value."""
    return _HEX_MARK in text


class _Unpickler(pickle.Unpickler):
    """Sets the attributes of those classes only that a pickle has made."""

    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name)
        if module.endswith(_CLOUDPICKLES):
            if name in _MAKE_CLASS:
                return partial(_make, found)
            if name == _SETS_CLASS:
                return partial(_set, found)
        return found


def _make(make: Any, *args: Any) -> type:
    """The class of a pickle. It joins the unset ones unless this process had it."""
    number = args[-2]
    existing = make.__globals__.get(_BY_NUMBER, {}).get(number)
    kind: type = make(*args)
    if kind is not existing:
        with _lock:
            _unset.append(weakref.ref(kind))
    return kind


def _set(set_state: Callable[[type, Any], type], kind: type, state: Any) -> type:
    with _lock:
        # By identity: a metaclass may compare classes in its own way.
        is_unset = any(one() is kind for one in _unset)
    if not is_unset:
        return kind
    # Another thread that reads such a pickle meanwhile sets it as well, as with cloudpickle.
    found = set_state(kind, state)
    with _lock:
        _unset[:] = [one for one in _unset if one() is not None and one() is not kind]
    return found


_lock = threading.RLock()
#: Classes that were made and not set yet. One stays if the reading of its pickle was interrupted.
_unset: list[weakref.ref[type]] = []
