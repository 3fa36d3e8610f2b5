"""Measures the memory that an object keeps alive, without running any code of its classes.

The sizer follows references as the garbage collector does (``gc.get_referents``), and calls
``__sizeof__`` only of types written in C. No property runs, no proxy is resolved, no ghost is
activated. ``pympler.asizeof`` is not used, because it reads attributes. (The tests compare with
it.)

**Shared objects are counted once**, for the first retention site that reaches them. Modules,
classes and code do not count, nor do the objects named as ``barriers``, which are sites of their
own.

**Weak references** count for the object that they refer to, because they are freed with it.

**Large containers are sampled.** If a container has more entries than :class:`Detail` allows, some
of them are measured. The other entries are estimated from the later half of the sample, because
memory that entries share was counted with the earlier half. The sample is chosen by identity, so
that two containers of the same objects are sampled at the same objects; of a very large container,
and within an estimated one, every n-th entry is measured.
"""

from __future__ import annotations

import gc
import itertools
import sys
import types
import weakref
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ray_tune_memguard.diagnostics.deadline import Deadline
from ray_tune_memguard.diagnostics.detail import DETAILS, SAMPLE, Detail
from ray_tune_memguard.system import classes

#: From this number of entries on, every n-th is chosen without reading the identity of each.
_EVERY_NTH_FROM = 8192
_CHECK_TIME_EVERY = 256

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
#: An ``OrderedDict`` is read as a ``dict``, because its own iterator hashes keys.
_CONTAINERS = (dict, list, tuple, set, frozenset, deque)


class TimeBudgetExceededError(Exception):
    """The time limit was reached before everything was measured."""


@dataclass
class Size:
    """A size in bytes.

    Attributes:
        total: all bytes.
        large: bytes in Python blocks of more than 512 bytes, which come from ``malloc``.
        native: bytes in buffers outside of Python's allocator (NumPy's data).
        is_estimate: whether few entries of a container stand for all, see :class:`Detail`.
    """

    total: float = 0.0
    large: float = 0.0
    native: float = 0.0
    is_estimate: bool = False

    def add(self, other: Size, times: float = 1.0) -> None:
        self.total += times * other.total
        self.large += times * other.large
        self.native += times * other.native
        self.is_estimate |= other.is_estimate


@dataclass(frozen=True)
class _Kind:
    opaque: bool
    #: Whether the type's own ``__sizeof__`` may be called.
    sized: bool
    #: NumPy's array class if the type derives from it.
    array: type | None
    #: The one of `_CONTAINERS` that the type is or derives from.
    container: Any
    managed_dict: bool
    weakly_referable: bool


# By the identity of the type, because some types cannot be hashed; weakly, because types are freed.
_kinds: dict[int, tuple[weakref.ref[type], _Kind]] = {}
_MAX_KINDS = 20_000


