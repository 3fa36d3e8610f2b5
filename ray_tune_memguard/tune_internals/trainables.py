"""Keeps the trainables of a sweep at hand.

For each trial Ray asks the cluster for its trainable five times and unpickles it twice. One
that carries data (a data frame in a function's closure, say) takes the data's size in memory and in
traffic each time, much of which the driver then keeps. Here it is asked for once a sweep.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any

from ray.tune import registry

_CATEGORY = "trainable_class"
_METHODS = ("get", "contains", "register", "unregister")
_VALUES = "_memguard_values"

# The collector may end one sweep while another one begins.
_lock = threading.RLock()
_sweeps = 0


class _Remembering:
    """Ray's registry, which remembers the trainables that it has been asked for."""

    def get(self, category: str, key: str) -> Any:
        values = self.__dict__[_VALUES]
        if category != _CATEGORY:
            return super().get(category, key)  # type: ignore[misc]
        if key not in values:
            values[key] = super().get(category, key)  # type: ignore[misc]
        return values[key]

    def contains(self, category: str, key: str) -> Any:
        if category == _CATEGORY and key in self.__dict__[_VALUES]:
            return True
        return super().contains(category, key)  # type: ignore[misc]

    def register(self, category: str, key: str, value: Any) -> None:
        try:
            super().register(category, key, value)  # type: ignore[misc]
        finally:
            self.__dict__[_VALUES].pop(key, None)

    def unregister(self, category: str, key: str) -> None:
        try:
            super().unregister(category, key)  # type: ignore[misc]
        finally:
            self.__dict__[_VALUES].pop(key, None)


def keep_at_hand(sweep: Any) -> weakref.finalize[..., Any]:
    """Ask for each trainable once, until what is returned is called or ``sweep`` is gone.

    A registry of another kind than the one that we know is left alone.
    """
    global _sweeps
    known: Any = getattr(registry, "_global_registry", None)
    if getattr(registry, "TRAINABLE_CLASS", None) != _CATEGORY or not all(
        callable(getattr(type(known), name, None)) for name in _METHODS
    ):
        return weakref.finalize(sweep, int)
    with _lock:
        _sweeps += 1
        if not isinstance(known, _Remembering):
            plain = type(known)
            known.__dict__[_VALUES] = {}
            known.__class__ = type(
                plain.__name__, (_Remembering, plain), {"__module__": plain.__module__}
            )
    done = weakref.finalize(sweep, _forget, known)
    # At exit the registry is Ray's again anyway.
    done.atexit = False
    return done


def _forget(known: Any) -> None:
    global _sweeps
    with _lock:
        _sweeps -= 1
        if not _sweeps and isinstance(known, _Remembering):
            known.__class__ = type(known).__mro__[2]
            del known.__dict__[_VALUES]
