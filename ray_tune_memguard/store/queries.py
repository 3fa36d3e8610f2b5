"""Reads the rows of a trial store."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from ray_tune_memguard.store.rows import Compressors
from ray_tune_memguard.store.schema import SUMMARY

# Rows that are read at once: a compromise between memory and time.
_WINDOW = 512
_ROW = "seq, trial_id, status"


class SpilledRow(NamedTuple):
    """A spilled trial's position, id and status, without its state."""

    position: int
    trial_id: str
    status: str


class TrialQueries:
    """The queries of the rows, by ``position`` in the run and by ``trial_id``.

    All methods raise ``sqlite3.Error`` if the store cannot be read now.
    """

    def __init__(self, connection: sqlite3.Connection, *, has_states: bool) -> None:
        self._connection = connection
        self._lock = threading.RLock()
        self._compressors = Compressors()
        # The states of an opened store belong to another process or to another run.
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

    def has_state(self, trial_id: str) -> bool:
        """Whether :meth:`state` returns one.

        Raises:
            KeyError: no such trial is in the store.
        """
        return self._has_states and bool(self._value("state IS NOT NULL", trial_id))

    def directory(self, trial_id: str) -> str | None:
        """The name of a spilled trial's directory; None if it has none.

        Raises:
            KeyError: no such trial is in the store.
        """
        name: str | None = self._value("directory", trial_id)
        return name

    def state_record(self, trial_id: str) -> bytes:
        """The state record of a spilled trial, as in the experiment state file.

        Raises:
            KeyError: no such trial is in the store.
        """
        return self._compressors.unpack("entry", self._value("entry", trial_id))

    def _value(self, column: str, trial_id: str) -> Any:
        found = self._all(f"SELECT {column} FROM trial WHERE trial_id = ?", (trial_id,))
        if not found:
            raise KeyError(trial_id)
        return found[0][0]

    # Some trials.

    def states(self, positions: Sequence[int]) -> list[bytes | None]:
        """The :meth:`state` of the trial at each of some hundred positions.

        Raises:
            KeyError: no trial is at one of them.
        """
        if not self._has_states:
            return [None] * len(positions)
        query = f"SELECT seq, state FROM trial WHERE seq IN ({', '.join('?' * len(positions))})"
        found = dict(self._all(query, positions))
        unpack = self._compressors.unpack
        return [
            None if (state := found[position]) is None else unpack("state", state)
            for position in positions
        ]

    def rows(self, start: int, stop: int) -> list[SpilledRow]:
        """The spilled trials with ``start <= position < stop``, in order."""
        return self._select("trial WHERE seq >= ? AND seq < ? ORDER BY seq", (start, stop))

    def with_error(self) -> list[SpilledRow]:
        """Trials that ever failed, including those that completed after a retry."""
        return self._select("trial WHERE has_error ORDER BY seq", ())

    def with_status(self, status: str, after: int, limit: int) -> list[SpilledRow]:
        """At most ``limit`` trials of a status with a higher position than ``after``, in order."""
        return self._select(
            f"{SUMMARY} WHERE status = ? AND seq > ? ORDER BY seq LIMIT ?", (status, after, limit)
        )

    def created_since(self, creation_index: int) -> list[tuple[int, SpilledRow]]:
        """Trials from this ``creation_index`` on, each with its own, in that order."""
        query = f"SELECT birth, {_ROW} FROM {SUMMARY} WHERE birth >= ? ORDER BY birth"
        found = self._all(query, (creation_index,))
        return [(row[0], SpilledRow(*row[1:])) for row in found]

    def to_resume(self, statuses: Iterable[str] = ()) -> list[SpilledRow]:
        """Trials that were to be resumed when the run ended, and those with these statuses."""
        wanted = list(statuses)
        marks = ", ".join("?" * len(wanted))
        return self._select(f"{SUMMARY} WHERE resumes OR status IN ({marks}) ORDER BY seq", wanted)

    def known_directories(self, names: Sequence[str]) -> set[str]:
        """Those of the names, some hundreds at most, that are directories of spilled trials."""
        # No trial here has a directory whose name is not text.
        asked = [name for name in names if _is_text(name)]
        query = f"SELECT directory FROM trial WHERE directory IN ({', '.join('?' * len(asked))})"
        return {name for (name,) in self._all(query, asked)}

    # All trials.

    def count(self, status: str) -> int:
        """The number of spilled trials with this status."""
        [(count,)] = self._all(f"SELECT count(*) FROM {SUMMARY} WHERE status = ?", (status,))
        return int(count)

    def extent(self) -> tuple[int, int]:
        """The number of spilled trials, and their highest ``position``; -1 without any."""
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
        """All rows in order, a window at a time, so that other threads can use the store."""
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
