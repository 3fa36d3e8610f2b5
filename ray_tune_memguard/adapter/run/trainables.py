"""Keeps the trainables of a sweep at hand.

For each trial Ray asks the cluster for its trainable five times and unpickles it twice. One that
carries data (a data frame in a function's closure, say) takes the data's size in memory and in
traffic each time, much of which the driver then keeps. Here it is asked for once a sweep.
"""

from __future__ import annotations

import functools
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


def _remembering(plain: Any) -> Any:
    """A subclass of Ray's registry that remembers the trainables that it has been asked for.

    Its methods name ``plain``, for another thread may take the subclass away while they run.
    """

    def get(self: Any, category: str, key: str, *more: Any, **named: Any) -> Any:
        values = self.__dict__.get(_VALUES)
        if values is None or category != _CATEGORY or more or named:
            return plain.get(self, category, key, *more, **named)
        if key not in values:
            values[key] = plain.get(self, category, key)
        return values[key]

    def contains(self: Any, category: str, key: str, *more: Any, **named: Any) -> Any:
        if category == _CATEGORY and key in (self.__dict__.get(_VALUES) or ()):
            return True
        return plain.contains(self, category, key, *more, **named)

    def forgetting(change: Any) -> Any:
        @functools.wraps(change)
        def changed(self: Any, category: str, key: str, *more: Any, **named: Any) -> Any:
            try:
                return change(self, category, key, *more, **named)
            finally:
                (self.__dict__.get(_VALUES) or {}).pop(key, None)

        return changed

    methods = {
        "get": get,
        "contains": contains,
        "register": forgetting(plain.register),
        "unregister": forgetting(plain.unregister),
    }
    return type(plain.__name__, (plain,), {"__module__": plain.__module__, **methods})


def cache_trainables(sweep: Any) -> weakref.finalize[..., Any]:
    """Ask for each trainable once, until what is returned is called or ``sweep`` is gone.

    A registry of another kind than the one that we know is left alone.
    """
    global _sweeps
    known: Any = getattr(registry, "_global_registry", None)
    if (
        getattr(registry, "TRAINABLE_CLASS", None) != _CATEGORY
        or not hasattr(known, "__dict__")
        or not all(callable(getattr(type(known), name, None)) for name in _METHODS)
    ):
        return weakref.finalize(sweep, int)
    with _lock:
        if _VALUES not in known.__dict__:
            known.__class__ = _remembering(type(known))
        # Whatever an earlier sweep left that was never closed is asked for again.
        known.__dict__[_VALUES] = {}
        _sweeps += 1
    done = weakref.finalize(sweep, _forget, known)
    # At exit the registry is Ray's again anyway.
    done.atexit = False
    return done


def _forget(known: Any) -> None:
    global _sweeps
    with _lock:
        _sweeps -= 1
        if _sweeps:
            # What only the ended one has used is not to stay; the others ask once more.
            known.__dict__[_VALUES] = {}
        elif _VALUES in known.__dict__:
            known.__class__ = type(known).__mro__[1]
            del known.__dict__[_VALUES]
