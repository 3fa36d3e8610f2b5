"""Caches the trainables of a run.

For each trial Ray fetches the trainable from the cluster five times and unpickles it twice. If the
trainable carries data (for example a DataFrame in a function's closure), each fetch takes the
data's size in memory and in traffic, and the driver keeps much of it. Here each is fetched once a
run.
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

# The garbage collector may end one run while another one begins.
_lock = threading.RLock()
_runs = 0


class _Registry(Protocol):
    """The methods of Ray's registry that are used here."""

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


def _caching_subclass(plain: type) -> type:
    """A subclass of Ray's registry that keeps each trainable after it was first fetched.

    Its methods call those of ``plain``, because another thread may restore the registry's class
    while they run.
    """
    methods = {name: entry.in_place_of(getattr(plain, name)) for name, entry in _METHODS.items()}
    return type(plain.__name__, (plain,), {"__module__": plain.__module__, **methods})


def cache_trainables(run: object) -> Callable[[], object]:
    """Fetch each trainable only once while a run lasts. A registry of unknown kind stays as it is.

    Args:
        run: an object that exists as long as the run.

    Returns:
        A function that ends the caching; it is also called when ``run`` is garbage collected.
    """
    global _runs
    known: Any = getattr(registry, "_global_registry", None)
    if (
        getattr(registry, "TRAINABLE_CLASS", None) != _CATEGORY
        or not hasattr(known, "__dict__")
        or not all(callable(getattr(type(known), name, None)) for name in _METHODS)
    ):
        return int
    with _lock:
        if _VALUES not in known.__dict__:
            known.__class__ = _caching_subclass(type(known))
        # Trainables of an earlier run that was never closed are fetched again.
        known.__dict__[_VALUES] = {}
        _runs += 1
    done = weakref.finalize(run, _FORGET, known)
    # At exit nothing uses the registry any more.
    done.atexit = False
    return done


@boundary.entry("trainables of a run that is over", Policy.KEEP)
def _forget(known: Any) -> None:
    global _runs
    with _lock:
        _runs -= 1
        if _runs:
            # Free the trainables of the ended run; the other runs fetch theirs once more.
            known.__dict__[_VALUES] = {}
        elif _VALUES in known.__dict__:
            known.__class__ = type(known).__mro__[1]
            del known.__dict__[_VALUES]


_FORGET = _forget.on_its_own()
