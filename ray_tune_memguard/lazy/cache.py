"""Loads spilled trials into memory and removes them again.

States of a trial, in the terms of ZODB's ``persistent`` package:

- *unspilled*: a plain trial without a row in the store. This module does not handle it.
- *ghost*: its state is on disk. The object has its id and status, and activates itself when
  anything else of it is used.
- *up to date*: it was activated and is a plain trial again, equal to what is on disk.
- *changed*: it was activated and differs from what is on disk.
- *sticky*: it was activated and cannot be turned back: it holds something that does not pickle,
  there is no room for what was changed, or its status was changed, by which rows are counted.

Up to date, changed and sticky trials are *active*. Transitions:

- unspilled → ghost, by :meth:`TrialCache.release`, once its row is durable.
- nothing → ghost, by :meth:`TrialCache.ghost`: an object without references is not in memory at
  all, and is created on access.
- ghost → up to date, by :meth:`TrialCache.activate`, which its first use calls. If it does not
  pickle, changes could not be noticed: ghost → sticky.
- up to date → changed, when an attribute or anything inside one is changed. This is noticed only
  at deactivation.
- up to date → ghost and changed → ghost, by deactivation: when more than ``capacity`` trials are
  active, in the order in which they were activated, and by :meth:`TrialCache.deactivate_all`. The
  trial is pickled and compared with its pickle of when it was activated; a changed state is kept.
- up to date or changed → sticky, when deactivation fails. It is tried again each time it is the
  trial's turn: sticky → ghost.
- ghost → nothing and up to date or changed → nothing are Python's garbage collection. An active
  trial is held by the cache, so that no change is lost.

Releasing a trial that is spilled already, and activating one that is not, raise ValueError.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic

from ray_tune_memguard.lazy.changes import ChangedStates
from ray_tune_memguard.lazy.ghost import attributes, empty, fill, is_ghost, new_ghost
from ray_tune_memguard.lazy.interfaces import TrialCodec, TrialRow, TrialRows, TrialT

logger = logging.getLogger(__name__)

#: How many activated trials stay in memory, about 10 KB each: enough for a progress table.
MAX_ACTIVE_TRIALS = 64


@dataclass(slots=True)
class _Active(Generic[TrialT]):
    trial: TrialT
    #: The hash of its pickle at its activation; None if it does not pickle.
    fingerprint: int | None
    #: The status of its row.
    status: str


class TrialCache(Generic[TrialT]):
    """The spilled trials of one list that are in memory. Any thread may call all methods.

    Args:
        store: the rows of the trials.
        codec: serializes and deserializes trials.
        capacity: the number of trials that may be active at the same time, besides sticky ones.
    """

    def __init__(
        self, store: TrialRows, codec: TrialCodec[TrialT], capacity: int = MAX_ACTIVE_TRIALS
    ) -> None:
        self.store = store
        self.codec = codec
        self._capacity = capacity
        self._lock = threading.RLock()
        #: Spilled trials that other code refers to, ghosts and active ones, by id.
        self.live: weakref.WeakValueDictionary[str, TrialT] = weakref.WeakValueDictionary()
        # By trial id, in the order of activation.
        self._active: OrderedDict[str, _Active[TrialT]] = OrderedDict()
        self._changed = ChangedStates()
        self._version = 0

    @property
    def has_changes(self) -> bool:
        """Whether any deactivated trial was changed after its spill."""
        return bool(self._changed)

    # Transitions.

    def release(self, trial: TrialT) -> None:
        """Turn an unspilled trial into a ghost. Its row must be durable in the store.

        Raises:
            ValueError: the trial was released before.
        """
        with self._lock:
            if is_ghost(trial) or self._record_of(trial) is not None:
                raise ValueError(f"Trial {trial.trial_id} has been released already.")
            self.live[trial.trial_id] = trial
            empty(trial, self)

    def ghost(self, row: TrialRow) -> TrialT:
        """The one object that stands for a spilled trial."""
        with self._lock:
            trial = self.live.get(row.trial_id)
            if trial is None:
                trial = new_ghost(self.codec.trial_class, row.trial_id, row.status, self)
                self.live[row.trial_id] = trial
            return trial

    def activate(self, trial: TrialT, /) -> None:
        """Load the state of a ghost. An active trial stays as it is.

        Raises:
            KeyError, sqlite3.Error: the store cannot return the state.
            ValueError: the trial is not spilled.
        """
        with self._lock:
            if not is_ghost(trial):
                if self._record_of(trial) is None:
                    raise ValueError(f"Trial {trial.trial_id} is not spilled.")
                return
            trial_id = trial.trial_id
            status = trial.status
            fill(trial, self._state(trial_id, self._version))
            # From a new pickle: equal states of different objects may pickle to different bytes.
            self._active[trial_id] = _Active(trial, self._fingerprint(trial), status)
            while len(self._active) > self._capacity and self._deactivate_oldest():
                pass

    def deactivate_all(self) -> None:
        """Turn all active trials into ghosts, except sticky ones."""
        with self._lock:
            for _ in range(len(self._active)):
                self._deactivate_oldest()

    def _deactivate_oldest(self) -> bool:
        """Deactivate one trial. Returns False if it is sticky. Never raises."""
        trial_id, record = self._active.popitem(last=False)
        trial = record.trial
        try:
            if trial.trial_id != trial_id or trial.status != record.status:
                raise ValueError("its id or status was changed")
            raw = self.codec.dump(trial)
            if hash(raw) != record.fingerprint:
                self._changed.put(trial_id, self._version, raw)
        except Exception as error:
            logger.debug("Trial %s stays in memory: %r", trial_id, error)
            self._active[trial_id] = record
            return False
        empty(trial, self)
        return True

    # Reading.

    def active(self) -> list[TrialT]:
        with self._lock:
            return [record.trial for record in self._active.values()]

    def with_other_status(self) -> list[tuple[str, TrialT]]:
        """Active trials whose status differs from that of their row, by the row's trial id."""
        with self._lock:
            return [
                (trial_id, record.trial)
                for trial_id, record in self._active.items()
                if record.trial.status != record.status
            ]

    def freeze(self) -> int:
        """Create a version, the present states of all trials, and return its number.

        Trials that are still active afterwards are sticky, and belong to no version.
        """
        with self._lock:
            self.deactivate_all()
            self._version += 1
            return self._version - 1

    def load_detached(self, trial_id: str, version: int | None = None) -> TrialT:
        """A plain copy of a spilled trial as of a version, or of its last deactivation.

        Changes to the copy are lost.

        Raises:
            KeyError, sqlite3.Error: the store cannot return the state.
        """
        with self._lock:
            state = self._state(trial_id, self._version if version is None else version)
        trial = object.__new__(self.codec.trial_class)
        attributes(trial).update(state)
        return trial

    def as_of(self, trial: TrialT, version: int) -> TrialT:
        """A detached copy of a spilled trial as of a version; an unspilled trial itself."""
        with self._lock:
            is_spilled = is_ghost(trial) or self._record_of(trial) is not None
        return self.load_detached(trial.trial_id, version) if is_spilled else trial

    def peek(self, trial: TrialT) -> TrialT:
        """A trial for reading only: the trial itself, or a detached copy of a ghost."""
        with self._lock:
            return self.load_detached(trial.trial_id) if is_ghost(trial) else trial

    def ghosts(self, rows: Sequence[TrialRow]) -> list[TrialT]:
        """The :meth:`ghost` of each row."""
        return [self.ghost(row) for row in rows]

    def peek_for_report(self, rows: Sequence[TrialRow]) -> list[TrialT]:
        """The trial of each row, or one that has only what a report on all trials reads."""
        with self._lock:
            states = self.store.states([row.position for row in rows])
            if self.has_changes:
                states = [
                    self._changed.get(row.trial_id, self._version) or state
                    for row, state in zip(rows, states, strict=True)
                ]
            active = self._active
            return [
                active[row.trial_id].trial if row.trial_id in active else self._part(row, state)
                for row, state in zip(rows, states, strict=True)
            ]

    def _part(self, row: TrialRow, raw: bytes | None) -> TrialT:
        """What a report on all trials reads of a trial."""
        if raw is None:
            state = self.codec.load_record_for_report(self.store.state_record(row.trial_id))
        else:
            state = self.codec.load_for_report(raw)
        part: TrialT = object.__new__(self.codec.trial_class)
        object.__setattr__(part, "__dict__", state)
        return part

    def state_record(self, trial: TrialT, version: int | None = None) -> bytes | None:
        """The state record of a ghost whose whole state, as of a version, is its record.

        None for other trials, which are active or have a state of this process that may hold more.

        Raises:
            KeyError, sqlite3.Error: the store cannot return the record.
        """
        with self._lock:
            if not self.is_unchanged(trial, version) or self.store.has_state(trial.trial_id):
                return None
            return self.store.state_record(trial.trial_id)

    def is_unchanged(self, trial: TrialT, version: int | None = None) -> bool:
        """Whether the trial is a ghost whose row is its state as of a version, or now."""
        with self._lock:
            at = self._version if version is None else version
            return is_ghost(trial) and self._changed.get(trial.trial_id, at) is None

    def _state(self, trial_id: str, version: int) -> dict[str, object]:
        raw = self._raw(trial_id, version)
        if raw is None:
            return self.codec.load_state_record(self.store.state_record(trial_id))
        return self.codec.load(raw)

    def _raw(self, trial_id: str, version: int) -> bytes | None:
        """The codec's dump of a trial as of a version; None if only its record is known."""
        raw = self._changed.get(trial_id, version)
        return self.store.state(trial_id) if raw is None else raw

    def _record_of(self, trial: TrialT) -> _Active[TrialT] | None:
        record = self._active.get(trial.trial_id)
        return record if record is not None and record.trial is trial else None

    def _fingerprint(self, trial: TrialT) -> int | None:
        try:
            return hash(self.codec.dump(trial))
        except Exception as error:
            logger.debug("Trial %s stays in memory: %r", trial.trial_id, error)
            return None
