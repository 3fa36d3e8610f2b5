"""The list of all trials of a sweep, of which only the unspilled ones are in memory.

It stands in for the list that Ray keeps and hands to every callback, reporter and result: the same
order, length, indices and identities; a spilled trial is handed out as its ghost.
"""

from __future__ import annotations

import logging
from bisect import bisect_right, insort
from collections.abc import Iterable, Iterator
from operator import methodcaller
from typing import Any, SupportsIndex, overload

from ray_tune_memguard.lazy.ghost import TrialCache
from ray_tune_memguard.lazy.summaries import TrialSummaryIndex
from ray_tune_memguard.store.trial_store import SpilledRow

logger = logging.getLogger(__name__)

_is_finished = methodcaller("is_finished")
# Rows fetched at a time while walking: small enough to hold, large enough to be fast.
_WINDOW = 512


class SpilledTrials(list[Any]):
    """A list of trials in the order in which Ray added them.

    Each trial has a ``position``, counted up as trials are appended and never used again;
    positions of removed trials (Ray moves a retried trial to the end) are remembered as holes, 8
    bytes each. The base list stays empty: elements are either in ``_resident`` (by ``position``)
    or in the store.

    Reordering (``sort``, ``reverse``, ``insert``, assignment) is not carried out: order is Ray's.
    It is said once in the log.
    """

    def __init__(
        self, trials: Iterable[Any], cache: TrialCache, summaries: TrialSummaryIndex
    ) -> None:
        super().__init__()
        self.cache = cache
        self.summaries = summaries
        self._resident: dict[int, Any] = {}
        # By trial id, and by identity: ids of eight random digits can occur twice.
        self._position_by_id: dict[str, int] = {}
        self._position_by_object: dict[int, int] = {}
        self._holes: list[int] = []
        self._next_position = 0
        # How many trials this run has made, and how many there were before each resident one.
        self.creation_count = 0
        self._creation_index_by_id: dict[str, int] = {}
        self._said_fixed_order = False
        for trial in trials:
            self.append(trial)

    @classmethod
    def reopened(
        cls, residents: dict[int, Any], cache: TrialCache, summaries: TrialSummaryIndex
    ) -> SpilledTrials:
        """The list of a sweep of which the store has a part: ``residents`` beside it."""
        trials = cls((), cache, summaries)
        total, last = cache.store.extent()
        trials._next_position = max((last, *residents)) + 1
        # Some residents have a row as well: they are to be resumed.
        alone = sum(not cache.store.rows(position, position + 1) for position in residents)
        if total + alone != trials._next_position:
            taken = {*cache.store.positions(), *residents}
            trials._holes = [
                position for position in range(trials._next_position) if position not in taken
            ]
        for position, trial in sorted(residents.items()):
            trials._place_at(position, trial, creation_index=-1)
        return trials

    # What the pruner uses.

    def resident(self) -> list[Any]:
        """The trials that are in memory, in order: all unfinished ones and those yet to spill."""
        return list(self._resident.values())

    def has_unfinished(self) -> bool:
        # The newest first: it is the likeliest.
        return not all(map(_is_finished, reversed(self._resident.values())))

    def position(self, trial: Any) -> int:
        """The place of a trial that is in memory. Raises KeyError for any other."""
        return self._position_by_object[id(trial)]

    def position_of(self, trial_id: str) -> int | None:
        """The place of the trial in memory that has this id."""
        return self._position_by_id.get(trial_id)

    def creation_index(self, trial: Any) -> int:
        """How many trials this run had made before this one, -1 if an earlier run made it."""
        return self._creation_index_by_id.get(trial.trial_id, -1)

    def release(self, trial: Any) -> None:
        """Let go of a trial whose row is durable in the store; it goes on as a ghost."""
        self._forget(trial)
        self._creation_index_by_id.pop(trial.trial_id, None)
        self.cache.release(trial)

    def _forget(self, trial: Any) -> int | None:
        """Take a trial out of what is in memory; its ``position``, or None if it was not."""
        position = self._position_by_object.pop(id(trial), None)
        if position is not None:
            del self._resident[position]
            if self._position_by_id.get(trial.trial_id) == position:
                del self._position_by_id[trial.trial_id]
        return position

    def find(self, trial_id: str) -> Any | None:
        """The trial with this id, wherever it is."""
        position = self._position_by_id.get(trial_id)
        if position is not None:
            return self._resident[position]
        row = self.cache.store.row(trial_id)
        return self.cache.ghost(row) if row else None

    def place(self, trial: Any) -> int:
        """The ``position`` of any of these trials, spilled or not. Raises ValueError for others."""
        position = self._position_by_object.get(id(trial))
        if position is None:
            row = self.cache.store.row(trial.trial_id)
            if row is None:
                raise ValueError(f"{trial} is not in list")
            position = row.position
        return position

    def spilled(self) -> Iterator[Any]:
        """The trials whose state is in the store, in order."""
        return (trial for trial in self if id(trial) not in self._position_by_object)

    def deciding(self, metric: str, mode: str, scope: str) -> list[Any] | None:
        """Trials of which one is the best of all, in order; None: nobody knows without reading all.

        The arguments are those of Ray's ``get_best_trial``, which leaves out what is not a number.
        """
        known = self.summaries.best_trials
        if self.cache.has_changes or not known.knows(metric):
            return None
        found = {self.place(trial): trial for trial in self.cache.loaded()} | self._resident
        best = known.best(metric, mode, scope)
        if best is not None:
            trial = self.find(best[0])
            if trial is None or trial.metric_analysis[metric][best[1]] != best[2]:
                return None
            found[self.place(trial)] = trial
        return [found[position] for position in sorted(found)]

    def ghosts(self, rows: Iterable[SpilledRow]) -> dict[int, Any]:
        """Ghosts for store rows, by ``position``."""
        return {row.position: self.cache.ghost(row) for row in rows}

    def resident_by_position(self) -> dict[int, Any]:
        return dict(self._resident)

    # Reading, as a list.

    def __len__(self) -> int:
        return self._next_position - len(self._holes)

    def __bool__(self) -> bool:
        return len(self) > 0

    def __iter__(self) -> Iterator[Any]:
        start = 0
        while start < self._next_position:
            stop = start + _WINDOW
            # Taken now, and before the rows: a trial may be spilled while somebody walks.
            residents = {
                position: trial
                for position in range(start, stop)
                if (trial := self._resident.get(position)) is not None
            }
            rows = {row.position: row for row in self.cache.store.rows(start, stop)}
            for position in range(start, stop):
                if position in residents:
                    yield residents[position]
                elif position in rows:
                    yield self.cache.ghost(rows[position])
            start = stop

    def __reversed__(self) -> Iterator[Any]:
        return (self[index] for index in range(len(self) - 1, -1, -1))

    def __contains__(self, trial: object) -> bool:
        if id(trial) in self._position_by_object:
            return True
        trial_id = getattr(trial, "trial_id", None)
        row = self.cache.store.row(trial_id) if isinstance(trial_id, str) else None
        return row is not None and self.cache.ghost(row) is trial

    @overload
    def __getitem__(self, index: SupportsIndex) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._at(self._position_at(index))

    def _position_at(self, index: SupportsIndex) -> int:
        place = index.__index__()
        if place < 0:
            place += len(self)
        if not 0 <= place < len(self):
            raise IndexError("list index out of range")
        # Before the n-th hole h there are h - n trials, so the holes below `place` are these.
        ranks = _HoleRanks(self._holes)
        return place + bisect_right(ranks, place)

    def _at(self, position: int) -> Any:
        if position in self._resident:
            return self._resident[position]
        [row] = self.cache.store.rows(position, position + 1)
        return self.cache.ghost(row)

    def index(self, trial: Any, start: SupportsIndex = 0, stop: SupportsIndex = 2**63) -> int:
        if trial not in self:
            raise ValueError(f"{trial} is not in list")
        position = self.place(trial)
        index = position - bisect_right(self._holes, position)
        if not start.__index__() <= index < stop.__index__():
            raise ValueError(f"{trial} is not in list")
        return index

    def count(self, trial: Any) -> int:
        return int(trial in self)

    def copy(self) -> list[Any]:
        return list(self)

    def __add__(self, other: Any) -> list[Any]:
        return list(self) + list(other)

    def __radd__(self, other: Any) -> list[Any]:
        return list(other) + list(self)

    def __mul__(self, times: SupportsIndex) -> list[Any]:
        return list(self) * times

    __rmul__ = __mul__

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, list) or len(self) != len(other):
            return False
        return all(mine is theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None

    def __repr__(self) -> str:
        return repr(list(self))

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        # A pickle must open without this package and without the store.
        return list, (list(self),)

    # Changing, as Ray does it.

    def append(self, trial: Any) -> None:
        # A retried trial is taken out and appended again, but was created_at_index once.
        creation_index = self._creation_index_by_id.get(trial.trial_id)
        if creation_index is None:
            creation_index = self.creation_count
            self.creation_count += 1
        self._next_position += 1
        self._place_at(self._next_position - 1, trial, creation_index)

    def _place_at(self, position: int, trial: Any, creation_index: int) -> None:
        self._resident[position] = trial
        self._position_by_object[id(trial)] = position
        self._position_by_id.setdefault(trial.trial_id, position)
        self._creation_index_by_id[trial.trial_id] = creation_index

    def extend(self, trials: Iterable[Any]) -> None:
        for trial in trials:
            self.append(trial)

    def __iadd__(self, trials: Iterable[Any]) -> SpilledTrials:  # type: ignore[misc]
        self.extend(trials)
        return self

    def pop(self, index: SupportsIndex = -1) -> Any:
        position = self._position_at(index)
        trial = self._at(position)
        if self._forget(trial) is None:
            self.cache.store.delete(trial.trial_id)
            self.summaries.best_trials.forget_all()
        insort(self._holes, position)
        return trial

    def remove(self, trial: Any) -> None:
        self.pop(self.index(trial))

    def __delitem__(self, index: SupportsIndex | slice) -> None:
        if isinstance(index, slice):
            for place in sorted(range(*index.indices(len(self))), reverse=True):
                self.pop(place)
        else:
            self.pop(index)

    def clear(self) -> None:
        del self[:]

    def _keep_order(self, *_: Any, **__: Any) -> None:
        if not self._said_fixed_order:
            self._said_fixed_order = True
            logger.warning(
                "Something tried to reorder Ray Tune's own list of trials. MemGuard keeps the "
                "order; sort a copy instead: sorted(trials, key=...)."
            )

    sort = reverse = insert = __setitem__ = _keep_order


class _HoleRanks:
    """How many trials lie before each hole, as a sequence that can be bisected."""

    def __init__(self, holes: list[int]) -> None:
        self._holes = holes

    def __len__(self) -> int:
        return len(self._holes)

    def __getitem__(self, number: int) -> int:
        return self._holes[number] - number
