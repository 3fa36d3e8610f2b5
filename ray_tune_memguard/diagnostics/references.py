"""Finds chains of references, draws them with objgraph, and counts objects by type."""

from __future__ import annotations

import gc
import itertools
import sys
import types
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from ray_tune_memguard.diagnostics.deadline import Deadline
from ray_tune_memguard.diagnostics.deep_size import (
    DeepSizer,
    TimeBudgetExceededError,
    entries_of,
    newest_of,
)
from ray_tune_memguard.system import classes

_MAX_STEPS = 6
#: In a container with more entries than this only the newest are followed.
_MAX_ENTRIES = 8
#: The number of attributes of an object that are followed.
_MAX_ATTRIBUTES = 32
#: Seconds for a chain from a site down, and for each reference on the way.
_SECONDS = 0.1
_SECONDS_A_REFERENCE = 0.003
_NUMBERS_AND_TEXT = (str, bytes, bytearray, int, float, bool)
# By identity, because a metaclass may define equality.
_FLAT = frozenset(map(id, _NUMBERS_AND_TEXT))
_LEAVES = frozenset(map(id, (*_NUMBERS_AND_TEXT, type(None), type, types.ModuleType)))
_CHUNK = 50_000
#: Full names by the identity of the type, at most `_MAX_NAMES`.
_names: dict[int, tuple[weakref.ref[type], str]] = {}
_MAX_NAMES = 20_000
#: The number of objects that are visited to find the types that an object keeps alive.
_MAX_WITHIN = 5_000


