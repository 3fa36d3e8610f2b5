"""The histories of an experiment: one SQLite file that holds every result of every trial.

It takes the place of a ``result.json``, a ``progress.csv`` and an event file for each trial. Runs
of an experiment share it: a resumed run continues it, as Ray continues a trial's ``result.json``.

A *chunk* is a row with some successive results of one trial. Results are committed in small chunks
soon after they are reported. When a trial has many of them, or has ended, they are merged into one
chunk, which is smaller (``result_columns``). This module does not interpret results.

Durability:

- Results that :meth:`HistoryStore.append` was given are in the store when it returns; if it raises,
  none of them is. From then on they survive the end of the process, also by SIGKILL. A power cut
  may lose those that were committed since the last :meth:`HistoryStore.sync`.
- A chunk and what it replaces change in one transaction.
- Each chunk has a checksum; a damaged one is left out when it is read, and said to be missing.

A *start* is a result with which a resumed run continued a trial. Loggers of that run would have
begun anew with it, and files are exported in the same pieces. A start with the number 0 says that
the trial's earlier results are elsewhere; without it, the trial began from scratch.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import threading
import weakref
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ray_tune_memguard.store import connection as connections
from ray_tune_memguard.store import files, result_columns
from ray_tune_memguard.store.errors import (
    EmptyStoreError,
    StoreError,
    damage_as_store_error,
    raise_if_unread,
)
from ray_tune_memguard.store.result_values import Result
from ray_tune_memguard.store.rows import Compressors, transaction
from ray_tune_memguard.store.schema import Schema, is_empty, pragma
from ray_tune_memguard.store.writer_lock import WriterLock

#: "RTMH", see ``schema.APPLICATION_ID``.
APPLICATION_ID = 0x52544D48
HISTORY_VERSION = 1
#: The name of the file, beside the trial stores.
FILE_NAME = f"histories{files.SUFFIX}"

# A trial with so many results, or bytes of them, in small chunks gets them merged.
_MAX_SMALL_RESULTS = 1024
_MAX_SMALL_BYTES = 1 << 20
_KIND = "result"
# The metadata key of the runs.
_RUNS = "runs"
# Before the id of a trial, the metadata key of `note_empty`.
_EMPTY_SINCE = "empty since"
_MAX_COPIES = 3
# With more free pages, which small chunks have left, a finished file is written anew without them.
_MIN_PAGES_PER_FREE = 8
# SQLite changes it when it begins a log anew, see https://www.sqlite.org/fileformat.html#walformat
_LOG_HEADER_BYTES = 32

_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE chunk (
    id INTEGER PRIMARY KEY,
    trial_id TEXT NOT NULL,
    -- The number of the trial's results before it, and in it.
    number INTEGER NOT NULL,
    count INTEGER NOT NULL,
    content BLOB NOT NULL,
    -- The checksum of all columns above except the id.
    checksum INTEGER NOT NULL
);
CREATE UNIQUE INDEX chunk_of_trial ON chunk (trial_id, number);
CREATE TABLE start (
    trial_id TEXT NOT NULL,
    number INTEGER NOT NULL,
    PRIMARY KEY (trial_id, number)
) WITHOUT ROWID;
"""

_SCHEMA = Schema("a file of histories", APPLICATION_ID, HISTORY_VERSION, _TABLES)


@dataclass(frozen=True)
class History:
    """The results of one trial.

    Attributes:
        results: as they were reported.
        starts: the indexes in ``results``, above 0, at which a resumed run continued it. It may
            have reported nothing yet.
        missing: the number of results that are damaged.
        has_earlier: whether earlier results may be elsewhere: those of a trial that was continued,
            and not begun from scratch, or whose first results are damaged.
        empty_since: when the trial was begun from scratch, in seconds since the epoch, if it has
            reported nothing since; None if that was not noted.
    """

    results: list[Result]
    starts: tuple[int, ...] = ()
    missing: int = 0
    has_earlier: bool = False
    empty_since: float | None = None


@dataclass(frozen=True)
class _Tail:
    """The small chunks at the end of an unfinished trial's history.

    Attributes:
        end: the number of the trial's results.
        begin: the number of results before the small chunks.
        chunks, size: the number of small chunks, and of bytes in their results.
    """

    end: int
    begin: int
    chunks: int = 0
    size: int = 0


