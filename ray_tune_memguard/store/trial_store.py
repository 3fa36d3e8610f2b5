"""The trial store: one SQLite file that holds the state of every spilled trial.

Covers: durable rows, one per trial, indexed by position and id, and the last *snapshot* of
the rest of the sweep (what an experiment checkpoint consists of beside its finished trials). Both
go in by transaction, so a killed driver leaves a store that is whole up to its last commit. Does
not cover: what a row or a snapshot means (``codec``, ``snapshot``), which objects wait for a row
(``ghost``).

Durability: write-ahead log with ``synchronous=NORMAL``. A commit survives the death of the process
at once. It is on the disk itself when the log was synced: at every snapshot. A power cut may so
take what was committed since, but never leaves a broken file. The file is locked for as long as the
sweep runs, so a second writer cannot mix its rows in.

Opening a store does not write to it, or to anything beside it: a store on a full or read-only disk,
or one of somebody else's, can be read. The rows of a killed sweep that are still in its log are
read from a private copy, because SQLite reads a log only where it may write.
"""

from __future__ import annotations

import shutil
import sqlite3
import threading
import time
import weakref
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ray_tune_memguard.store import files
from ray_tune_memguard.store.compression import DictionaryCompressor, pack, unpack
from ray_tune_memguard.store.errors import (
    EmptyStoreError,
    StoreError,
    UnsupportedVersionError,
    damage_as_store_error,
    is_damage,
    is_locked,
    raise_if_unread,
)