def type_counts(seconds: float) -> tuple[dict[str, int], bool]:
    """Count the objects that the garbage collector tracks, by the qualified name of the type.

    The counts are those of ``objgraph.typestats``, in a tenth of the time, because names are
    computed for types and not for objects.

    Args:
        seconds: the time limit. When it is reached, the counts are extrapolated.

    Returns:
        The counts, and whether all objects were counted.
    """
    deadline = Deadline(seconds)
    if len(_names) > _MAX_NAMES:
        _names.clear()
    objects = gc.get_objects()
    total, done = len(objects), 0
    # By identity: a type need not be hashable.
    found: Counter[int] = Counter()
    # The collector lists objects by age; a stride of them is a sample of all ages.
    strides = max(1, total // _CHUNK)
    for first in range(strides):
        chunk = objects[first::strides]
        found.update(map(id, map(type, chunk)))
        done += len(chunk)
        _learn_names(found, chunk)
        if deadline.is_over():
            break
    counts: Counter[str] = Counter()
    for key, count in found.items():
        counts[_names[key][1]] += round(count * total / done)
    return counts, done >= total


def _learn_names(kinds: Iterable[int], objects: Sequence[object]) -> None:
    """Cache the names of these types, which are the types of the objects."""
    # A new type may have the address of a freed one.
    unknown = {key for key in kinds if key not in _names or _names[key][0]() is None}
    if not unknown:
        return
    for kind in map(type, objects):
        if id(kind) in unknown:
            _names[id(kind)] = weakref.ref(kind), classes.full_name(kind)
            unknown.remove(id(kind))
            if not unknown:
                return


def typical_of(type_name: str, most: int = 1) -> list[object]:
    """Objects of this type from the middle of all, neither the oldest nor the newest."""
    name = type_name.rpartition(".")[2]
    # Few types have the short name; computing the full name of each object takes long.
    same = [found for found in gc.get_objects() if classes.name(type(found)) == name]
    same = [found for found in same if classes.full_name(type(found)) == type_name]
    middle = max(0, len(same) // 2 - most // 2)
    return same[middle : middle + most]


def types_within(found: object) -> set[str]:
    """The types of what an object keeps alive."""
    seen = {id(found)}
    waiting = gc.get_referents(found)
    types_found: set[str] = set()
    while waiting and len(seen) < _MAX_WITHIN:
        inner = waiting.pop()
        if id(inner) in seen or classes.has_base(
            type(inner), type, types.ModuleType, types.CodeType
        ):
            continue
        seen.add(id(inner))
        types_found.add(classes.full_name(type(inner)))
        if type(inner) is types.FunctionType:
            waiting += inner.__closure__ or ()
        else:
            waiting += gc.get_referents(inner)
    return types_found


def chain_down(name: str, root: object, barriers: set[int]) -> str:
    """The chain of the largest references below ``root``: ``Mine.history → list[812] → dict``."""
    steps = [name]
    found = root
    sizer = DeepSizer(barriers)
    deadline = Deadline(_SECONDS)
    for _ in range(_MAX_STEPS):
        steps.append(label(found))
        following = _heaviest(found, barriers, sizer, deadline)
        if following is None:
            break
        attribute, found = following
        if attribute:
            steps[-1] += f".{attribute}"
        if id(type(found)) in _LEAVES:
            steps.append(label(found))
            break
    return " → ".join(steps)


def label(found: object) -> str:
    """The type of an object, with its length if it is a container."""
    entries = entries_of(found)
    name = classes.name(type(found))
    return name if entries is None else f"{name}[{entries}]"


def _heaviest(
    found: object, barriers: set[int], sizer: DeepSizer, deadline: Deadline
) -> tuple[str, object] | None:
    best: tuple[float, str, object] | None = None
    for attribute, inner in _inside(found):
        left = deadline.left()
        if id(type(inner)) in _FLAT:
            size = float(sys.getsizeof(inner))
        elif id(inner) in barriers or id(type(inner)) in _LEAVES or left < 0:
            continue
        else:
            sizer.forget()
            try:
                size = sizer.measure(inner, min(left, _SECONDS_A_REFERENCE)).total
            except TimeBudgetExceededError:
                size = float("inf")
        if size and (best is None or size > best[0]):
            best = (size, attribute, inner)
    return None if best is None else best[1:]


def _inside(found: object) -> Iterator[tuple[str, object]]:
    entries = entries_of(found)
    if entries is not None:
        newest = newest_of(found, _MAX_ENTRIES if entries <= _MAX_ENTRIES else 1)
        yield from (("", entry) for entry in newest or ())
    elif type(found) is types.FunctionType:
        names = found.__code__.co_freevars
        for name, cell in zip(names, found.__closure__ or (), strict=True):
            try:
                yield name, cell.cell_contents
            except ValueError:  # The cell is empty.
                continue
    else:
        attributes = classes.attributes(found)
        # The newest of them: some code makes an attribute for each trial.
        named = list(attributes.items())[-_MAX_ATTRIBUTES:]
        yield from ((name if type(name) is str else "", value) for name, value in named)
        known = {id(attributes), *map(id, attributes.values())}
        others = (inner for inner in gc.get_referents(found) if id(inner) not in known)
        yield from (("", inner) for inner in itertools.islice(others, _MAX_ATTRIBUTES))


@dataclass(frozen=True)
class Chain:
    """A chain of references from a root to an object.

    Attributes:
        root: the name of the root; None if there is none.
        closed: whether all referrers were searched. If so and there is no root, no Python container
            has the object: it is in a cycle that was not collected, in a variable of a running
            function, or held by native code.
    """

    root: str | None
    words: str
    closed: bool


def chain_up(found: object, name_of_root: Callable[[object], str | None], seconds: float) -> Chain:
    """Find the shortest chain of references from a root to an object.

    The search is breadth first with ``gc.get_referrers``. ``objgraph.find_backref_chain`` is not
    used, because it begins with a collection, which would free the cycles that are searched for and
    run their finalizers.

    Args:
        found: the object.
        name_of_root: returns the name of an object that is a root; None for other objects.
        seconds: the time limit.
    """
    deadline = Deadline(seconds)
    queue = deque([found])
    leads_to: dict[int, object] = {id(found): None}
    own = {id(queue), id(leads_to)}
    while queue:
        if deadline.is_over():
            return Chain(None, label(found), closed=False)
        target = queue.popleft()
        name = name_of_root(target)
        if name is not None:
            return Chain(name, _in_words(name, _follow(target, leads_to)), closed=True)
        referrers = gc.get_referrers(target)
        own.add(id(referrers))
        for source in referrers:
            # Frames refer to objects only briefly; our own frames do.
            if id(source) in own or id(source) in leads_to or type(source) is types.FrameType:
                continue
            leads_to[id(source)] = target
            queue.append(source)
    return Chain(None, label(found), closed=True)


def _follow(first: object, leads_to: dict[int, object]) -> list[object]:
    chain = [first]
    while (following := leads_to[id(chain[-1])]) is not None:
        chain.append(following)
    return chain


def modules_by_namespace() -> dict[int, str]:
    """Names of all modules, by the identity of their dictionaries."""
    modules = list(sys.modules.items())
    return {id(vars(m)): name for name, m in modules if type(m) is types.ModuleType}


def _in_words(root: str, chain: Sequence[object]) -> str:
    steps = [root]
    for outer, inner in itertools.pairwise(chain):
        attribute = _name_in(outer, inner)
        if attribute:
            steps[-1] += f".{attribute}"
        if type(inner) is not dict or inner is not classes.attributes(outer):
            steps.append(label(inner))
    return " → ".join(steps)


def _name_in(outer: object, inner: object) -> str:
    names = outer if type(outer) is dict else classes.attributes(outer)
    found = (name for name, value in list(names.items()) if value is inner and type(name) is str)
    return next(found, "")


def draw_referrers(type_name: str, filename: str) -> None:
    """See :meth:`ray_tune_memguard.ObjectGrowthTracker.show_backrefs`."""
    typical = typical_of(type_name)
    if not typical:
        raise ValueError(f"type_name is {type_name!r}; there is no object of such a type")
    import objgraph

    objgraph.show_backrefs(typical, max_depth=5, too_many=8, filename=filename)