class DeepSizer:
    """Measures several objects; each object that they refer to counts once.

    Args:
        barriers: identities of objects that are not followed.
        identity: returns a number by which entries of large containers are chosen, equal for
            objects that represent the same thing; None for the object's own identity.
    """

    def __init__(
        self,
        barriers: Collection[int] = (),
        identity: Callable[[object], int | None] = lambda _: None,
    ) -> None:
        self._barriers = {*barriers, *(id(vars(m)) for m in _modules())}
        self._named_identity = identity
        self._deadline = Deadline()
        self._detail = DETAILS[0]
        self._depth = 0
        self._added: list[int] = []
        self.visited = 0
        self.forget()

    def forget(self) -> None:
        """Forget which objects were counted."""
        self._seen: set[int] = {id(self), id(self.__dict__), id(self._barriers)}

    def measure(
        self, root: object, seconds: float = float("inf"), detail: Detail = DETAILS[0]
    ) -> Size:
        """The size of ``root`` and of all objects that it keeps alive, unless counted before.

        Args:
            root: the object.
            seconds: the time limit, see :class:`Deadline`.
            detail: how much of large containers is measured.

        Raises:
            TimeBudgetExceededError: it took longer than ``seconds``. What was visited until then
                does not count as counted.
        """
        self._deadline, self._detail, self._depth = Deadline(seconds), detail, 0
        self._check_time()
        self._barriers.discard(id(root))
        try:
            return self._visit([root])
        except BaseException:
            self._seen.difference_update(self._added)
            raise
        finally:
            self._added = []

    def exclude(self, counted: Iterable[object]) -> None:
        """Do not follow these objects, because they were counted or estimated."""
        self._barriers.update(map(id, counted))

    def _check_time(self) -> None:
        if self._deadline.is_over():
            raise TimeBudgetExceededError

    def _visit(self, waiting: list[object]) -> Size:
        size = Size()
        seen, barriers, added = self._seen, self._barriers, self._added
        whole, sample = self._detail.limits(self._depth > 0)
        while waiting:
            found: Any = waiting.pop()
            key = id(found)
            if key in seen or key in barriers:
                continue
            seen.add(key)
            added.append(key)
            self.visited += 1
            if not self.visited % _CHECK_TIME_EVERY:
                self._check_time()
            kind = _kind(type(found))
            if kind.opaque:
                continue
            self._add_flat(size, found, kind)
            if kind.weakly_referable:
                for reference in weakref.getweakrefs(found):
                    size.total += -(-sys.getsizeof(reference) // _ALIGN) * _ALIGN
            if kind.container is not None:
                n = kind.container.__len__(found)
                if n > whole:
                    self._sample(size, self._pick(found, kind.container, n, sample), n)
                    continue
            if kind.array is not None:
                self._visit_array(size, found, classes.namespace(kind.array), waiting)
            elif type(found) is types.FunctionType:
                waiting += classes.held_by_function(found)
            else:
                waiting += gc.get_referents(found)
                if kind.container is dict:
                    # The collector does not return keys of a dictionary that are all text.
                    waiting += list(dict.keys(found))
        return size

    def _visit_array(
        self, size: Size, found: object, array: Mapping[str, Any], waiting: list[object]
    ) -> None:
        # The collector sees neither the base of an array that is a view, nor its objects.
        waiting.append(array["base"].__get__(found))
        n = array["size"].__get__(found)
        if n and array["dtype"].__get__(found).hasobject:
            items = array["flat"].__get__(found)
            picked = list(itertools.islice(items, 0, n, max(1, n // SAMPLE)))
            self._sample(size, [(item,) for item in picked], n)

    def _add_flat(self, size: Size, found: object, kind: _Kind) -> None:
        flat = sys.getsizeof(found) if kind.sized else object.__sizeof__(found) + _GC_HEAD
        if kind.managed_dict:
            # Values of attributes are beside the object, and in no `__sizeof__`.
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
        self._depth += 1
        sizes = [self._visit(list(entry)) for entry in picked]
        self._depth -= 1
        size.is_estimate |= self._detail.is_estimate
        early, late = sizes[: len(sizes) // 2], sizes[len(sizes) // 2 :]
        for one in early:
            size.add(one)
        for one in late:
            size.add(one, (n - len(early)) / len(late))

    def _pick(self, container: Any, base: Any, n: int, sample: int) -> list[tuple[object, ...]]:
        self._check_time()
        is_mapping = base is dict

        def entries() -> Iterable[Any]:
            return dict.items(container) if is_mapping else base.__iter__(container)

        picked: list[Any] = []
        # Reading the identities of many entries takes longer than visiting a few.
        if n < _EVERY_NTH_FROM and not (self._depth and self._detail.is_estimate):
            step = 1 << (n // sample).bit_length() - 1
            identity = self._identity_of_pair if is_mapping else self._identity
            picked = [entry for entry in list(entries()) if not identity(entry) % step]
        # They are too many, or all the same to `identity`.
        if len(picked) < sample // 4:
            picked = list(itertools.islice(entries(), 0, n, n // sample))
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
        # By its name, because NumPy may not be installed.
        array=next((base for base in mro if classes.full_name(base) == "numpy.ndarray"), None),
        container=container,
        managed_dict=bool(flags & _MANAGED_DICT) and container is None,
        weakly_referable=classes.is_weakly_referable(cls),
    )


def entries_of(found: object) -> int | None:
    """The number of entries of a container; None for other objects."""
    base = _kind(type(found)).container
    return None if base is None else base.__len__(found)


def newest_of(found: Any, most: int) -> list[object] | None:
    """The last entries of a container (of a mapping, its values); None for other objects."""
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
