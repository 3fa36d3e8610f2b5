"""Ghosts: trials that stay themselves while their state is on disk.

States and moves (the words are those of ZODB's ``persistent`` package):

- *resident*: a plain trial that was never spilled. This module does not know it.
- *ghost*: the same object after its spill. It keeps its id and status; any other use loads it.
- *loaded*: the same object with its state back, a plain trial again in every respect.

resident → ghost (:meth:`TrialCache.release`), ghost → loaded (on first use), loaded → ghost (when
more than ``capacity`` trials are loaded, the one loaded first goes; what was changed on it
meanwhile is written to the store first). An object that cannot be written any more stays loaded.

A ghost that nobody holds is not in memory at all: it is made anew when asked for, and the same
object is handed out as long as somebody holds it.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections import OrderedDict
from typing import Any

from ray_tune_memguard.store.compression import TrialCodec
from ray_tune_memguard.store.trial_store import SpilledRow, TrialStore

logger = logging.getLogger(__name__)

#: How many loaded trials stay in memory, about 10 KB each: enough for a progress table.
LOADED_TRIALS = 64

_RESIDENCY = "_memguard_residency"
# What a ghost answers by itself; everything else wakes it.
_KEPT = frozenset({"trial_id", "status", "is_finished"})

_ghost_classes: dict[type, type] = {}
_plain_classes: dict[type, type] = {}


def ghost_class(plain: type) -> type:
    """The class of ghosts of ``plain``: a subclass, so that ``isinstance`` holds."""
    if plain not in _ghost_classes:
        ghost = type(plain.__name__, (_GhostMixin, plain), {"__module__": plain.__module__})
        _ghost_classes[plain] = ghost
        _plain_classes[ghost] = plain
    return _ghost_classes[plain]


def is_ghost(trial: object) -> bool:
    """Whether ``trial`` has its state on disk just now."""
    return type(trial) in _plain_classes


def _attributes(trial: object) -> dict[str, Any]:
    """The instance dictionary itself, without waking a ghost."""
    return object.__getattribute__(trial, "__dict__")


class _GhostMixin:
    """Wakes the object on the first use of anything that it did not keep."""

    def __getattribute__(self, name: str) -> Any:
        if name in _KEPT:
            return object.__getattribute__(self, name)
        if name == "__class__":
            return _plain_classes.get(type(self), type(self))
        _wake(self)
        return getattr(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        _wake(self)
        setattr(self, name, value)

    def __delattr__(self, name: str) -> None:
        _wake(self)
        delattr(self, name)

    def __reduce_ex__(self, protocol: Any) -> Any:
        # copy.copy reaches this through the type, so it must wake the object itself.
        _wake(self)
        return self.__reduce_ex__(protocol)


def _wake(trial: Any) -> None:
    cache = _attributes(trial).get(_RESIDENCY)
    # None: another thread has loaded it between the look-up of the class and this line.
    if cache is not None:
        cache.load(trial)


class TrialCache:
    """Which spilled trials of one sweep are ghosts, which are loaded, and the moves between.

    ``capacity``: how many trials may be loaded at the same time.
    """

    def __init__(self, store: TrialStore, codec: TrialCodec, capacity: int = LOADED_TRIALS) -> None:
        self.store = store
        self._codec = codec
        self._capacity = capacity
        self._lock = threading.RLock()
        #: Spilled trials that somebody holds.
        self.held: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
        # Trial id to (trial, hash of its state when it was loaded), first loaded first.
        self._loaded: OrderedDict[str, tuple[Any, int | None]] = OrderedDict()
        #: Whether a spilled trial was changed, so that it is not what it was when it was spilled.
        self.has_changes = False

    def release(self, trial: Any) -> None:
        """Turn a trial into a ghost. Its state must be durable in the store already."""
        with self._lock:
            self.held[trial.trial_id] = trial
            self._to_ghost(trial)

    def ghost(self, row: SpilledRow) -> Any:
        """The one object that stands for a spilled trial."""
        with self._lock:
            trial = self.held.get(row.trial_id)
            if trial is None:
                cls = ghost_class(self._codec.trial_class)
                trial = object.__new__(cls)
                _attributes(trial).update(
                    {"trial_id": row.trial_id, "status": row.status, _RESIDENCY: self}
                )
                self.held[row.trial_id] = trial
            return trial

    def view(self, row: SpilledRow) -> Any:
        """A spilled trial for who only reads it and lets go of it: one that is not looked after.

        What is changed on it is lost, unless somebody holds the trial itself: then it is that one.
        """
        with self._lock:
            trial = self.held.get(row.trial_id)
            return self._apart(row.trial_id) if trial is None else trial

    def read(self, trial: Any) -> Any:
        """A trial for who only reads it: itself, or in place of a ghost one like :meth:`view`'s."""
        with self._lock:
            return self._apart(trial.trial_id) if is_ghost(trial) else trial

    def _apart(self, trial_id: str) -> Any:
        trial: Any = object.__new__(self._codec.trial_class)
        trial.__dict__.update(self._read(trial_id))
        return trial

    def _read(self, trial_id: str) -> dict[str, Any]:
        raw = self.store.state(trial_id)
        if raw is None:
            return self._codec.load_entry(self.store.entry(trial_id))
        return self._codec.load(raw)

    def loaded(self) -> list[Any]:
        with self._lock:
            return [trial for trial, _ in self._loaded.values()]

    def load(self, trial: Any) -> None:
        """Give a ghost its state back.

        Raises:
            KeyError, sqlite3.Error: the store has lost it.
        """
        with self._lock:
            attributes = _attributes(trial)
            if not is_ghost(trial):
                return
            trial_id = attributes["trial_id"]
            state = self._read(trial_id)
            plain = _plain_classes[type(trial)]
            attributes.update(state)
            attributes.pop(_RESIDENCY, None)
            object.__setattr__(trial, "__class__", plain)
            # Of a new dump: that of the same state by other objects may differ in its bytes.
            self._loaded[trial_id] = (trial, self._fingerprint(trial))
            while len(self._loaded) > self._capacity:
                if not self._evict_first():
                    break

    def _fingerprint(self, trial: Any) -> int | None:
        """By which a changed trial is told; None if it cannot be: then it stays loaded."""
        try:
            return hash(self._codec.dump(trial))
        except Exception as error:
            logger.debug("Trial %s stays in memory: %r", trial.trial_id, error)
            return None

    def settle(self) -> None:
        """Turn every loaded trial into a ghost again, what was changed on them kept."""
        with self._lock:
            for _ in range(len(self._loaded)):
                self._evict_first()

    def _evict_first(self) -> bool:
        """Never raises: a trial that cannot be written stays loaded, as the newest of them."""
        trial_id, (trial, before) = self._loaded.popitem(last=False)
        try:
            raw = self._codec.dump(trial)
            if hash(raw) != before:
                self.has_changes = True
                with self.store.transaction():
                    self.store.replace(trial_id, trial.status, self._codec.has_error(trial), raw)
        except Exception as error:
            logger.debug("Trial %s stays in memory: %r", trial_id, error)
            self._loaded[trial_id] = (trial, before)
            return False
        self._to_ghost(trial)
        return True

    def _to_ghost(self, trial: Any) -> None:
        attributes = _attributes(trial)
        kept = {
            "trial_id": attributes["trial_id"],
            "status": attributes["status"],
            _RESIDENCY: self,
        }
        # The class first, then the state in one move: a thread that reads in between finds the
        # kept words, or waits for the lock and loads.
        object.__setattr__(trial, "__class__", ghost_class(type(trial)))
        object.__setattr__(trial, "__dict__", kept)
