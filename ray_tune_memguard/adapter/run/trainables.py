"""Keeps the trainables of a sweep at hand.

For each trial Ray asks the cluster for its trainable five times and unpickles it twice. One that
carries data (a data frame in a function's closure, say) takes the data's size in memory and in
traffic each time, much of which the driver then keeps. Here it is asked for once a sweep.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any, Protocol

from ray.tune import registry

from ray_tune_memguard.adapter import boundary
from ray_tune_memguard.adapter.boundary import Policy, RaysOwn

_CATEGORY = "trainable_class"
_VALUES = "_memguard_values"

# The collector may end one sweep while another one begins.
_lock = threading.RLock()
_sweeps = 0


class _Registry(Protocol):
    """Ray's registry, of which only this is used here."""

    def get(self, category: str, key: str) -> object: ...

    def contains(self, category: str, key: str) -> bool: ...


def _values(known: _Registry) -> dict[str, object] | None:
    values: dict[str, object] | None = known.__dict__.get(_VALUES)
    return values


@boundary.entry("_Registry.get", Policy.CALL_RAY)
def _get(
    rays: RaysOwn, known: _Registry, category: str, key: str, *more: object, **named: object
) -> object:
    values = _values(known)
    if values is None or category != _CATEGORY or more or named:
        return rays(known, category, key, *more, **named)
    if key not in values:
        values[key] = rays(known, category, key)
    return values[key]


@boundary.entry("_Registry.contains", Policy.CALL_RAY)
def _contains(
    rays: RaysOwn, known: _Registry, category: str, key: str, *more: object, **named: object
) -> bool:
    if category == _CATEGORY and key in (_values(known) or ()):
        return True
    return bool(rays(known, category, key, *more, **named))


def _changed(
    rays: RaysOwn, known: _Registry, category: str, key: str, *more: object, **named: object
) -> object:
    try:
        return rays(known, category, key, *more, **named)
    finally:
        (_values(known) or {}).pop(key, None)


_METHODS = {
    "get": _get,
    "contains": _contains,
    "register": boundary.entry("_Registry.register", Policy.CALL_RAY)(_changed),
    "unregister": boundary.entry("_Registry.unregister", Policy.CALL_RAY)(_changed),
}


def _remembering(plain: type) -> type:
    """A subclass of Ray's registry that remembers the trainables that it has been asked for.

    Its methods call those of ``plain``, for another thread may take the subclass away while they
    run.
    """
    methods = {name: entry.in_place_of(getattr(plain, name)) for name, entry in _METHODS.items()}
    return type(plain.__name__, (plain,), {"__module__": plain.__module__, **methods})


def cache_trainables(run: object) -> Callable[[], object]:
    """Ask for each trainable once, until what is returned is called or ``run`` is gone.

    A registry of another kind than the one that we know is left alone.
    """
    global _sweeps
    known: Any = getattr(registry, "_global_registry", None)
    if (
        getattr(registry, "TRAINABLE_CLASS", None) != _CATEGORY
        or not hasattr(known, "__dict__")
        or not all(callable(getattr(type(known), name, None)) for name in _METHODS)
    ):
        return int
    with _lock:
        if _VALUES not in known.__dict__:
            known.__class__ = _remembering(type(known))
        # Whatever an earlier sweep left that was never closed is asked for again.
        known.__dict__[_VALUES] = {}
        _sweeps += 1
    done = weakref.finalize(run, _FORGET, known)
    # At exit the registry is Ray's again anyway.
    done.atexit = False
    return done


@boundary.entry("trainables of a run that is over", Policy.KEEP)
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


_FORGET = _forget.on_its_own()
