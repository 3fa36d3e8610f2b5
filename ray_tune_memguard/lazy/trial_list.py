"""The list of all trials of a run; only unspilled trials are in memory.

It replaces the list that Ray keeps and passes to every callback, reporter and result. It has the
same order, length, indices and identities, and returns a spilled trial as its ghost.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right, insort
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import methodcaller
from typing import NoReturn, SupportsIndex, overload

from ray_tune_memguard.lazy.cache import TrialCache
from ray_tune_memguard.lazy.interfaces import TrialLike, TrialRow, TrialT
from ray_tune_memguard.lazy.summaries import TrialSummaryIndex

_is_finished = methodcaller("is_finished")
# Rows that are read at once during iteration: a compromise between memory and time.
_WINDOW = 512


class SpilledTrials(list[TrialT]):
    """A list of trials in the order in which Ray added them.

    Each appended trial gets the next ``position``, and no position is used twice. Positions of
    removed trials (Ray moves a retried trial to the end) are kept as *holes*, 8 bytes each. The
    base list stays empty: trials are either in ``_resident`` (by ``position``) or in the store.

    Trials can be appended and removed. Methods that would change the order, which is Ray's, raise
    TypeError. The store keeps the row of a removed trial: with Ray alone, too, removing a trial
    from the list does not remove it from the experiment.
    """

    def __init__(
        self, trials: Iterable[TrialT], cache: TrialCache[TrialT], summaries: TrialSummaryIndex
    ) -> None:
        super().__init__()
        self.cache = cache
        self.summaries = summaries
        self._resident: dict[int, TrialT] = {}
        # By trial id, and by identity, because ids of eight random digits can occur twice.
        self._position_by_id: dict[str, int] = {}
        self._position_by_object: dict[int, int] = {}
        self._holes: list[int] = []
        # By position: the status of rows whose trials were removed.
        self._removed: dict[int, str] = {}
        self._next_position = 0
        # The number of trials that this run has created, in total and before each resident one.
        self.creation_count = 0
        self._creation_index_by_id: dict[str, int] = {}
        for trial in trials:
            self.append(trial)

    @classmethod
    def reopened(
        cls,
        residents: dict[int, TrialT],
        cache: TrialCache[TrialT],
        summaries: TrialSummaryIndex,
    ) -> SpilledTrials[TrialT]:
        """The list of a resumed or opened run: ``residents``, and the trials in the store."""
        trials = cls((), cache, summaries)
        total, last = cache.store.extent()
        trials._next_position = max((last, *residents)) + 1
        # Some residents, which are to be resumed, have a row as well.
        alone = sum(not cache.store.rows(position, position + 1) for position in residents)
        if total + alone != trials._next_position:
            taken = {*cache.store.positions(), *residents}
            trials._holes = [
                position for position in range(trials._next_position) if position not in taken
            ]
        for position, trial in sorted(residents.items()):
            trials._place_at(position, trial, creation_index=-1)
        return trials

    # Used by the spiller.

    def resident(self) -> list[TrialT]:
        """The unspilled trials, in order: unfinished ones, and finished ones not yet spilled."""
        return list(self._resident.values())

    def has_unfinished(self) -> bool:
        # The newest first, because it is most likely to be unfinished.
        return not all(map(_is_finished, reversed(self._resident.values())))

    def position(self, trial: TrialLike) -> int:
        """The position of a trial that is in memory. Raises KeyError for any other."""
        return self._position_by_object[id(trial)]

    def position_of(self, trial_id: str) -> int | None:
        """The position of the trial in memory that has this id."""
        return self._position_by_id.get(trial_id)

    def creation_index(self, trial: TrialLike) -> int:
        """The number of trials created before this one; -1 if an earlier run created it."""
        return self._creation_index_by_id.get(trial.trial_id, -1)

    def release(self, trial: TrialT) -> None:
        """Turn a trial whose row is durable in the store into a ghost.

        Raises:
            ValueError: it was released before.
        """
        self.cache.release(trial)
        self._forget(trial)
        self._creation_index_by_id.pop(trial.trial_id, None)

    def _forget(self, trial: TrialT) -> int | None:
        """Remove a resident trial; returns its ``position``, or None if it is not resident."""
        position = self._position_by_object.pop(id(trial), None)
        if position is not None:
            del self._resident[position]
            if self._position_by_id.get(trial.trial_id) == position:
                del self._position_by_id[trial.trial_id]
        return position

    # Used by reports and results.

    def find(self, trial_id: str) -> TrialT | None:
        """The trial with this id, spilled or not; None if there is none."""
        position = self._position_by_id.get(trial_id)
        if position is not None:
            return self._resident[position]
        row = self._row(trial_id)
        return self.cache.ghost(row) if row else None

    def find_position(self, trial: TrialLike) -> int:
        """The ``position`` of any of these trials, spilled or not. Raises ValueError for others."""
        position = self._position_by_object.get(id(trial))
        if position is None:
            row = self._row(trial.trial_id)
            if row is None:
                raise ValueError(f"{trial} is not in list")
            position = row.position
        return position

    def spilled(
        self, read: Callable[[Sequence[TrialRow]], Sequence[TrialT]]
    ) -> Iterator[tuple[int, TrialT]]:
        """The position of each trial whose state is in the store, in order, and the trial.

        Args:
            read: returns the trials of some rows.
        """
        for start in range(0, self._next_position, _WINDOW):
            rows = [
                row
                for row in self.cache.store.rows(start, start + _WINDOW)
                if row.position not in self._resident and row.position not in self._removed
            ]
            yield from zip((row.position for row in rows), read(rows), strict=True)

    def best_candidates(self, metric: str, mode: str, scope: str) -> list[TrialT] | None:
        """Trials, in order, that include the best of all; None if only reading all trials finds it.

        The arguments are those of Ray's ``get_best_trial``, which ignores values that are NaN.
        """
        known = self.summaries.best_trials
        if self.cache.has_changes or not known.knows(metric):
            return None
        found = dict(self._resident)
        for trial in self.cache.active():
            if trial in self:
                found[self.find_position(trial)] = trial
        best = known.best(metric, mode, scope)
        if best is not None:
            winner = self.find(best[0])
            if winner is None or winner.metric_analysis[metric][best[1]] != best[2]:
                return None
            found[self.find_position(winner)] = winner
        return [found[position] for position in sorted(found)]

    def by_position(self, rows: Iterable[TrialRow]) -> dict[int, TrialT]:
        """All resident trials, and those of ``rows`` that were not removed, by position."""
        found = {
            row.position: self.cache.ghost(row) for row in rows if row.position not in self._removed
        }
        return found | self._resident

    def in_memory_with(self, status: str) -> dict[int, TrialT]:
        """Trials with this status whose rows do not have it or that have no row, by position."""
        return {
            position: trial
            for position, trial in [*self._resident.items(), *self._with_other_status().items()]
            if trial.status == status
        }

    def uncounted(self, status: str) -> set[int]:
        """Positions of rows with this status whose trials have another or were removed."""
        of_rows = dict(self._removed)
        for position in self._with_other_status():
            of_rows.update((row.position, row.status) for row in self._rows_at(position))
        return {position for position, row_status in of_rows.items() if row_status == status}

    def count_status(self, status: str) -> int:
        """The number of trials with this status. Reads no trial."""
        in_store = self.cache.store.count(status) - len(self.uncounted(status))
        return in_store + len(self.in_memory_with(status))

    def _with_other_status(self) -> dict[int, TrialT]:
        moved = {}
        for trial_id, trial in self.cache.with_other_status():
            row = self._row(trial_id)
            if row is not None and id(trial) not in self._position_by_object:
                moved[row.position] = trial
        return moved

    def freeze(self) -> FrozenTrials[TrialT]:
        """The present content of the list, unaffected by later changes."""
        version = self.cache.freeze()
        in_memory = dict(self._resident)
        for trial in self.cache.active():
            if trial in self:
                in_memory[self.find_position(trial)] = trial
        return FrozenTrials(self.cache, version, self._next_position, self._holes, in_memory)

    # Reading, as a list.

    def __len__(self) -> int:
        return self._next_position - len(self._holes)

    def __bool__(self) -> bool:
        return len(self) > 0

    def __iter__(self) -> Iterator[TrialT]:
        start = 0
        while start < self._next_position:
            stop = start + _WINDOW
            # Read before the rows, because a trial may be spilled during iteration.
            residents = {
                position: trial
                for position in range(start, stop)
                if (trial := self._resident.get(position)) is not None
            }
            rows = {row.position: row for row in self.cache.store.rows(start, stop)}
            for position in range(start, stop):
                if position in residents:
                    yield residents[position]
                elif position in rows and position not in self._removed:
                    yield self.cache.ghost(rows[position])
            start = stop

    def __reversed__(self) -> Iterator[TrialT]:
        return (self[index] for index in range(len(self) - 1, -1, -1))

    def __contains__(self, trial: object) -> bool:
        if id(trial) in self._position_by_object:
            return True
        trial_id = getattr(trial, "trial_id", None)
        row = self._row(trial_id) if isinstance(trial_id, str) else None
        return row is not None and self.cache.ghost(row) is trial

    def _row(self, trial_id: str) -> TrialRow | None:
        row = self.cache.store.row(trial_id)
        return None if row is None or row.position in self._removed else row

    def _rows_at(self, position: int) -> Sequence[TrialRow]:
        return self.cache.store.rows(position, position + 1)

    @overload
    def __getitem__(self, index: SupportsIndex) -> TrialT: ...
    @overload
    def __getitem__(self, index: slice) -> list[TrialT]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> TrialT | list[TrialT]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._at(_position_at(index, self._next_position, self._holes))

    def _at(self, position: int) -> TrialT:
        if position in self._resident:
            return self._resident[position]
        [row] = self._rows_at(position)
        return self.cache.ghost(row)

    def index(self, trial: TrialT, start: SupportsIndex = 0, stop: SupportsIndex = 2**63) -> int:
        if trial not in self:
            raise ValueError(f"{trial} is not in list")
        position = self.find_position(trial)
        index = position - bisect_right(self._holes, position)
        if index not in range(len(self))[start:stop]:
            raise ValueError(f"{trial} is not in list")
        return index

    def count(self, trial: TrialT) -> int:
        return int(trial in self)

    def copy(self) -> list[TrialT]:
        return list(self)

    def __add__(self, other: list[TrialT]) -> list[TrialT]:  # type: ignore[override]
        return list(self) + list(other)

    def __radd__(self, other: list[TrialT]) -> list[TrialT]:
        return list(other) + list(self)

    def __mul__(self, times: SupportsIndex) -> list[TrialT]:
        return list(self) * times

    __rmul__ = __mul__

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, list) or len(self) != len(other):
            return False
        return all(mine is theirs for mine, theirs in zip(self, other, strict=True))

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None

    def __repr__(self) -> str:
        return repr(list(self))

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[type[list[TrialT]], object]:
        # A pickle must open without this package and without the store.
        return list, (list(self),)

    # Changes that Ray makes.

    def append(self, trial: TrialT) -> None:
        # A retried trial is removed and appended again, but was created once.
        creation_index = self._creation_index_by_id.get(trial.trial_id)
        if creation_index is None:
            creation_index = self.creation_count
            self.creation_count += 1
        self._next_position += 1
        self._place_at(self._next_position - 1, trial, creation_index)

    def _place_at(self, position: int, trial: TrialT, creation_index: int) -> None:
        self._resident[position] = trial
        self._position_by_object[id(trial)] = position
        self._position_by_id.setdefault(trial.trial_id, position)
        self._creation_index_by_id[trial.trial_id] = creation_index

    def extend(self, trials: Iterable[TrialT]) -> None:
        for trial in list(trials):
            self.append(trial)

    def __iadd__(self, trials: Iterable[TrialT]) -> SpilledTrials[TrialT]:  # type: ignore[override]
        self.extend(trials)
        return self

    def pop(self, index: SupportsIndex = -1) -> TrialT:
        position = _position_at(index, self._next_position, self._holes)
        trial = self._at(position)
        if self._forget(trial) is None:
            [row] = self._rows_at(position)
            self._removed[position] = row.status
            self.summaries.best_trials.forget_all()
        insort(self._holes, position)
        return trial

    def remove(self, trial: TrialT) -> None:
        self.pop(self.index(trial))

    def __delitem__(self, index: SupportsIndex | slice) -> None:
        if isinstance(index, slice):
            for place in sorted(range(*index.indices(len(self))), reverse=True):
                self.pop(place)
        else:
            self.pop(index)

    def clear(self) -> None:
        del self[:]

    # Methods of a list that are not supported.

    def sort(self, *_: object, **__: object) -> NoReturn:
        raise _fixed_order("sort()", "Sort a copy: sorted(trials, key=...).")

    def reverse(self) -> NoReturn:
        raise _fixed_order("reverse()", "Walk over reversed(trials), or use trials[::-1].")

    def insert(self, *_: object) -> NoReturn:
        raise _fixed_order("insert()", "Use append(), or insert into a copy: list(trials).")

    def __setitem__(self, *_: object) -> NoReturn:
        raise _fixed_order(
            "assignment", "Change the trial's attributes, or assign in a copy: list(trials)."
        )

    def __imul__(self, times: SupportsIndex) -> NoReturn:
        raise _fixed_order("*=", "Use trials * n, which is a new list.")


def _fixed_order(what: str, instead: str) -> TypeError:
    return TypeError(
        f"Ray Tune's list of trials does not support {what} while MemGuard spills finished trials: "
        f"it keeps the order in which Ray added them. {instead}"
    )


class FrozenTrials(Sequence[TrialT]):
    """The trials of a list as they were at one moment. Each is read from the store on access.

    Attributes:
        in_memory: trials whose state the store does not have, or not the latest, by position. They
            may change, so the caller must read them at once. Indexing does not return them.
    """

    def __init__(
        self,
        cache: TrialCache[TrialT],
        version: int,
        end: int,
        holes: Iterable[int],
        in_memory: dict[int, TrialT],
    ) -> None:
        self._cache = cache
        self._version = version
        self._end = end
        self._holes = array("q", holes)
        self.in_memory = in_memory

    def __len__(self) -> int:
        return self._end - len(self._holes)

    def position_at(self, index: SupportsIndex) -> int:
        return _position_at(index, self._end, self._holes)

    @overload
    def __getitem__(self, index: SupportsIndex) -> TrialT: ...
    @overload
    def __getitem__(self, index: slice) -> list[TrialT]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> TrialT | list[TrialT]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.read(self.position_at(index))

    def read(self, position: int) -> TrialT:
        """A detached copy of the trial at a position."""
        [row] = self._cache.store.rows(position, position + 1)
        return self._cache.load_detached(row.trial_id, self._version)


def _position_at(index: SupportsIndex, end: int, holes: Sequence[int]) -> int:
    """The position of the trial with this index, among positions before ``end`` without holes."""
    length = end - len(holes)
    place = index.__index__()
    if place < 0:
        place += length
    if not 0 <= place < length:
        raise IndexError("list index out of range")
    # Before the n-th hole h there are h - n trials, so the holes below `place` are these.
    return place + bisect_right(_HoleRanks(holes), place)


class _HoleRanks(Sequence[int]):
    """How many trials lie before each hole, as a sequence that can be bisected."""

    def __init__(self, holes: Sequence[int]) -> None:
        self._holes = holes

    def __len__(self) -> int:
        return len(self._holes)

    def __getitem__(self, number: int) -> int:  # type: ignore[override]
        return self._holes[number] - number
