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

from ray_tune_memguard.spill.ghost import Residency
from ray_tune_memguard.spill.ledger import ProgressLedger
from ray_tune_memguard.spill.store import SpilledRow

logger = logging.getLogger(__name__)

_is_finished = methodcaller("is_finished")
# Rows fetched at a time while walking: small enough to hold, large enough to be fast.
_WINDOW = 512


class SpilledTrials(list[Any]):
    """A list of trials in the order in which Ray added them.

    Each trial has a ``seq``, counted up as trials are appended and never used again; ``seq`` of
    removed trials (Ray moves a retried trial to the end) are remembered as holes, 8 bytes each.
    The base list stays empty: elements are either in ``_resident`` (by ``seq``) or in the store.

    Reordering (``sort``, ``reverse``, ``insert``, assignment) is not carried out: order is Ray's.
    It is said once in the log.
    """

    def __init__(self, trials: Iterable[Any], residency: Residency, ledger: ProgressLedger) -> None:
        super().__init__()
        self.residency = residency
        self.ledger = ledger
        self._resident: dict[int, Any] = {}
        # By trial id, and by identity: ids of eight random digits can occur twice.
        self._seq_by_id: dict[str, int] = {}
        self._seq_by_object: dict[int, int] = {}
        self._holes: list[int] = []
        self._next_seq = 0
        # How many trials this run has made, and how many there were before each resident one.
        self.births = 0
        self._birth_by_id: dict[str, int] = {}
        self._said_fixed_order = False
        for trial in trials:
            self.append(trial)

    @classmethod
    def reopened(
        cls, residents: dict[int, Any], residency: Residency, ledger: ProgressLedger
    ) -> SpilledTrials:
        """The list of a sweep of which the store has a part: ``residents`` by ``seq`` beside it."""
        trials = cls((), residency, ledger)
        total, last = residency.store.extent()
        trials._next_seq = max((last, *residents)) + 1
        # Some residents have a row as well: they are to be resumed.
        alone = sum(not residency.store.rows(seq, seq + 1) for seq in residents)
        if total + alone != trials._next_seq:
            taken = {*residency.store.seqs(), *residents}
            trials._holes = [seq for seq in range(trials._next_seq) if seq not in taken]
        for seq, trial in sorted(residents.items()):
            trials._place_at(seq, trial, birth=-1)
        return trials

    # What the pruner uses.

    def resident(self) -> list[Any]:
        """The trials that are in memory, in order: all unfinished ones and those yet to spill."""
        return list(self._resident.values())

    def has_unfinished(self) -> bool:
        # The newest first: it is the likeliest.
        return not all(map(_is_finished, reversed(self._resident.values())))

    def seq(self, trial: Any) -> int:
        """The place of a trial that is in memory. Raises KeyError for any other."""
        return self._seq_by_object[id(trial)]

    def seq_of(self, trial_id: str) -> int | None:
        """The place of the trial in memory that has this id."""
        return self._seq_by_id.get(trial_id)

    def birth(self, trial: Any) -> int:
        """How many trials this run had made before this one, -1 if an earlier run made it."""
        return self._birth_by_id.get(trial.trial_id, -1)

    def release(self, trial: Any) -> None:
        """Let go of a trial whose row is durable in the store; it goes on as a ghost."""
        self._forget(trial)
        self._birth_by_id.pop(trial.trial_id, None)
        self.residency.release(trial)

    def _forget(self, trial: Any) -> int | None:
        """Take a trial out of what is in memory; its ``seq``, or None if it was not."""
        seq = self._seq_by_object.pop(id(trial), None)
        if seq is not None:
            del self._resident[seq]
            if self._seq_by_id.get(trial.trial_id) == seq:
                del self._seq_by_id[trial.trial_id]
        return seq

    def find(self, trial_id: str) -> Any | None:
        """The trial with this id, wherever it is."""
        seq = self._seq_by_id.get(trial_id)
        if seq is not None:
            return self._resident[seq]
        row = self.residency.store.row(trial_id)
        return self.residency.ghost(row) if row else None

    def place(self, trial: Any) -> int:
        """The ``seq`` of any of these trials, spilled or not. Raises ValueError for others."""
        seq = self._seq_by_object.get(id(trial))
        if seq is None:
            row = self.residency.store.row(trial.trial_id)
            if row is None:
                raise ValueError(f"{trial} is not in list")
            seq = row.seq
        return seq

    def spilled(self) -> Iterator[Any]:
        """The trials whose state is in the store, in order."""
        return (trial for trial in self if id(trial) not in self._seq_by_object)

    def deciding(self, metric: str, mode: str, scope: str) -> list[Any] | None:
        """Trials of which one is the best of all, in order; None: nobody knows without reading all.

        The arguments are those of Ray's ``get_best_trial``, which leaves out what is not a number.
        """
        known = self.ledger.best_trials
        if self.residency.has_changes or not known.knows(metric):
            return None
        found = {self.place(trial): trial for trial in self.residency.loaded()} | self._resident
        best = known.best(metric, mode, scope)
        if best is not None:
            trial = self.find(best[0])
            if trial is None or trial.metric_analysis[metric][best[1]] != best[2]:
                return None
            found[self.place(trial)] = trial
        return [found[seq] for seq in sorted(found)]

    def ghosts(self, rows: Iterable[SpilledRow]) -> dict[int, Any]:
        """Ghosts for store rows, by ``seq``."""
        return {row.seq: self.residency.ghost(row) for row in rows}

    def resident_by_seq(self) -> dict[int, Any]:
        return dict(self._resident)

    # Reading, as a list.

    def __len__(self) -> int:
        return self._next_seq - len(self._holes)

    def __bool__(self) -> bool:
        return len(self) > 0

    def __iter__(self) -> Iterator[Any]:
        start = 0
        while start < self._next_seq:
            stop = start + _WINDOW
            # Taken now, and before the rows: a trial may be spilled while somebody walks.
            residents = {
                seq: trial
                for seq in range(start, stop)
                if (trial := self._resident.get(seq)) is not None
            }
            rows = {row.seq: row for row in self.residency.store.rows(start, stop)}
            for seq in range(start, stop):
                if seq in residents:
                    yield residents[seq]
                elif seq in rows:
                    yield self.residency.ghost(rows[seq])
            start = stop

    def __reversed__(self) -> Iterator[Any]:
        return (self[index] for index in range(len(self) - 1, -1, -1))

    def __contains__(self, trial: object) -> bool:
        if id(trial) in self._seq_by_object:
            return True
        trial_id = getattr(trial, "trial_id", None)
        row = self.residency.store.row(trial_id) if isinstance(trial_id, str) else None
        return row is not None and self.residency.ghost(row) is trial

    @overload
    def __getitem__(self, index: SupportsIndex) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._at(self._seq_at(index))

    def _seq_at(self, index: SupportsIndex) -> int:
        place = index.__index__()
        if place < 0:
            place += len(self)
        if not 0 <= place < len(self):
            raise IndexError("list index out of range")
        # Before the n-th hole h there are h - n trials, so the holes below `place` are these.
        ranks = _HoleRanks(self._holes)
        return place + bisect_right(ranks, place)

    def _at(self, seq: int) -> Any:
        if seq in self._resident:
            return self._resident[seq]
        [row] = self.residency.store.rows(seq, seq + 1)
        return self.residency.ghost(row)

    def index(self, trial: Any, start: SupportsIndex = 0, stop: SupportsIndex = 2**63) -> int:
        if trial not in self:
            raise ValueError(f"{trial} is not in list")
        seq = self.place(trial)
        index = seq - bisect_right(self._holes, seq)
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
        # A retried trial is taken out and appended again, but was born once.
        birth = self._birth_by_id.get(trial.trial_id)
        if birth is None:
            birth = self.births
            self.births += 1
        self._next_seq += 1
        self._place_at(self._next_seq - 1, trial, birth)

    def _place_at(self, seq: int, trial: Any, birth: int) -> None:
        self._resident[seq] = trial
        self._seq_by_object[id(trial)] = seq
        self._seq_by_id.setdefault(trial.trial_id, seq)
        self._birth_by_id[trial.trial_id] = birth

    def extend(self, trials: Iterable[Any]) -> None:
        for trial in trials:
            self.append(trial)

    def __iadd__(self, trials: Iterable[Any]) -> SpilledTrials:  # type: ignore[misc]
        self.extend(trials)
        return self

    def pop(self, index: SupportsIndex = -1) -> Any:
        seq = self._seq_at(index)
        trial = self._at(seq)
        if self._forget(trial) is None:
            self.residency.store.delete(trial.trial_id)
            self.ledger.best_trials.forget_all()
        insort(self._holes, seq)
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