class HistoryStore:
    """The histories of the trials of one experiment; the module docstring has the durability.

    What it keeps in memory is a few numbers for each trial that has reported and not ended.
    """

    def __init__(
        self, path: Path, connection: sqlite3.Connection, writer_lock: WriterLock | None = None
    ) -> None:
        self.path = path
        self._writer_lock = writer_lock
        self._connection = connection
        self._lock = threading.RLock()
        self._compressors = Compressors()
        self._compressors.read(connection)
        self._tails: dict[str, _Tail] = {}
        self._finalizer = weakref.finalize(
            self, connections.close, connection, os.getpid(), writer_lock
        )

    @classmethod
    def open_to_write(cls, path: Path) -> HistoryStore:
        """Open the store of an experiment, or create it. It is locked until :meth:`finalize`.

        Raises:
            OSError, sqlite3.OperationalError: it cannot be written, or a run is writing it.
            StoreError: it is damaged, or of another version.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = connections.lock_to_write(path)
        connection = None
        try:
            # Before SQLite locks the file: reading it ends that lock.
            is_whole = files.has_valid_seal(path)
            connection = connections.connect(path, mode="rwc")
            with damage_as_store_error():
                connections.prepare_to_write(connection)
                if is_empty(connection):
                    _SCHEMA.create(connection)
                else:
                    _SCHEMA.check(connection)
                    if not is_whole:
                        _check_pages(connection)
                # What is written from now on does not fit the seal.
                files.remove_seal(path)
                return cls(path, connection, lock)
        except BaseException:
            if connection is not None:
                connection.close()
            lock.release()
            raise

    @classmethod
    def open(cls, path: Path) -> HistoryStore:
        """Open a store for reading. Nothing on disk is changed.

        Raises:
            OSError: there is no such file, or it cannot be read.
            sqlite3.OperationalError: a run is writing it, or it cannot be read.
            StoreError: it is not such a store, damaged, or of another version.
        """
        if not path.stat().st_size:
            raise EmptyStoreError("it is empty")
        with damage_as_store_error():
            connection, _ = connections.connect_to_read(path)
            return cls._checked(path, connection)

    @classmethod
    def open_copy(cls, path: Path) -> HistoryStore:
        """Open a copy of a store that a run of another process is writing, as of this moment.

        Raises:
            OSError: it cannot be copied.
            sqlite3.OperationalError: the run moves its log into the file just now.
            StoreError: it is not such a store, or of another version.
        """
        for _ in range(_MAX_COPIES):
            before = _state_of(path)
            try:
                with damage_as_store_error():
                    store = cls._checked(path, connections.connect_to_copy(path))
            except (sqlite3.Error, StoreError):
                if _state_of(path) == before:
                    raise
                continue
            if _state_of(path) == before:
                return store
            store.close()
        raise sqlite3.OperationalError("database is locked")

    @classmethod
    def _checked(cls, path: Path, connection: sqlite3.Connection) -> HistoryStore:
        try:
            _SCHEMA.check(connection)
            return cls(path, connection)
        except BaseException:
            connection.close()
            raise

    # Writing.

    def append(
        self,
        results: Mapping[str, Sequence[bytes]],
        ended: Collection[str] = (),
        *,
        cleared: Collection[str] = (),
        starts: Mapping[str, int] | None = None,
    ) -> None:
        """Add results to the ends of histories, and commit them.

        Args:
            results: encoded results by trial id, each list in order and not empty.
            ended: ids of trials that report no more; their small chunks are merged.
            cleared: ids of trials that begin from scratch: what is stored of them is removed first.
            starts: trials that a resumed run continues: how many of these results come before.

        Raises:
            sqlite3.Error: nothing was changed.
        """
        with self._transaction():
            changed: dict[str, _Tail] = {}
            for trial_id in cleared:
                self._clear(trial_id)
                changed[trial_id] = _Tail(0, 0)
            for trial_id, offset in (starts or {}).items():
                start = (changed.get(trial_id) or self._tail(trial_id)).end + offset
                self._connection.execute(
                    "INSERT OR IGNORE INTO start VALUES (?, ?)", (trial_id, start)
                )
            for trial_id, rows in results.items():
                tail = changed.get(trial_id) or self._tail(trial_id)
                size = tail.size + sum(map(len, rows))
                is_full = (
                    tail.end + len(rows) - tail.begin >= _MAX_SMALL_RESULTS
                    or size >= _MAX_SMALL_BYTES
                )
                if is_full or trial_id in ended:
                    changed[trial_id] = self._merge(trial_id, tail, rows)
                else:
                    self._insert(trial_id, tail.end, rows)
                    end, chunks = tail.end + len(rows), tail.chunks + 1
                    changed[trial_id] = replace(tail, end=end, chunks=chunks, size=size)
            for trial_id in ended:
                tail = changed.get(trial_id) or self._tails.get(trial_id, _Tail(0, 0))
                if trial_id not in results and tail.chunks > 1:
                    self._merge(trial_id, tail, [])
        self._tails.update(changed)
        for trial_id in ended:
            self._tails.pop(trial_id, None)

    def rewrite(self, trial_id: str, rows: Sequence[bytes], starts: Collection[int]) -> None:
        """Replace the whole history of a trial, and commit it.

        Args:
            trial_id: the trial.
            rows: encoded results in order.
            starts: the numbers of results with which a resumed run continued it.

        Raises:
            sqlite3.Error: nothing was changed.
        """
        with self._transaction():
            self._clear(trial_id)
            for number in range(0, len(rows), _MAX_SMALL_RESULTS):
                self._insert(trial_id, number, rows[number : number + _MAX_SMALL_RESULTS])
            self._connection.executemany(
                "INSERT OR IGNORE INTO start VALUES (?, ?)", ((trial_id, start) for start in starts)
            )
        self._tails.pop(trial_id, None)

    def _clear(self, trial_id: str) -> None:
        for table in ("chunk", "start"):
            self._connection.execute(f"DELETE FROM {table} WHERE trial_id = ?", (trial_id,))

    def begin_run(self) -> None:
        """Note that another run writes from now on, see :meth:`has_runs_of`."""
        self.add_runs(secrets.token_hex(8))

    def add_runs(self, *runs: str) -> None:
        """Note that the results of these runs are here."""
        self.set_metadata(**{_RUNS: " ".join(dict.fromkeys([*self.runs(), *runs]))})

    def note_empty(self, trial_id: str, since: float) -> None:
        """Note that a trial was begun from scratch, and reported nothing.

        Args:
            trial_id: the trial.
            since: the time, in seconds since the epoch.
        """
        self.set_metadata(**{f"{_EMPTY_SINCE} {trial_id}": str(since)})

    def set_metadata(self, **values: str) -> None:
        """Store texts by name; they replace earlier ones of the same names."""
        with self._lock:
            self._connection.executemany(
                "INSERT OR REPLACE INTO meta VALUES (?, ?)", values.items()
            )

    def sync(self) -> None:
        """Sync all commits to the disk, so that they survive a power cut."""
        with self._lock:
            self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def finalize(self) -> None:
        """Move the write-ahead log into the file and let other processes read it.

        Raises:
            sqlite3.OperationalError: for example, the disk is full. All content is as durable as
                before.
        """
        with self._lock:
            if any(tail.chunks > 1 for tail in self._tails.values()):
                self.append({}, list(self._tails))
            connections.fold_log(self._connection)
            try:
                free, pages = (
                    int(pragma(self._connection, name) or 0)
                    for name in ("freelist_count", "page_count")
                )
                if free * _MIN_PAGES_PER_FREE > pages:
                    with suppress(
                        sqlite3.OperationalError
                    ):  # It only takes less room without them.
                        self._connection.execute("VACUUM")
                with suppress(OSError):  # Without it, opening to write checks all pages.
                    files.write_seal(self.path)
            finally:
                if self._writer_lock is not None:
                    self._writer_lock.release()

    def close(self) -> None:
        self._finalizer()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock, transaction(self._connection, self._compressors):
            yield

    def _tail(self, trial_id: str) -> _Tail:
        known = self._tails.get(trial_id)
        if known is None:
            # Of an earlier run: its chunks stay as they are.
            end = self.count(trial_id)
            known = _Tail(end, end)
        return known

    def _merge(self, trial_id: str, tail: _Tail, rows: Sequence[bytes]) -> _Tail:
        """Write the results of the small chunks, and these, as one chunk."""
        end = tail.end + len(rows)
        merged, number = list(rows), tail.end
        with suppress(ValueError):  # Damaged chunks stay as they are.
            merged, number = [*self._small_rows(trial_id, tail), *rows], tail.begin
            self._connection.execute(
                "DELETE FROM chunk WHERE trial_id = ? AND number >= ?", (trial_id, number)
            )
        if merged:
            self._insert(trial_id, number, merged)
        return _Tail(end, end)

    def _small_rows(self, trial_id: str, tail: _Tail) -> Iterator[bytes]:
        query = "SELECT content FROM chunk WHERE trial_id = ? AND number >= ? ORDER BY number"
        for (content,) in self._connection.execute(query, (trial_id, tail.begin)).fetchall():
            yield from result_columns.encoded_rows(content, self._decompress)

    def _insert(self, trial_id: str, number: int, rows: Sequence[bytes]) -> None:
        self._compressors.ensure(_KIND, rows[0], self._connection)
        content = result_columns.pack(rows, self._compress)
        checksum = _checksum(trial_id, number, len(rows), content)
        self._connection.execute(
            "INSERT INTO chunk (trial_id, number, count, content, checksum) VALUES (?, ?, ?, ?, ?)",
            (trial_id, number, len(rows), content, checksum),
        )

    def _compress(self, raw: bytes) -> bytes:
        return self._compressors.pack(_KIND, raw)

    def _decompress(self, packed: bytes) -> bytes:
        try:
            return self._compressors.unpack(_KIND, packed)
        except KeyError as error:
            raise ValueError("the dictionary is missing") from error

    # Reading. All methods raise `sqlite3.Error` if the store cannot be read now.

    def get_metadata(self, name: str) -> str | None:
        """The text of this name; None if there is none."""
        found = self._all("SELECT value FROM meta WHERE key = ?", (name,))
        return found[0][0] if found else None

    def runs(self) -> list[str]:
        """The ids of the runs whose results are here; none in a file of an earlier version."""
        return (self.get_metadata(_RUNS) or "").split()

    def has_runs_of(self, other: HistoryStore) -> bool:
        """Whether this is a later state of another file, or the same; False if that is unknown."""
        runs = other.runs()
        return bool(runs) and set(runs) <= set(self.runs())

    def count(self, trial_id: str) -> int:
        """The number of results of a trial; 0 if it is unknown."""
        query = "SELECT number + count FROM chunk WHERE trial_id = ? ORDER BY number DESC LIMIT 1"
        found = self._all(query, (trial_id,))
        return int(found[0][0]) if found else 0

    def history(self, trial_id: str) -> History:
        """All results of a trial, in order; none if it is unknown."""
        columns = "number, count, content, checksum"
        query = f"SELECT {columns} FROM chunk WHERE trial_id = ? ORDER BY number"
        results: list[Result] = []
        lost: list[range] = []
        end = 0
        for number, count, content, checksum in self._all(query, (trial_id,)):
            if number > end:
                lost.append(range(end, number))
            end = max(end, number + count)
            try:
                if _checksum(trial_id, number, count, content) != checksum:
                    raise ValueError("another checksum")
                results += result_columns.unpack(content, self._decompress)
            except (ValueError, TypeError):
                lost.append(range(number, number + count))
        query = "SELECT number FROM start WHERE trial_id = ? ORDER BY number"
        starts = [number for (number,) in self._all(query, (trial_id,))]
        indexes = (_index_without(lost, number) for number in starts)
        present = dict.fromkeys(min(index, len(results)) for index in indexes if index)
        has_earlier = 0 in starts or any(gap.start == 0 for gap in lost)
        missing = sum(map(len, lost))
        empty_since = None
        if not results and not missing:
            noted = self.get_metadata(f"{_EMPTY_SINCE} {trial_id}")
            empty_since = None if noted is None else float(noted)
        return History(results, tuple(present), missing, has_earlier, empty_since)

    def trial_ids(self) -> Iterator[str]:
        """The ids of all trials that have reported, in the order of their ids."""
        last = ""
        query = "SELECT DISTINCT trial_id FROM chunk WHERE trial_id > ? ORDER BY trial_id LIMIT 512"
        while found := self._all(query, (last,)):
            yield from (trial_id for (trial_id,) in found)
            last = found[-1][0]

    def _all(self, query: str, values: Sequence[object]) -> list[tuple[Any, ...]]:
        with self._lock:
            return self._connection.execute(query, tuple(values)).fetchall()


def salvage(damaged: Path) -> None:
    """Replace a damaged store by a new one with its intact chunks.

    The damaged file is kept, under a name that ends in ``.damaged``.

    Raises:
        OSError, sqlite3.Error: the new store cannot be written. The damaged one keeps its name.
    """
    fresh = _rebuilt(damaged)
    files.remove(fresh)
    target = HistoryStore.open_to_write(fresh)
    try:
        with suppress(StoreError):
            source = HistoryStore.open(damaged)
            _copy_intact(source, target)
            source.close()
        target.finalize()
    finally:
        target.close()
    files.set_aside(damaged)
    finish_salvage(damaged)


def finish_salvage(path: Path) -> None:
    """Give the new store of :func:`salvage` its name, also if a kill came before.

    Raises:
        OSError: it cannot be renamed.
    """
    fresh = _rebuilt(path)
    # The damaged one is set aside once the new one is complete.
    if fresh.exists() and not path.exists():
        files.remove(path)  # Its log, which belongs to the damaged one.
        fresh.rename(path)
        files.remove(fresh)


def _rebuilt(path: Path) -> Path:
    return path.with_name(f"{path.stem}-rebuilt{files.SUFFIX}")


def _copy_intact(source: HistoryStore, target: HistoryStore) -> None:
    columns = "trial_id, number, count, content, checksum"
    with target._transaction():
        target._compressors.ensure_like(source._compressors, _KIND, target._connection)
        # From both ends, since reading stops at a damaged page.
        for order in ("ASC", "DESC"):
            with suppress(StoreError), damage_as_store_error():
                for row in source._connection.execute(
                    f"SELECT {columns} FROM chunk ORDER BY id {order}"
                ):
                    with suppress(TypeError, AttributeError):
                        if _checksum(*row[:-1]) == row[-1]:
                            target._connection.execute(
                                f"INSERT OR IGNORE INTO chunk ({columns}) VALUES (?, ?, ?, ?, ?)",
                                row,
                            )
        with suppress(StoreError), damage_as_store_error():
            starts = source._connection.execute("SELECT * FROM start").fetchall()
            target._connection.executemany("INSERT OR IGNORE INTO start VALUES (?, ?)", starts)
        with suppress(StoreError), damage_as_store_error():
            # The dictionaries, which are bytes, have their own copies.
            metadata = source._connection.execute(
                "SELECT key, value FROM meta WHERE typeof(value) = 'text'"
            ).fetchall()
            target._connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", metadata)


def _index_without(lost: Sequence[range], number: int) -> int:
    """The index of a result among those that are not lost, given its number among all."""
    return number - sum(min(number, gap.stop) - gap.start for gap in lost if gap.start < number)


def _check_pages(connection: sqlite3.Connection) -> None:
    found = str(pragma(connection, "quick_check(1)"))
    if found != "ok":
        raise_if_unread(found)
        raise StoreError(found)


def _state_of(path: Path) -> tuple[int, int, bytes]:
    """What changes when SQLite moves the log into the file; not when it appends to the log."""
    status = path.stat()
    header = b""
    with suppress(FileNotFoundError), path.with_name(f"{path.name}-wal").open("rb") as log:
        header = log.read(_LOG_HEADER_BYTES)
    return status.st_size, status.st_mtime_ns, header


def _checksum(trial_id: str, number: int, count: int, content: bytes) -> int:
    return zlib.crc32(content, zlib.crc32(f"{trial_id} {number} {count}".encode()))