#: "RTMG": marks the file as ours, see https://www.sqlite.org/pragma.html#pragma_application_id
APPLICATION_ID = 0x52544D47
SCHEMA_VERSION = 5

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
-- The last experiment checkpoint, without its finished trials, by part.
CREATE TABLE snapshot (part TEXT PRIMARY KEY, content BLOB NOT NULL, checksum INTEGER NOT NULL);
CREATE TABLE trial (
    seq INTEGER PRIMARY KEY,
    trial_id TEXT NOT NULL UNIQUE,
    status TEXT NOT NULL,
    has_error INTEGER NOT NULL,
    -- Of the trial's own files, and since when (seconds since the epoch) it does not write them.
    directory TEXT,
    settled_at REAL NOT NULL,
    -- When it last reported, by which a restored sweep is ordered.
    reported_at REAL NOT NULL,
    -- How many trials this run of the sweep had made before it; -1 if an earlier run made it.
    birth INTEGER NOT NULL,
    -- Whether the entry says that it is to be resumed: it was paused when the sweep ended.
    resumes INTEGER NOT NULL,
    -- What the experiment state file holds of it, for any process; and of all the above.
    entry BLOB NOT NULL,
    checksum INTEGER NOT NULL,
    -- The object itself, for the process that wrote it.
    state BLOB
);
CREATE INDEX trial_by_directory ON trial (directory);
CREATE INDEX trial_with_error ON trial (seq) WHERE has_error;
-- What is asked of all trials at once, without their states between.
CREATE INDEX trial_words ON trial (seq, trial_id, status, reported_at, birth, resumes);
"""
# Under which the dictionary of each packer is kept, behind its checksum.
_DICTIONARIES = ("dictionary", "spare dictionary")
# What of a row, in this order, its checksum is made of.
_COVERED = "trial_id, status, has_error, directory, settled_at, reported_at, birth, resumes, entry"
_WORDS = "trial INDEXED BY trial_words"
_CACHE_KIB = 1024
# Snapshots come sooner than a log of this length, 32 MiB, and sync it; spills should not wait.
_LOG_PAGES = 8192
_WINDOW = 512
_LOCK_WAIT_S = 2.0


@dataclass(frozen=True)
class SpilledRow:
    """Where a spilled trial stands, without its state."""

    position: int
    trial_id: str
    status: str


@dataclass(slots=True)
class TrialRow:
    """All that is written of a trial but its ``position``. ``entry`` is text until it is packed.

    Times in seconds since the epoch; ``creation_index``: how many trials the run had made before
    this one; ``resumes``: to a restore it is unfinished.
    """

    trial_id: str
    status: str
    has_error: bool
    entry: bytes
    directory: str | None = None
    settled_at: float = field(default_factory=time.time)
    reported_at: float = float("-inf")
    creation_index: int = -1
    resumes: bool = False
    state: bytes | None = None

    def created_at_index(self, creation_index: int) -> TrialRow:
        return replace(self, creation_index=creation_index)


class TrialStore:
    """States of spilled trials, by ``position`` in the sweep and by ``trial_id``.

    Invariants: what :meth:`state` and :meth:`entry` return is byte for byte what :meth:`put` was
    given; after a failed :meth:`transaction` the store holds what it held before it.
    """

    def __init__(
        self, path: Path, connection: sqlite3.Connection, *, is_copy: bool = False
    ) -> None:
        self.path = path
        # Whether what is read is a copy of the file, with the rows of its log.
        self._is_copy = is_copy
        self._connection = connection
        self._lock = threading.RLock()
        self._packers: dict[str, DictionaryCompressor] = {}
        # Of a store that was opened, the states are another process's, or another sweep's.
        self._has_states = True
        # What was found wrong on opening.
        self._damage: str | None = None
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
        path = files.claim_new_file(directory, name)
        connection = None
        try:
            connection = _connect(path)
            # Exclusive before WAL: no shared-memory file, which network file systems lack.
            connection.execute("PRAGMA locking_mode=EXCLUSIVE")
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
            connection.execute(f"PRAGMA wal_autocheckpoint={_LOG_PAGES}")
            # In one transaction: a killed driver leaves a store or an empty file.
            connection.executescript(
                f"BEGIN IMMEDIATE; PRAGMA application_id={APPLICATION_ID}; "
                f"PRAGMA user_version={SCHEMA_VERSION}; {_SCHEMA} COMMIT;"
            )
        except BaseException:
            if connection is not None:
                connection.close()
            files.remove(path)
            raise
        return cls(path, connection)

    @classmethod
    def open(cls, path: Path) -> TrialStore:
        """Open a store that a sweep left behind, however it ended. Nothing on disk is changed.

        Raises:
            OSError: there is no such file, or it cannot be read.
            sqlite3.OperationalError: its sweep is still running, or it cannot be read.
            EmptyStoreError: nothing was committed to it.
            StoreError: it is not a store, or damaged beyond opening.
            UnsupportedVersionError: it is a store of another version.
        """
        if not path.stat().st_size:
            raise EmptyStoreError("it is empty")
        with damage_as_store_error():
            connection, is_copy = _connect_to_read(path)
            try:
                _check_kind(connection)
                connection.execute("PRAGMA query_only=ON")
                connection.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
                store = cls(path, connection, is_copy=is_copy)
                store._has_states = False
                store._read_dictionaries()
            except BaseException:
                connection.close()
                raise
        return store

    def _read_dictionaries(self) -> None:
        for name in _DICTIONARIES:
            query = "SELECT key, value FROM meta WHERE key LIKE ?"
            for key, value in self._connection.execute(query, (f"{name} of %",)):
                kind = key.removeprefix(f"{name} of ")
                if zlib.crc32(value[4:]) != int.from_bytes(value[:4], "big"):
                    self._damage = f"the {key} is not as it was written"
                else:
                    self._packers.setdefault(kind, DictionaryCompressor(value[4:]))

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All rows put inside become durable together when the block ends, or none does.

        Raises:
            sqlite3.Error: the commit failed; the rows are not in the store.
        """
        with self._lock:
            packers = dict(self._packers)
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                # SQLite may have rolled back by itself (a full disk does that).
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                self._packers = packers
                raise

    # Rows.

    def put(self, position: int, row: TrialRow) -> None:
        """Add a trial, inside a :meth:`transaction`."""
        entry = self._packer("entry", row.entry).pack(row.entry)
        state = row.state and self._packer("state", row.state).pack(row.state)
        covered = (
            row.trial_id,
            row.status,
            int(row.has_error),
            row.directory,
            float(row.settled_at),
            float(row.reported_at),
            row.creation_index,
            int(row.resumes),
            entry,
        )
        self._connection.execute(
            "INSERT INTO trial VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (position, *covered, _checksum(covered), state),
        )

    def _packer(self, kind: str, first: bytes) -> DictionaryCompressor:
        if kind not in self._packers:
            packer = self._packers[kind] = DictionaryCompressor(first)
            # Twice: without it nothing else can be read.
            value = zlib.crc32(packer.dictionary).to_bytes(4, "big") + packer.dictionary
            self._connection.executemany(
                "INSERT INTO meta VALUES (?, ?)",
                ((f"{name} of {kind}", value) for name in _DICTIONARIES),
            )
        return self._packers[kind]

    def copy_rows(self, source: TrialStore, positions: Iterable[tuple[int, int]]) -> None:
        """Take rows of another store as they are packed, inside a :meth:`transaction`.

        ``positions``: pairs of ``position`` there and here. States, good for one process only,
        stay behind, and to this store the trials were created before it. This store must be empty.
        """
        if "entry" in source._packers:
            self._packer("entry", source._packers["entry"].dictionary)
        query = f"SELECT {_COVERED} FROM trial WHERE seq = ?"
        with source._lock:
            self._connection.executemany(
                "INSERT INTO trial VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL)",
                (
                    (here, *_taken_over(source._connection.execute(query, (there,)).fetchone()))
                    for there, here in positions
                ),
            )

    def replace(self, trial_id: str, status: str, has_error: bool, raw: bytes) -> None:
        """Write a changed state over the old one, inside a :meth:`transaction`.

        Raises:
            KeyError: no such trial is in the store.
        """
        found = self._connection.execute(
            f"SELECT {_COVERED} FROM trial WHERE trial_id = ?", (trial_id,)
        ).fetchone()
        if found is None:
            raise KeyError(trial_id)
        self._connection.execute(
            "UPDATE trial SET status = ?, has_error = ?, checksum = ?, state = ? "
            "WHERE trial_id = ?",
            (
                status,
                has_error,
                _checksum((trial_id, status, int(has_error), *found[3:])),
                self._packer("state", raw).pack(raw),
                trial_id,
            ),
        )

    def delete(self, trial_id: str) -> None:
        with self._lock:
            self._connection.execute("DELETE FROM trial WHERE trial_id = ?", (trial_id,))

    def state(self, trial_id: str) -> bytes | None:
        """The state of a spilled trial; None if another process wrote it.

        Raises:
            KeyError: no such trial is in the store.
        """
        packed = self._value("state", trial_id) if self._has_states else None
        return None if packed is None else self._packers["state"].unpack(packed)

    def entry(self, trial_id: str) -> bytes:
        """What the experiment state file holds of a spilled trial.

        Raises:
            KeyError: no such trial is in the store.
        """
        return self._packers["entry"].unpack(self._value("entry", trial_id))

    def _value(self, column: str, trial_id: str) -> bytes:
        with self._lock:
            row = self._connection.execute(
                f"SELECT {column} FROM trial WHERE trial_id = ?", (trial_id,)
            ).fetchone()
        if row is None:
            raise KeyError(trial_id)
        value: bytes = row[0]
        return value

    def entries(self) -> Iterator[bytes]:
        """The entries of all spilled trials, in order."""
        for (packed,) in self._walk("entry"):
            yield self._packers["entry"].unpack(packed)

    def rows(self, start: int, stop: int) -> list[SpilledRow]:
        """The spilled trials with ``start <= position < stop``, in order."""
        return self._select("WHERE seq >= ? AND seq < ? ORDER BY seq", (start, stop))

    def row(self, trial_id: str) -> SpilledRow | None:
        return next(iter(self._select("WHERE trial_id = ?", (trial_id,))), None)

    def count(self, status: str) -> int:
        with self._lock:
            query = f"SELECT count(*) FROM {_WORDS} WHERE status = ?"
            return int(self._connection.execute(query, (status,)).fetchone()[0])

    def known_directories(self, names: Sequence[str]) -> set[str]:
        """Which of these, some hundreds at most, are directories of spilled trials."""
        # A name that is not text is none of a trial that is here.
        asked = [name for name in names if _is_text(name)]
        query = f"SELECT directory FROM trial WHERE directory IN ({', '.join('?' * len(asked))})"
        with self._lock:
            return {name for (name,) in self._connection.execute(query, asked)}

    def directories(self) -> Iterator[tuple[str, float]]:
        """The directory of each spilled trial that has one, and when the trial settled."""
        return self._walk("directory, settled_at", "AND directory IS NOT NULL")

    def with_error(self) -> list[SpilledRow]:
        """Trials that ever failed, those that ended well after a retry included."""
        return self._select("WHERE has_error ORDER BY seq", ())

    def with_status(self, status: str, after: int, limit: int) -> list[SpilledRow]:
        query = (
            f"SELECT seq, trial_id, status FROM {_WORDS} "
            "WHERE status = ? AND seq > ? ORDER BY seq LIMIT ?"
        )
        with self._lock:
            found = self._connection.execute(query, (status, after, limit)).fetchall()
        return [SpilledRow(*row) for row in found]

    def created_since(self, creation_index: int) -> list[tuple[int, SpilledRow]]:
        """Trials with this ``creation_index`` or a later one, with it, in that order."""
        query = f"SELECT birth, seq, trial_id, status FROM {_WORDS} WHERE birth >= ? ORDER BY birth"
        with self._lock:
            found = self._connection.execute(query, (creation_index,)).fetchall()
        return [(row[0], SpilledRow(*row[1:])) for row in found]

    def report_times(self) -> Iterator[tuple[float, int, str, str]]:
        """``reported_at``, ``position``, id and status of all spilled trials, in order."""
        return self._walk("reported_at, seq, trial_id, status", table=_WORDS)

    def to_resume(self, statuses: Iterable[str] = ()) -> list[SpilledRow]:
        """Trials that were to be resumed when the sweep ended, and those with these statuses."""
        marks = list(statuses)
        query = (
            f"SELECT seq, trial_id, status FROM {_WORDS} "
            f"WHERE resumes OR status IN ({', '.join('?' * len(marks))}) ORDER BY seq"
        )
        with self._lock:
            return [SpilledRow(*row) for row in self._connection.execute(query, marks)]

    def extent(self) -> tuple[int, int]:
        """How many trials there are, and the highest ``position``; -1 without any."""
        with self._lock:
            total, last = self._connection.execute(
                f"SELECT count(*), max(seq) FROM {_WORDS}"
            ).fetchone()
        return total, -1 if last is None else last

    def positions(self) -> Iterator[int]:
        return (position for (position,) in self._walk("seq", table=_WORDS))

    def _walk(
        self, columns: str, condition: str = "", table: str = "trial"
    ) -> Iterator[tuple[Any, ...]]:
        """All rows in order, a window at a time, so that others get in between."""
        after = -1
        query = f"SELECT seq, {columns} FROM {table} WHERE seq > ? {condition} ORDER BY seq LIMIT ?"
        while True:
            with self._lock:
                rows = self._connection.execute(query, (after, _WINDOW)).fetchall()
            if not rows:
                return
            yield from (row[1:] for row in rows)
            after = rows[-1][0]

    def _select(self, clause: str, values: tuple[object, ...]) -> list[SpilledRow]:
        with self._lock:
            found = self._connection.execute(
                f"SELECT seq, trial_id, status FROM trial {clause}", values
            )
            return [SpilledRow(*row) for row in found]

    # The snapshot, and what else is said of the sweep.

    def save_snapshot(self, parts: dict[str, bytes]) -> None:
        """Put these parts in the place of the last snapshot, and all that is committed on disk.

        Raises:
            sqlite3.Error: it was not saved; the last one is still there.
        """
        packed = {part: pack(content) for part, content in parts.items()}
        with self.transaction():
            self._connection.execute("DELETE FROM snapshot")
            self._connection.executemany(
                "INSERT INTO snapshot VALUES (?, ?, ?)",
                ((part, content, zlib.crc32(content)) for part, content in packed.items()),
            )
        with self._lock:
            self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def has_snapshot(self) -> bool:
        with self._lock:
            return self._connection.execute("SELECT 1 FROM snapshot").fetchone() is not None

    def snapshot(self) -> dict[str, bytes]:
        """The parts of the last snapshot; empty if none was saved.

        Raises:
            StoreError: it is damaged.
        """
        with self._lock, damage_as_store_error():
            rows = self._connection.execute("SELECT * FROM snapshot").fetchall()
        for part, content, checksum in rows:
            if zlib.crc32(content) != checksum:
                raise StoreError(f"its snapshot is damaged ({part})")
        return {part: unpack(content) for part, content, _ in rows}

    def note(self, **facts: str) -> None:
        """Keep these words about the sweep, over earlier ones of the same name."""
        with self._lock:
            self._connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", facts.items())

    def fact(self, name: str) -> str | None:
        with self._lock:
            query = "SELECT value FROM meta WHERE key = ?"
            found = self._connection.execute(query, (name,)).fetchone()
        return found and found[0]

    # Damage.

    def damage(self) -> str | None:
        """What is wrong with the rows of an opened store; None if each is as it was written.

        Raises:
            sqlite3.OperationalError: they cannot be read.
        """
        if self._damage is not None:
            return self._damage
        if not self._is_copy and files.has_valid_seal(self.path):
            return None
        try:
            with damage_as_store_error():
                return self._look_at_all_rows()
        except StoreError as error:
            return str(error)

    def _look_at_all_rows(self) -> str | None:
        # Its indexes as well: what is asked of all rows is answered by one.
        found = str(_pragma(self._connection, "integrity_check(1)"))
        if found != "ok":
            raise_if_unread(found)
            return found
        bad = total = 0
        for *covered, checksum in self._walk(f"{_COVERED}, checksum"):
            total += 1
            bad += not _is_whole(covered, checksum)
        return f"{bad} of {total} trials are damaged" if bad else None

    def salvage(self) -> Iterator[TrialRow]:
        """The rows of a damaged store that are whole, from both ends.

        Raises:
            sqlite3.OperationalError: the store cannot be read, so there may be more.
        """
        seen: set[str] = set()
        for order in ("ASC", "DESC"):
            query = f"SELECT {_COVERED}, checksum FROM trial ORDER BY seq {order}"
            with suppress(StoreError), damage_as_store_error():
                for *covered, checksum in self._connection.execute(query):
                    trial_id, status, has_error, directory, settled_at, reported_at = covered[:6]
                    try:
                        if trial_id in seen or not _is_whole(covered, checksum):
                            continue
                        text = self._packers["entry"].unpack(covered[-1])
                    except (KeyError, TypeError, AttributeError, ValueError):
                        continue
                    seen.add(trial_id)
                    yield TrialRow(
                        trial_id, status, has_error, text, directory, settled_at, reported_at
                    )

    def settle(self) -> None:
        """Fold the write-ahead log into the file and let other processes read it.

        It is sealed, by which :meth:`damage` tells at the speed of the disk that it is whole.
        """
        with self._lock:
            self._connection.execute("PRAGMA journal_mode=DELETE")
            self._connection.execute("PRAGMA locking_mode=NORMAL")
            self._connection.execute("SELECT count(*) FROM meta").fetchone()
            with suppress(OSError):  # Without it every row is looked at, which takes longer.
                files.write_seal(self.path)

    def close(self) -> None:
        self._finalizer()


