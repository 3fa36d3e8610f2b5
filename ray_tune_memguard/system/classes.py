"""Reads facts about a class without running its code, which a metaclass may define."""

from __future__ import annotations

import gc
import types
from collections.abc import Mapping
from typing import Any

_MRO = type.__dict__["__mro__"]
_NAMESPACE = type.__dict__["__dict__"]
_NAME = type.__dict__["__name__"]
_FLAGS = type.__dict__["__flags__"]
_HEAP_TYPE = 1 << 9
_WEAKREF_OFFSET = type.__dict__["__weakrefoffset__"]


def mro(cls: type) -> tuple[type, ...]:
    """The class and its bases, in order of resolution."""
    return _MRO.__get__(cls)


def namespace(cls: type) -> Mapping[str, Any]:
    """The attributes that the class itself defines."""
    return _NAMESPACE.__get__(cls)


def name(cls: type) -> str:
    return _NAME.__get__(cls)


def module(cls: type) -> str:
    """The name of the class's module; empty if it has none."""
    found = namespace(cls).get("__module__")
    if type(found) is not str and not flags(cls) & _HEAP_TYPE:
        # A class written in C has the module in its name, and only `type` can read it. Some
        # classes (functions) have a descriptor of that name for their instances instead.
        found = "builtins" if found else type.__dict__["__module__"].__get__(cls)
    return found if type(found) is str else ""


def full_name(cls: type) -> str:
    return f"{module(cls)}.{name(cls)}"


def flags(cls: type) -> int:
    return _FLAGS.__get__(cls)


def is_weakly_referable(cls: type) -> bool:
    return bool(_WEAKREF_OFFSET.__get__(cls))


def has_base(cls: type, *bases: type) -> bool:
    """``issubclass`` without the hooks of metaclasses."""
    return any(any(own is base for base in bases) for own in mro(cls))


def attributes(found: object) -> dict[str, object]:
    """The dictionary of an instance; empty if it has none."""
    for base in mro(type(found)):
        descriptor = namespace(base).get("__dict__")
        if type(descriptor) is types.GetSetDescriptorType:
            return descriptor.__get__(found)
    return {}


def held_by_function(function: types.FunctionType) -> list[Any]:
    """The closure, defaults and attributes of a function, without empty ones.

    The attributes are read by the garbage collector, because ``function.__dict__`` would create
    them.
    """
    namespaces = (id(function.__globals__), id(getattr(function, "__builtins__", None)))
    held = [
        inner
        for inner in gc.get_referents(function)
        if type(inner) is dict and inner and id(inner) not in namespaces
    ]
    closure, defaults = function.__closure__, function.__defaults__
    return [*held, *(inner for inner in (closure, defaults) if inner)]
