"""Reading the rows of a trial store."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ray_tune_memguard.store.rows import Compressors
from ray_tune_memguard.store.schema import SUMMARY

# Rows that are read at once: few enough to hold, enough to be fast.
_WINDOW = 512
_ROW = "seq, trial_id, status"


@dataclass(frozen=True)
class SpilledRow:
    """Where a spilled trial stands, without its state."""

    position: int
    trial_id: str
    status: str


class TrialQueries:
    """What can be asked of the rows, by ``position`` in the run and by ``trial_id``.

    All methods raise ``sqlite3.Error`` if the store cannot be read now.
    """

    def __init__(self, connection: sqlite3.Connection, *, has_states: bool) -> None:
        self._connection = connection
        self._lock = threading.RLock()
        self._compressors = Compressors()
        # Of a store that was opened, the states are another process's, or another run's.
        self._has_states = has_states

    # One trial.

    def row(self, trial_id: str) -> SpilledRow | None:
        return next(iter(self._select("trial WHERE trial_id = ?", (trial_id,))), None)

    def state(self, trial_id: str) -> bytes | None:
        """The state of a spilled trial; None if another process wrote it.

        Raises:
            KeyError: no such trial is in the store.
        """
        packed = self._value("state", trial_id) if self._has_states else None
        return None if packed is None else self._compressors.unpack("state", packed)

    def state_record(self, trial_id: str) -> bytes:
        """The state record of a spilled trial: what the experiment state file holds of it.

        Raises:
            KeyError: no such trial is in the store.
        """
        packed = self._value("entry", trial_id)
        assert packed is not None
        return self._compressors.unpack("entry", packed)

    def _value(self, column: str, trial_id: str) -> bytes | None:
        found = self._all(f"SELECT {column} FROM trial WHERE trial_id = ?", (trial_id,))
        if not found:
            raise KeyError(trial_id)
        value: bytes | None = found[0][0]
        return value

    # Some trials.

    def rows(self, start: int, stop: int) -> list[SpilledRow]:
        """The spilled trials with ``start <= position < stop``, in order."""
        return self._select("trial WHERE seq >= ? AND seq < ? ORDER BY seq", (start, stop))

    def with_error(self) -> list[SpilledRow]:
        """Trials that ever failed, those that ended well after a retry included."""
        return self._select("trial WHERE has_error ORDER BY seq", ())

    def with_status(self, status: str, after: int, limit: int) -> list[SpilledRow]:
        """At most ``limit`` trials of a status with a higher position than ``after``, in order."""
        return self._select(
            f"{SUMMARY} WHERE status = ? AND seq > ? ORDER BY seq LIMIT ?", (status, after, limit)
        )

    def created_since(self, creation_index: int) -> list[tuple[int, SpilledRow]]:
        """Trials with this ``creation_index`` or a later one, with it, in that order."""
        query = f"SELECT birth, {_ROW} FROM {SUMMARY} WHERE birth >= ? ORDER BY birth"
        found = self._all(query, (creation_index,))
        return [(row[0], SpilledRow(*row[1:])) for row in found]

    def to_resume(self, statuses: Iterable[str] = ()) -> list[SpilledRow]:
        """Trials that were to be resumed when the run ended, and those with these statuses."""
        wanted = list(statuses)
        marks = ", ".join("?" * len(wanted))
        return self._select(f"{SUMMARY} WHERE resumes OR status IN ({marks}) ORDER BY seq", wanted)

    def known_directories(self, names: Sequence[str]) -> set[str]:
        """Which of these names, some hundreds at most, are directories of spilled trials."""
        # A name that is not text is none of a trial that is here.
        asked = [name for name in names if _is_text(name)]
        query = f"SELECT directory FROM trial WHERE directory IN ({', '.join('?' * len(asked))})"
        return {name for (name,) in self._all(query, asked)}

    # All trials.

    def count(self, status: str) -> int:
        """How many spilled trials have this status."""
        [(count,)] = self._all(f"SELECT count(*) FROM {SUMMARY} WHERE status = ?", (status,))
        return int(count)

    def extent(self) -> tuple[int, int]:
        """How many trials there are, and the highest ``position``; -1 without any."""
        [(total, last)] = self._all(f"SELECT count(*), max(seq) FROM {SUMMARY}", ())
        return total, -1 if last is None else last

    def positions(self) -> Iterator[int]:
        return (position for (position,) in self._walk("seq", table=SUMMARY))

    def report_times(self) -> Iterator[tuple[float, int, str, str]]:
        """``reported_at``, ``position``, id and status of all spilled trials, in order."""
        return self._walk("reported_at, seq, trial_id, status", table=SUMMARY)

    def state_records(self) -> Iterator[bytes]:
        """The state records of all spilled trials, in order."""
        for (packed,) in self._walk("entry"):
            yield self._compressors.unpack("entry", packed)

    def directories(self) -> Iterator[tuple[str, float]]:
        """The directory of each spilled trial that has one, and its ``finished_at``."""
        return self._walk("directory, settled_at", "AND directory IS NOT NULL")

    def _walk(
        self, columns: str, condition: str = "", table: str = "trial"
    ) -> Iterator[tuple[Any, ...]]:
        """All rows in order, a window at a time, so that other threads get in between."""
        after = -1
        query = f"SELECT seq, {columns} FROM {table} WHERE seq > ? {condition} ORDER BY seq LIMIT ?"
        while rows := self._all(query, (after, _WINDOW)):
            yield from (row[1:] for row in rows)
            after = rows[-1][0]

    def _select(self, rest: str, values: Sequence[object]) -> list[SpilledRow]:
        return [SpilledRow(*row) for row in self._all(f"SELECT {_ROW} FROM {rest}", values)]

    def _all(self, query: str, values: Sequence[object]) -> list[tuple[Any, ...]]:
        with self._lock:
            return self._connection.execute(query, tuple(values)).fetchall()


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
