"""Chains of references in words and, by objgraph, as a picture; counts of objects by type."""

from __future__ import annotations

import gc
import itertools
import sys
import time
import types
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import objgraph

from ray_tune_memguard.memory.deep_size import OutOfTime, Walk

_DEEPEST = 6
#: Containers with more entries are shown with their number and their newest entry.
_FEW = 8
#: Of the time for a chain, for each of its links.
_SECONDS_A_LINK = 0.005
_LEAVES = (str, bytes, bytearray, int, float, bool, type(None), type, types.ModuleType)
_CHUNK = 50_000
#: Objects that are looked at for what else an object keeps alive.
_MOST_WITHIN = 5_000


def type_counts(seconds: float) -> tuple[dict[str, int], bool]:
    """How many objects of each type the garbage collector tracks, by qualified name.

    What ``objgraph.typestats`` counts, ten times as fast: names are made for types, not for
    objects. If ``seconds`` do not suffice for all objects, those that were counted stand for the
    rest. Returns the counts, and whether they are of all.
    """
    deadline = time.perf_counter() + seconds
    objects = gc.get_objects()
    total, done = len(objects), 0
    found: Counter[type] = Counter()
    # Objects lie in order of age: in strides, a part of them is like all of them.
    strides = max(1, total // _CHUNK)
    for first in range(strides):
        chunk = objects[first::strides]
        found.update(map(type, chunk))
        done += len(chunk)
        if time.perf_counter() > deadline:
            break
    counts: Counter[str] = Counter()
    for cls, count in found.items():
        counts[_full(cls)] += round(count * total / done)
    return counts, done >= total


def typical_of(type_name: str) -> Any | None:
    """An object of this type, neither the latest nor the first made; None if there is none."""
    name = type_name.rpartition(".")[2]
    # Few types have this name, and asking each object for its full one takes long.
    same = [found for found in gc.get_objects() if type(found).__name__ == name]
    same = [found for found in same if _full(type(found)) == type_name]
    return same[len(same) // 2] if same else None


def _full(cls: type) -> str:
    return f"{cls.__module__}.{cls.__name__}"


def types_within(found: Any) -> set[str]:
    """The types of all that an object keeps alive, its own not among them unless there are more."""
    seen = {id(found)}
    waiting = gc.get_referents(found)
    types_found: set[str] = set()
    while waiting and len(seen) < _MOST_WITHIN:
        inner = waiting.pop()
        if id(inner) in seen or isinstance_of(inner, (type, types.ModuleType, types.CodeType)):
            continue
        seen.add(id(inner))
        types_found.add(_full(type(inner)))
        if type(inner) is types.FunctionType:
            waiting += inner.__closure__ or ()
        else:
            waiting += gc.get_referents(inner)
    return types_found


def chain_down(name: str, root: Any, barriers: set[int]) -> str:
    """What ``root`` holds, along its heaviest references: ``Mine.history → list[812] → dict``."""
    steps = [name]
    found = root
    for _ in range(_DEEPEST):
        steps.append(label(found))
        following = _heaviest(found, barriers)
        if following is None:
            break
        attribute, found = following
        if attribute:
            steps[-1] += f".{attribute}"
        if type(found) in _LEAVES:
            steps.append(label(found))
            break
    return " → ".join(steps)


def label(found: Any) -> str:
    """The type of an object, with its length if it is a container."""
    for base in (dict, list, tuple, set, frozenset):
        if isinstance_of(found, base):
            return f"{type(found).__name__}[{base.__len__(found)}]"
    return type(found).__name__


def isinstance_of(found: Any, cls: Any) -> bool:
    """By its real type: ``isinstance`` asks the object for its ``__class__``."""
    return issubclass(type(found), cls)


def _heaviest(found: Any, barriers: set[int]) -> tuple[str, Any] | None:
    best: tuple[float, str, Any] | None = None
    for attribute, inner in _inside(found):
        if id(inner) in barriers or type(inner) in _LEAVES:
            size = float(sys.getsizeof(inner)) if type(inner) in _LEAVES[:7] else 0.0
        else:
            try:
                size = Walk(barriers).measure(inner, _SECONDS_A_LINK).total
            except OutOfTime:
                size = float("inf")
        if size and (best is None or size > best[0]):
            best = (size, attribute, inner)
    return None if best is None else best[1:]


def _inside(found: Any) -> Iterator[tuple[str, Any]]:
    if isinstance_of(found, dict):
        pairs = list(dict.items(found))
        yield from (("", value) for _, value in (pairs if len(pairs) <= _FEW else pairs[-1:]))
    elif isinstance_of(found, (list)):
        size = list.__len__(found)
        yield from (("", list.__getitem__(found, i)) for i in range(max(0, size - _FEW), size)[-1:])
    elif type(found) in (tuple, set, frozenset):
        yield from (("", inner) for inner in list(found)[:_FEW])
    elif type(found) is types.FunctionType:
        names = found.__code__.co_freevars
        for name, cell in zip(names, found.__closure__ or (), strict=True):
            try:
                yield name, cell.cell_contents
            except ValueError:  # An empty cell.
                continue
    else:
        attributes = instance_dictionary(found)
        yield from list(attributes.items())
        named = {id(attributes), *map(id, attributes.values())}
        yield from (("", inner) for inner in gc.get_referents(found) if id(inner) not in named)


def instance_dictionary(found: Any) -> dict[str, Any]:
    """An object's attributes, read by nobody's code; empty if it has no dictionary."""
    for base in type.__dict__["__mro__"].__get__(type(found)):
        descriptor = vars(base).get("__dict__")
        if isinstance(descriptor, types.GetSetDescriptorType):
            return descriptor.__get__(found)
    return {}


@dataclass(frozen=True)
class Chain:
    """From a root to an object. ``root``: its name; None if there is none.

    ``closed``: everything that refers to it was looked at. With no root, nothing but the garbage
    collector knows of it: a cycle that was not collected, or native code holds it.
    """

    root: str | None
    words: str
    closed: bool


def chain_up(found: Any, name_of_root: Callable[[Any], str | None], seconds: float) -> Chain:
    """The shortest chain of references that leads from a root to an object, in words.

    ``name_of_root``: the name of an object that is a root. Breadth first by ``gc.get_referrers``,
    as ``objgraph.find_backref_chain``, which is not used: it begins with a collection, and that
    would free the very cycles that are looked for, and run their finalizers.
    """
    deadline = time.perf_counter() + seconds
    queue = deque([found])
    leads_to: dict[int, Any] = {id(found): None}
    own = {id(queue), id(leads_to), id(leads_to.values())}
    while queue:
        if time.perf_counter() > deadline:
            return Chain(None, label(found), closed=False)
        target = queue.popleft()
        name = name_of_root(target)
        if name is not None:
            return Chain(name, _in_words(name, _follow(target, leads_to)), closed=True)
        referrers = gc.get_referrers(target)
        own.add(id(referrers))
        for source in referrers:
            # Frames hold what they work on for a moment, ours among them.
            if id(source) in own or id(source) in leads_to or type(source) is types.FrameType:
                continue
            leads_to[id(source)] = target
            queue.append(source)
    return Chain(None, label(found), closed=True)


def _follow(first: Any, leads_to: dict[int, Any]) -> list[Any]:
    chain = [first]
    while (following := leads_to[id(chain[-1])]) is not None:
        chain.append(following)
    return chain


def modules_by_namespace() -> dict[int, str]:
    """Names of all modules, by the identity of their dictionaries."""
    modules = list(sys.modules.items())
    return {id(vars(m)): name for name, m in modules if type(m) is types.ModuleType}


def _in_words(root: str, chain: Sequence[Any]) -> str:
    steps = [root]
    for outer, inner in itertools.pairwise(chain):
        attribute = _name_in(outer, inner)
        if attribute:
            steps[-1] += f".{attribute}"
        if type(inner) is not dict or inner is not instance_dictionary(outer):
            steps.append(label(inner))
    return " → ".join(steps)


def _name_in(outer: Any, inner: Any) -> str:
    names = outer if type(outer) is dict else instance_dictionary(outer)
    found = (name for name, value in names.items() if value is inner and type(name) is str)
    return next(found, "")


def draw_referrers(type_name: str, filename: str) -> None:
    """See :meth:`ray_tune_memguard.ObjectGrowthTracker.show_backrefs`."""
    typical = typical_of(type_name)
    if typical is None:
        raise ValueError(f"type_name is {type_name!r}; there is no object of such a type")
    objgraph.show_backrefs([typical], max_depth=5, too_many=8, filename=filename)
