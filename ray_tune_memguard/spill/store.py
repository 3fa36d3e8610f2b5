"""The trial store: one SQLite file that holds the state of every spilled trial.

Covers: durable rows, one per trial, indexed by position, id and status; rows go in by transaction,
so a killed driver leaves a store that is whole up to its last commit. Does not cover: what a row
means (``codec``), which objects wait for it (``ghost``).

Durability: write-ahead log with ``synchronous=NORMAL``. A commit survives the death of the process
at once; a power cut may take the last commits but never leaves a broken file. The file is locked
for as long as the sweep runs, so a second writer cannot mix its rows in.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ray_tune_memguard.spill.codec import Packer

#: "RTMG": marks the file as ours, see https://www.sqlite.org/pragma.html#pragma_application_id
APPLICATION_ID = 0x52544D47
SCHEMA_VERSION = 1

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE trial (
    seq INTEGER PRIMARY KEY,
    trial_id TEXT NOT NULL UNIQUE,
    status TEXT NOT NULL,
    has_error INTEGER NOT NULL,
    -- Of the trial's own files, and since when (seconds since the epoch) it does not write them.
    directory TEXT,
    settled_at REAL NOT NULL,
    state BLOB NOT NULL
);
CREATE INDEX trial_by_status ON trial (status, seq);
CREATE INDEX trial_by_directory ON trial (directory);
CREATE INDEX trial_with_error ON trial (seq) WHERE has_error;
"""
_CACHE_KIB = 1024
_WINDOW = 512


@dataclass(frozen=True)
class SpilledRow:
    """Where a spilled trial stands, without its state."""

    seq: int
    trial_id: str
    status: str


class TrialStore:
    """States of spilled trials, by ``seq`` (the trial's place in the sweep) and by ``trial_id``.

    Invariants: a state returned by :meth:`state` is byte for byte what :meth:`put` was given; after
    a failed :meth:`transaction` the store holds what it held before it.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection
        self._lock = threading.RLock()
        self._packer: Packer | None = None
        self._finalizer = weakref.finalize(self, connection.close)

    @classmethod
    def create(cls, directory: Path, name: str) -> TrialStore:
        """Make a new, empty store ``<directory>/<name>.sqlite``.

        A file that is already there, ours or not, is left alone: the new store is numbered
        (``<name>-1.sqlite``, …) beside it.

        Raises:
            OSError: the directory cannot be made or written.
            sqlite3.Error: the file cannot be set up (for example, no room for it).
        """
        directory.mkdir(parents=True, exist_ok=True)
        path = _claim_new_file(directory, name)
        # Each use is under the store's lock, so any thread may hold the connection.
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            # Exclusive before WAL: no shared-memory file, which network file systems lack.
            connection.execute("PRAGMA locking_mode=EXCLUSIVE")
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
            connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
            connection.executescript(_SCHEMA)
        except BaseException:
            connection.close()
            path.unlink(missing_ok=True)
            raise
        return cls(path, connection)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All rows put inside become durable together when the block ends, or none does.

        Raises:
            sqlite3.Error: the commit failed; the rows are not in the store.
        """
        with self._lock:
            had_packer = self._packer is not None
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                # SQLite may have rolled back by itself (a full disk does that).
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                if not had_packer:
                    self._packer = None
                raise

    def put(
        self,
        seq: int,
        trial_id: str,
        status: str,
        has_error: bool,
        raw: bytes,
        directory: str | None = None,
    ) -> None:
        """Add a trial's state, inside a :meth:`transaction`."""
        if self._packer is None:
            self._packer = Packer(raw)
            self._connection.execute(
                "INSERT INTO meta VALUES ('dictionary', ?)", (self._packer.dictionary,)
            )
        self._connection.execute(
            "INSERT INTO trial VALUES (?, ?, ?, ?, ?, ?, ?)",
            (seq, trial_id, status, has_error, directory, time.time(), self._packer.pack(raw)),
        )

    def replace(self, trial_id: str, status: str, has_error: bool, raw: bytes) -> None:
        """Write a changed state over the old one, inside a :meth:`transaction`."""
        assert self._packer is not None
        self._connection.execute(
            "UPDATE trial SET status = ?, has_error = ?, state = ? WHERE trial_id = ?",
            (status, has_error, self._packer.pack(raw), trial_id),
        )

    def delete(self, trial_id: str) -> None:
        with self._lock:
            self._connection.execute("DELETE FROM trial WHERE trial_id = ?", (trial_id,))

    def state(self, trial_id: str) -> bytes:
        """The state of a spilled trial.

        Raises:
            KeyError: no such trial is in the store.
        """
        with self._lock:
            row = self._connection.execute(
                "SELECT state FROM trial WHERE trial_id = ?", (trial_id,)
            ).fetchone()
            if row is None:
                raise KeyError(trial_id)
            assert self._packer is not None
            return self._packer.unpack(row[0])

    def rows(self, start: int, stop: int) -> list[SpilledRow]:
        """The spilled trials with ``start <= seq < stop``, in order."""
        return self._select("WHERE seq >= ? AND seq < ? ORDER BY seq", (start, stop))

    def row(self, trial_id: str) -> SpilledRow | None:
        return next(iter(self._select("WHERE trial_id = ?", (trial_id,))), None)

    def count(self, status: str) -> int:
        with self._lock:
            query = "SELECT count(*) FROM trial WHERE status = ?"
            return int(self._connection.execute(query, (status,)).fetchone()[0])

    def has_directory(self, directory: str) -> bool:
        """Whether this is the directory of a spilled trial."""
        with self._lock:
            query = "SELECT 1 FROM trial WHERE directory = ?"
            return self._connection.execute(query, (directory,)).fetchone() is not None

    def directories(self) -> Iterator[tuple[str, float]]:
        """The directory of each spilled trial that has one, and when the trial settled."""
        after = -1
        query = (
            "SELECT seq, directory, settled_at FROM trial "
            "WHERE seq > ? AND directory IS NOT NULL ORDER BY seq LIMIT ?"
        )
        while True:
            with self._lock:
                rows = self._connection.execute(query, (after, _WINDOW)).fetchall()
            if not rows:
                return
            yield from ((directory, settled_at) for _, directory, settled_at in rows)
            after = rows[-1][0]

    def with_error(self) -> list[SpilledRow]:
        """Trials that ever failed, those that ended well after a retry included."""
        return self._select("WHERE has_error ORDER BY seq", ())

    def with_status(self, status: str, after: int, limit: int) -> list[SpilledRow]:
        return self._select(
            "WHERE status = ? AND seq > ? ORDER BY seq LIMIT ?", (status, after, limit)
        )

    def _select(self, clause: str, values: tuple[object, ...]) -> list[SpilledRow]:
        with self._lock:
            found = self._connection.execute(
                f"SELECT seq, trial_id, status FROM trial {clause}", values
            )
            return [SpilledRow(*row) for row in found]

    def settle(self) -> None:
        """Fold the write-ahead log into the file and let other processes read it."""
        with self._lock:
            self._connection.execute("PRAGMA journal_mode=DELETE")
            self._connection.execute("PRAGMA locking_mode=NORMAL")
            self._connection.execute("SELECT count(*) FROM meta").fetchone()

    def close(self) -> None:
        self._finalizer()


def _claim_new_file(directory: Path, name: str) -> Path:
    """Make an empty file under a name that nobody has: O_EXCL decides, not a look beforehand."""
    number = 0
    while True:
        path = directory / (f"{name}-{number}.sqlite" if number else f"{name}.sqlite")
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644))
            return path
        except FileExistsError:
            number += 1