def _connect(path: Path, wait_s: float = _LOCK_WAIT_S, mode: str = "rw") -> sqlite3.Connection:
    # Each use is under the store's lock, so any thread may hold the connection.
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=wait_s,
    )


def _connect_to_read(path: Path) -> tuple[sqlite3.Connection, bool]:
    """A connection that reads all that was committed to a file, and whether it reads a copy.

    Raises:
        OSError: the file cannot be copied.
        sqlite3.DatabaseError: its sweep is still running, or it cannot be read, or is damaged.
    """
    connection = _connect(path, wait_s=0, mode="ro")
    try:
        # Exclusive, so that SQLite does not make a file for shared memory beside a log.
        connection.execute("PRAGMA locking_mode=EXCLUSIVE")
        _pragma(connection, "application_id")
        connection.execute("PRAGMA locking_mode=NORMAL")
        _pragma(connection, "application_id")
        # What it was when its sweep ended may be changed later, for a moment each time.
        connection.execute(f"PRAGMA busy_timeout={_LOCK_WAIT_S * 1000:.0f}")
        return connection, False
    except sqlite3.DatabaseError as error:
        connection.close()
        if is_locked(error) or is_damage(error):
            raise
    # Nobody writes it, and with read access alone SQLite refuses: there is a log to be read.
    copy = files.copy_privately(path)
    connection = _connect(copy)
    try:
        connection.execute("PRAGMA locking_mode=EXCLUSIVE")
        _pragma(connection, "application_id")
    except BaseException:
        connection.close()
        raise
    finally:
        # It is read as long as it is open, and leaves nothing behind.
        shutil.rmtree(copy.parent, ignore_errors=True)
    return connection, True


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _pragma(connection: sqlite3.Connection, name: str) -> Any:
    return connection.execute(f"PRAGMA {name}").fetchone()[0]


def _check_kind(connection: sqlite3.Connection) -> None:
    """Raise an error unless it is a trial store of this version."""
    if connection.execute("SELECT 1 FROM sqlite_master").fetchone() is None:
        raise EmptyStoreError("it is empty")
    if _pragma(connection, "application_id") != APPLICATION_ID:
        raise StoreError("it is not a trial store, or its first bytes are damaged")
    version = _pragma(connection, "user_version")
    if version != SCHEMA_VERSION:
        raise UnsupportedVersionError(f"it is of version {version}, this is {SCHEMA_VERSION}")


def _checksum(covered: Sequence[Any]) -> int:
    """Of a row's packed entry and of what stands beside it, as SQLite gives them."""
    *words, entry = covered
    return zlib.crc32(entry, zlib.crc32(repr(words).encode()))


def _is_whole(covered: Sequence[Any], checksum: Any) -> bool:
    try:
        return _checksum(covered) == checksum
    except (TypeError, ValueError):  # Even what sort of values they are was changed.
        return False


def _taken_over(covered: Sequence[Any]) -> tuple[Any, ...]:
    """A row of another store; to this one it is not new, and is not to be resumed."""
    *words, _, _, entry = covered
    here = (*words, -1, 0, entry)
    return *here, _checksum(here)
