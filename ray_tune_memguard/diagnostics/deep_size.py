"""The memory that an object keeps alive, without running any code of its classes.

References are followed as the garbage collector follows them (``gc.get_referents``), and sizes are
asked of types written in C only. No property runs, no proxy is resolved, no ghost is activated;
that is why ``pympler.asizeof`` is not used here: it reads attributes. (The tests compare with it.)

**Shared objects are counted once**, for the first that reaches them in the order in which
retention sites are measured. Modules, classes and code count for none, nor do the objects named as
``barriers``: other sites, which are measured themselves.

**Weak references** go when their object goes, so they count for it, not for the table they are in.

**Big containers are sampled.** Of one with more than :data:`WHOLE` entries, about :data:`SAMPLE`
are measured, and the others are taken to be like the later half of these: what entries share was
counted with the earlier half. Entries are picked by their identity, so that two containers of the
same things are sampled at the same ones; of a very big one every n-th is.
"""

from __future__ import annotations

import gc
import itertools
import sys
import time
import types
import weakref
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ray_tune_memguard.system import classes

WHOLE = 256
SAMPLE = 64
#: From so many entries on they are not even looked at one by one.
_EVERY_NTH_FROM = 8192
_LOOK_AT_CLOCK_EVERY = 256

# The allocators' granularity (16 bytes on 64-bit systems), and malloc's header of a block.
_ALIGN = 16
_MALLOC_HEADER = 8
_SMALL = 512
_GC_HEAD = 16
_POINTER = 8

_TYPE_SUBCLASS = 1 << 31
_MANAGED_DICT = 1 << 4
_OPAQUE = (
    types.ModuleType,
    types.CodeType,
    types.FrameType,
    types.TracebackType,
    types.BuiltinFunctionType,
    types.GetSetDescriptorType,
    types.MemberDescriptorType,
    types.WrapperDescriptorType,
    types.MethodDescriptorType,
    weakref.ReferenceType,
)
_C_METHODS = (types.WrapperDescriptorType, types.MethodDescriptorType)
#: Of an ``OrderedDict`` too the entries are those of its ``dict``: its own iterator hashes keys.
_CONTAINERS = (dict, list, tuple, set, frozenset, deque)


class TimeBudgetExceededError(Exception):
    """The deadline came before everything was measured."""


@dataclass
class Size:
    """Bytes. ``large``: the part in Python blocks of more than 512 bytes, which ``malloc`` gives.

    ``native``: the part in buffers that are native memory to Python (NumPy's data).
    """

    total: float = 0.0
    large: float = 0.0
    native: float = 0.0

    def add(self, other: Size, times: float = 1.0) -> None:
        self.total += times * other.total
        self.large += times * other.large
        self.native += times * other.native


@dataclass(frozen=True)
class _Kind:
    opaque: bool
    #: Whether the type's own ``__sizeof__`` may be asked.
    sized: bool
    #: NumPy's class of arrays, if it is one.
    array: type | None
    #: Which of `_CONTAINERS` it is, or derives from.
    container: Any
    managed_dict: bool
    weakly_referable: bool


# By the identity of the type, which is kept weakly: types come and go, and some cannot be hashed.
_kinds: dict[int, tuple[weakref.ref[type], _Kind]] = {}
_MAX_KINDS = 20_000


