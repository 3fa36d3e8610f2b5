"""Containers that create one value for each trial on access.

They replace the plain containers that Ray fills with every trial's DataFrame, config and ``Result``
when a run ends. On each access a function creates the value; while other code refers to a value,
the container returns the same object.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, ItemsView, Iterator, KeysView, Sequence, ValuesView
from typing import Generic, SupportsIndex, TypeVar, overload

from ray_tune_memguard.lazy.interfaces import TrialT
from ray_tune_memguard.lazy.trial_list import SpilledTrials

ValueT = TypeVar("ValueT")
DefaultT = TypeVar("DefaultT")


class LazyTrialDict(dict[str, ValueT], Generic[TrialT, ValueT]):
    """A dict from trial id to a value that is created from the trial on access.

    A value that a user stores in it stays (in the base dict) and takes precedence. One that a user
    removes is gone.

    Attributes:
        make: creates a value.
    """

    def __init__(self, trials: SpilledTrials[TrialT], make: Callable[[TrialT], ValueT]) -> None:
        super().__init__()
        self._trials = trials
        self.make = make
        self._made: weakref.WeakValueDictionary[str, ValueT] = weakref.WeakValueDictionary()
        # A value that is stored afterwards is at the end, as in a dict.
        self._removed: set[str] = set()

    def __missing__(self, trial_id: str) -> ValueT:
        value = None if trial_id in self._removed else self._made.get(trial_id)
        if value is not None:
            return value
        trial = self._find(trial_id)
        if trial is None:
            raise KeyError(trial_id)
        value = self.make(trial)
        try:
            self._made[trial_id] = value
        except TypeError:  # A plain dict supports no weak references.
            pass
        return value

    def _find(self, trial_id: object) -> TrialT | None:
        """The trial whose value this dict creates; None if there is none, or it was removed."""
        if not isinstance(trial_id, str) or trial_id in self._removed:
            return None
        return self._trials.find(trial_id)

    def is_changed(self) -> bool:
        """Whether a user has stored or removed values."""
        return super().__len__() > 0 or bool(self._removed)

    def __iter__(self) -> Iterator[str]:
        seen = set()
        for trial in self._trials:
            if trial.trial_id in self._removed:
                continue
            if super().__contains__(trial.trial_id):
                seen.add(trial.trial_id)
            yield trial.trial_id
        yield from (key for key in super().__iter__() if key not in seen)

    def __len__(self) -> int:
        added = sum(1 for key in super().__iter__() if self._find(key) is None)
        removed = sum(1 for key in self._removed if self._trials.find(key) is not None)
        return len(self._trials) - removed + added

    def __bool__(self) -> bool:
        return len(self) > 0

    def __contains__(self, key: object) -> bool:
        return super().__contains__(key) or self._find(key) is not None

    def __delitem__(self, key: str) -> None:
        is_made = self._find(key) is not None
        if is_made:
            self._removed.add(key)
        if super().__contains__(key) or not is_made:
            super().__delitem__(key)

    def clear(self) -> None:
        super().clear()
        self._removed.update(trial.trial_id for trial in self._trials)

    def pop(self, key: str, *default: DefaultT) -> ValueT | DefaultT:
        try:
            value = self[key]
        except KeyError:
            if not default:
                raise
            return default[0]
        del self[key]
        return value

    def popitem(self) -> tuple[str, ValueT]:
        for key in reversed(self):
            return key, self.pop(key)
        raise KeyError("popitem(): dictionary is empty")

    def get(  # type: ignore[override]
        self, key: str, default: DefaultT | None = None
    ) -> ValueT | DefaultT | None:
        try:
            return self[key]
        except KeyError:
            return default

    def keys(self) -> KeysView[str]:  # type: ignore[override]
        return KeysView(self)

    def values(self) -> ValuesView[ValueT]:  # type: ignore[override]
        return ValuesView(self)

    def items(self) -> ItemsView[str, ValueT]:  # type: ignore[override]
        return ItemsView(self)

    def copy(self) -> dict[str, ValueT]:
        return dict(self.items())

    def setdefault(self, key: str, default: ValueT) -> ValueT:
        if key not in self:
            self[key] = default
        return self[key]

    def __or__(self, other: dict[str, ValueT]) -> dict[str, ValueT]:  # type: ignore[override]
        return self.copy() | other

    def __ror__(self, other: dict[str, ValueT]) -> dict[str, ValueT]:  # type: ignore[override]
        return other | self.copy()

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, dict) and self.copy() == other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None

    def __reversed__(self) -> Iterator[str]:
        return reversed(list(self))

    def __repr__(self) -> str:
        return repr(self.copy())

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[type, object]:
        return dict, (self.copy(),)


class LazyTrialSequence(Sequence[ValueT], Generic[TrialT, ValueT]):
    """A sequence with one value for each trial, as of the creation of the sequence.

    The values of trials whose state is not on disk at that time are created at once and stay.
    """

    def __init__(self, trials: SpilledTrials[TrialT], make: Callable[[TrialT], ValueT]) -> None:
        self._make = make
        self._trials = trials.freeze()
        self._kept = {position: make(trial) for position, trial in self._trials.in_memory.items()}
        self._trials.in_memory.clear()
        self._made: weakref.WeakValueDictionary[int, ValueT] = weakref.WeakValueDictionary()

    def __len__(self) -> int:
        return len(self._trials)

    @overload
    def __getitem__(self, index: SupportsIndex) -> ValueT: ...
    @overload
    def __getitem__(self, index: slice) -> list[ValueT]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> ValueT | list[ValueT]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        position = self._trials.position_at(index)
        if position in self._kept:
            return self._kept[position]
        value = self._made.get(position)
        if value is None:
            value = self._made[position] = self._make(self._trials.read(position))
        return value

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[type, object]:
        return list, (list(self),)
