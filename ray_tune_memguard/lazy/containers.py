"""Results that are read when asked for: dictionaries and sequences that make their values late.

They take the places of the plain containers that Ray fills with every trial's DataFrame, config and
``Result`` when a sweep ends. A value is made by the function handed in, each time it is asked for;
as long as somebody holds it, the same object is returned.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, ItemsView, Iterator, KeysView, Sequence, ValuesView
from typing import Any, SupportsIndex, overload

from ray_tune_memguard.lazy.trial_list import SpilledTrials


class LazyTrialDict(dict[str, Any]):
    """A dict from trial id to a value that is made from the trial on access.

    What a user stores in it stays in it (in the base dict) and wins over the made value.
    """

    def __init__(self, trials: SpilledTrials, make: Callable[[Any], Any]) -> None:
        super().__init__()
        self._trials = trials
        self._make = make
        self._made: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()

    def __missing__(self, trial_id: str) -> Any:
        value = self._made.get(trial_id)
        if value is not None:
            return value
        trial = self._trials.find(trial_id)
        if trial is None:
            raise KeyError(trial_id)
        value = self._make(trial)
        try:
            self._made[trial_id] = value
        except TypeError:  # A plain dict cannot be referred to weakly.
            pass
        return value

    def __iter__(self) -> Iterator[str]:
        seen = set()
        for trial in self._trials:
            if super().__contains__(trial.trial_id):
                seen.add(trial.trial_id)
            yield trial.trial_id
        yield from (key for key in super().__iter__() if key not in seen)

    def __len__(self) -> int:
        added = sum(1 for key in super().__iter__() if self._trials.find(key) is None)
        return len(self._trials) + added

    def __bool__(self) -> bool:
        return len(self) > 0

    def __contains__(self, key: object) -> bool:
        return super().__contains__(key) or (
            isinstance(key, str) and self._trials.find(key) is not None
        )

    def get(self, key: str, default: Any = None) -> Any:
        try:
            return self[key]
        except KeyError:
            return default

    def keys(self) -> KeysView[str]:  # type: ignore[override]
        return KeysView(self)

    def values(self) -> ValuesView[Any]:  # type: ignore[override]
        return ValuesView(self)

    def items(self) -> ItemsView[str, Any]:  # type: ignore[override]
        return ItemsView(self)

    def copy(self) -> dict[str, Any]:
        return dict(self.items())

    def setdefault(self, key: str, default: Any = None) -> Any:
        if key not in self:
            self[key] = default
        return self[key]

    def __or__(self, other: Any) -> dict[str, Any]:  # type: ignore[override]
        return self.copy() | other

    def __ror__(self, other: Any) -> dict[str, Any]:  # type: ignore[override]
        return other | self.copy()

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, dict) and self.copy() == other)

    __hash__ = None

    def __reversed__(self) -> Iterator[str]:
        return reversed(list(self))

    def __repr__(self) -> str:
        return repr(self.copy())

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        return dict, (self.copy(),)


class LazyTrialSequence(Sequence[Any]):
    """A sequence with one value a trial, made from the trial on access."""

    def __init__(self, trials: SpilledTrials, make: Callable[[Any], Any]) -> None:
        self._trials = trials
        self._make = make
        self._made: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()

    def _value(self, trial: Any) -> Any:
        value = self._made.get(trial.trial_id)
        if value is None:
            value = self._made[trial.trial_id] = self._make(trial)
        return value

    def __len__(self) -> int:
        return len(self._trials)

    @overload
    def __getitem__(self, index: SupportsIndex) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> Any:
        found = self._trials[index]
        if isinstance(found, list):
            return [self._value(trial) for trial in found]
        return self._value(found)

    def __iter__(self) -> Iterator[Any]:
        return (self._value(trial) for trial in self._trials)

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        return list, (list(self),)