class DeepSizer:
    """Measures one object after the other, each object it meets once.

    ``barriers``: identities of objects that are not walked into. ``identity``: a number by which
    entries of big containers are picked, the same for what stands for the same thing; None: the
    object's own.
    """

    def __init__(
        self,
        barriers: Collection[int] = (),
        identity: Callable[[object], int | None] = lambda _: None,
    ) -> None:
        self._barriers = {*barriers, *(id(vars(m)) for m in _modules())}
        self._named_identity = identity
        self._deadline = float("inf")
        self.visited = 0
        self.forget()

    def forget(self) -> None:
        """Forget what has been counted."""
        self._seen: set[int] = {id(self), id(self.__dict__), id(self._barriers)}

    def measure(self, root: object, seconds: float = float("inf")) -> Size:
        """The size of ``root`` with all that it keeps alive and that was not counted before.

        Raises:
            TimeBudgetExceededError: it took longer than ``seconds``. What was met until
                then counts as counted.
        """
        self._deadline = time.perf_counter() + seconds
        self._look_at_clock()
        self._barriers.discard(id(root))
        return self._visit([root])

    def exclude(self, counted: Iterable[object]) -> None:
        """Do not follow references into these: what they keep alive was counted, or estimated."""
        self._barriers.update(map(id, counted))

    def _look_at_clock(self) -> None:
        if time.perf_counter() > self._deadline:
            raise TimeBudgetExceededError

    def _visit(self, waiting: list[object]) -> Size:
        size = Size()
        seen, barriers = self._seen, self._barriers
        while waiting:
            found: Any = waiting.pop()
            key = id(found)
            if key in seen or key in barriers:
                continue
            seen.add(key)
            self.visited += 1
            if not self.visited % _LOOK_AT_CLOCK_EVERY:
                self._look_at_clock()
            kind = _kind(type(found))
            if kind.opaque:
                continue
            self._add_flat(size, found, kind)
            if kind.weakly_referable:
                for reference in weakref.getweakrefs(found):
                    size.total += -(-sys.getsizeof(reference) // _ALIGN) * _ALIGN
            if kind.container is not None:
                n = kind.container.__len__(found)
                if n > WHOLE:
                    self._sample(size, self._pick(found, kind.container, n), n)
                    continue
            if kind.array is not None:
                self._visit_array(size, found, classes.namespace(kind.array), waiting)
            elif type(found) is types.FunctionType:
                waiting += classes.held_by_function(found)
            else:
                waiting += gc.get_referents(found)
                if kind.container is dict:
                    # The collector does not ask a dictionary for keys that are all text.
                    waiting += list(dict.keys(found))
        return size

    def _visit_array(
        self, size: Size, found: object, array: Mapping[str, Any], waiting: list[object]
    ) -> None:
        # Arrays do not tell the collector that they are views, nor which objects are in them.
        waiting.append(array["base"].__get__(found))
        n = array["size"].__get__(found)
        if n and array["dtype"].__get__(found).hasobject:
            items = array["flat"].__get__(found)
            picked = list(itertools.islice(items, 0, n, max(1, n // SAMPLE)))
            self._sample(size, [(item,) for item in picked], n)

    def _add_flat(self, size: Size, found: object, kind: _Kind) -> None:
        flat = sys.getsizeof(found) if kind.sized else object.__sizeof__(found) + _GC_HEAD
        if kind.managed_dict:
            # Values of attributes are beside the object, and in nobody's __sizeof__.
            flat += _POINTER * len(gc.get_referents(found))
        if kind.array is not None:
            size.total += flat
            size.native += flat
            return
        if flat > _SMALL:
            flat = -(-(flat + _MALLOC_HEADER) // _ALIGN) * _ALIGN
            size.large += flat
        else:
            flat = -(-flat // _ALIGN) * _ALIGN
        size.total += flat

    def _sample(self, size: Size, picked: list[tuple[object, ...]], n: int) -> None:
        sizes = [self._visit(list(entry)) for entry in picked]
        early, late = sizes[: len(sizes) // 2], sizes[len(sizes) // 2 :]
        for one in early:
            size.add(one)
        for one in late:
            size.add(one, (n - len(early)) / len(late))

    def _pick(self, container: Any, base: Any, n: int) -> list[tuple[object, ...]]:
        self._look_at_clock()
        is_mapping = base is dict

        def entries() -> Iterable[Any]:
            return dict.items(container) if is_mapping else base.__iter__(container)

        picked: list[Any] = []
        if n < _EVERY_NTH_FROM:
            step = 1 << (n // SAMPLE).bit_length() - 1
            identity = self._identity_of_pair if is_mapping else self._identity
            picked = [entry for entry in list(entries()) if not identity(entry) % step]
        # They are too many, or all the same to `identity`.
        if len(picked) < SAMPLE // 4:
            picked = list(itertools.islice(entries(), 0, n, n // SAMPLE))
        return picked if is_mapping else [(entry,) for entry in picked]

    def _identity(self, entry: object) -> int:
        if type(entry) is str or type(entry) is int:
            return _scatter(hash(entry))
        named = self._named_identity(entry)
        return _scatter(id(entry) >> 4 if named is None else named)

    def _identity_of_pair(self, pair: tuple[object, object]) -> int:
        return self._identity(pair[0])


def _kind(cls: type) -> _Kind:
    known = _kinds.get(id(cls))
    if known is not None and known[0]() is cls:
        return known[1]
    kind = _kind_of(cls)
    if len(_kinds) >= _MAX_KINDS:
        _kinds.clear()
    _kinds[id(cls)] = (weakref.ref(cls), kind)
    return kind


def _kind_of(cls: type) -> _Kind:
    mro = classes.mro(cls)
    flags = classes.flags(cls)
    sizeof = next(
        classes.namespace(base)["__sizeof__"]
        for base in mro
        if "__sizeof__" in classes.namespace(base)
    )
    container = next((own for own in _CONTAINERS if classes.has_base(cls, own)), None)
    return _Kind(
        opaque=bool(flags & _TYPE_SUBCLASS) or classes.has_base(cls, *_OPAQUE),
        sized=type(sizeof) in _C_METHODS,
        # By its name, for NumPy need not be there.
        array=next((base for base in mro if classes.full_name(base) == "numpy.ndarray"), None),
        container=container,
        managed_dict=bool(flags & _MANAGED_DICT) and container is None,
        weakly_referable=classes.is_weakly_referable(cls),
    )


def entries_of(found: object) -> int | None:
    """How many entries a container has; None for anything else."""
    base = _kind(type(found)).container
    return None if base is None else base.__len__(found)


def newest_of(found: Any, most: int) -> list[object] | None:
    """The last entries of a container, those of a mapping without keys; None for anything else."""
    base = _kind(type(found)).container
    if base is None:
        return None
    entries = dict.values(found) if base is dict else base.__iter__(found)
    return list(deque(entries, maxlen=most))


def _scatter(identity: int) -> int:
    """Spread identities that follow each other at equal distances (Knuth's multiplicative hash)."""
    return (identity * 2654435761 & 0xFFFFFFFF) >> 16


def _modules() -> list[types.ModuleType]:
    return [m for m in list(sys.modules.values()) if type(m) is types.ModuleType]
