"""The trial store: one SQLite file that holds the state of every spilled trial of a run.

It has a row for each finished trial, indexed by position and id, and the last *snapshot*: the
experiment checkpoint without its finished trials. This module does not interpret rows and
snapshots.

Durability:

- Rows that are put in one transaction are in the store when :meth:`TrialStore.transaction` ends
  without an error; if it raises, none of them is. From then on they survive the end of the process,
  also by SIGKILL, because the operating system has the write-ahead log.
- They survive a power cut once the log was synced, at the next :meth:`TrialStore.save_snapshot`. A
  power cut may lose rows that were committed since, the newest first. It never leaves a broken
  file: each frame of the log has a checksum, and SQLite stops at the first frame whose checksum is
  wrong.
- The rows of a resumed run's earlier trials, in the :meth:`TrialStore.first_transaction`, go into
  the file itself, and survive a power cut from then on.
- A snapshot replaces the last one in one transaction.
- :meth:`TrialStore.finalize` moves all content into one plain file. If a full disk or a kill
  interrupts it, it leaves the file and the log, which together are as complete as before.
- Opening a store changes nothing on disk (``connection``). An error while reading counts as damage
  only if SQLite reports that the content is damaged (``errors``). A damaged store is renamed, with
  its log, and only after another store has all its intact rows (``files.set_aside``).
"""

from __future__ import annotations

import os
import sqlite3
import weakref
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path

from ray_tune_memguard.store import files, integrity, rows
from ray_tune_memguard.store.compression import pack, unpack
from ray_tune_memguard.store.connection import (
    attached,
    close,
    connect,
    connect_to_read,
    fold_log,
    lock_to_write,
    prepare_to_write,
    without_log,
)
from ray_tune_memguard.store.errors import (
    EmptyStoreError,
    StoreError,
    damage_as_store_error,
)
from ray_tune_memguard.store.queries import SpilledRow, TrialQueries
from ray_tune_memguard.store.rows import TrialRow
from ray_tune_memguard.store.schema import COVERED, TRIALS
from ray_tune_memguard.store.writer_lock import WriterLock

__all__ = ["SpilledRow", "TrialRow", "TrialStore"]

# More of them (7 KB each) leave the processor's cache, and malloc maps new pages for each block:
# with 256 a restore takes half as long again.
_RECORDS_AT_ONCE = 16


class TrialStore(TrialQueries):
    """The rows and the snapshot of one run; the module docstring describes their durability.

    Invariant: :meth:`state` and :meth:`state_record` return exactly the bytes that :meth:`put` was
    given.
    """

    def __init__(
        self,
        path: Path,
        connection: sqlite3.Connection,
        *,
        has_states: bool = True,
        is_copy: bool = False,
        writer_lock: WriterLock | None = None,
    ) -> None:
        super().__init__(connection, has_states=has_states)
        self.path = path
        # Whether the connection reads a copy of the file and its log.
        self._is_copy = is_copy
        self._writer_lock = writer_lock
        self._finalizer = weakref.finalize(self, close, connection, os.getpid(), writer_lock)

    @classmethod
    def create(cls, directory: Path, name: str) -> TrialStore:
        """Create an empty store ``<directory>/<name>.sqlite``.

        An existing file of this name stays as it is; the new store then gets a number
        (``<name>-1.sqlite``, …).

        Raises:
            OSError: the directory cannot be created or written.
            sqlite3.Error: the file cannot be initialized; for example, the disk is full.
        """
        directory.mkdir(parents=True, exist_ok=True)
        path = files.claim_new_file(directory, name)
        connection = lock = None
        try:
            lock = lock_to_write(path)
            connection = connect(path)
            prepare_to_write(connection)
            TRIALS.create(connection)
        except BaseException:
            if connection is not None:
                connection.close()
            files.remove(path)
            if lock is not None:
                lock.release()
            raise
        return cls(path, connection, writer_lock=lock)

    @classmethod
    def open(cls, path: Path) -> TrialStore:
        """Open a store that a run left behind, however it ended. Nothing on disk is changed.

        Raises:
            OSError: there is no such file, or it cannot be read.
            sqlite3.OperationalError: its run is not over, or it cannot be read.
            EmptyStoreError: it has no commit.
            StoreError: it is not a store, or too damaged to be opened.
            UnsupportedVersionError: it is a store of another version.
        """
        if not path.stat().st_size:
            raise EmptyStoreError("it is empty")
        with damage_as_store_error():
            connection, is_copy = connect_to_read(path)
            try:
                TRIALS.check(connection)
                store = cls(path, connection, has_states=False, is_copy=is_copy)
                store._compressors.read(connection)
            except BaseException:
                connection.close()
                raise
        return store

    # Rows.

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit all rows that are put inside the block together, or none.

        Raises:
            sqlite3.Error: the commit failed; the rows are not in the store.
        """
        with self._lock, rows.transaction(self._connection, self._compressors):
            yield

    @contextmanager
    def first_transaction(self, source: TrialStore) -> Iterator[None]:
        """A :meth:`transaction` of an empty store, in which it can copy rows of another one.

        Args:
            source: the store to read.

        Raises:
            OSError: ``source`` is a copy, and there is no room for another one.
            sqlite3.Error: the commit failed; the store is still empty.
        """
        copy = source._connection if source._is_copy else None
        with (
            source._lock,
            self._lock,
            without_log(self._connection),
            attached(self._connection, rows.SOURCE, source.path, copy),
            self.transaction(),
        ):
            self._compressors.ensure_like(source._compressors, "entry", self._connection)
            yield

    def put(self, position: int, row: TrialRow) -> None:
        """Add a trial, inside a :meth:`transaction`.

        Raises:
            sqlite3.IntegrityError: the position or the trial's id is taken.
        """
        rows.insert(self._connection, self._compressors, position, row)

    def copy_rows(
        self,
        positions: Iterable[tuple[int, int]],
        then: Callable[[list[bytes]], object] | None = None,
    ) -> None:
        """Copy rows of the other store, inside the :meth:`first_transaction`.

        States are not copied, because only one process can use them. The copied trials count as
        created by an earlier run.

        Args:
            positions: pairs of the position in the other store and in this one.
            then: called with the state records of some rows after the other, in their new order.

        Raises:
            KeyError: the other store has no row at a position.
            ValueError: a state record is damaged.
        """
        rows.copy(self._connection, positions)
        if then is not None:
            records = self.state_records()
            while some := list(islice(records, _RECORDS_AT_ONCE)):
                then(some)

    # The snapshot and the metadata of the run.

    def save_snapshot(self, parts: dict[str, bytes]) -> None:
        """Replace the last snapshot by these parts, and sync all commits to the disk.

        Raises:
            sqlite3.Error: the snapshot was not saved; the last one stays.
        """
        with self.transaction():
            self._connection.execute("DELETE FROM snapshot")
            for part, content in parts.items():
                self.add_to_snapshot(part, content)
        with self._lock:
            self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def add_to_snapshot(self, part: str, content: bytes) -> None:
        """Add a part to the last snapshot, or replace it."""
        packed = pack(content)
        with self._lock:
            self._connection.execute(
                "INSERT OR REPLACE INTO snapshot VALUES (?, ?, ?)",
                (part, packed, zlib.crc32(packed)),
            )

    def has_snapshot(self) -> bool:
        return bool(self._all("SELECT 1 FROM snapshot LIMIT 1", ()))

    def snapshot(self) -> dict[str, bytes]:
        """The parts of the last snapshot; empty if none was saved.

        Raises:
            StoreError: it is damaged.
        """
        with damage_as_store_error():
            found = self._all("SELECT part, content, checksum FROM snapshot", ())
        for part, content, checksum in found:
            if zlib.crc32(content) != checksum:
                raise StoreError(f"its snapshot is damaged ({part})")
        return {part: unpack(content) for part, content, _ in found}

    def packed_snapshot(self) -> dict[str, bytes]:
        """The parts of the last snapshot as they are in the store, see :func:`unpack`."""
        return dict(self._all("SELECT part, content FROM snapshot", ()))

    def set_metadata(self, **values: str | bytes) -> None:
        """Store texts or bytes about the run by name; they replace those of the same names."""
        with self._lock:
            self._connection.executemany(
                "INSERT OR REPLACE INTO meta VALUES (?, ?)", values.items()
            )

    def get_metadata(self, name: str) -> str | None:
        """The text of this name; None if there is none."""
        found = self._metadata(name)
        return found if isinstance(found, str) else None

    def get_bytes(self, name: str) -> bytes | None:
        """The bytes of this name; None if there are none."""
        found = self._metadata(name)
        return found if isinstance(found, bytes) else None

    def _metadata(self, name: str) -> object:
        found = self._all("SELECT value FROM meta WHERE key = ?", (name,))
        return found[0][0] if found else None

    # Damage.

    def damage(self) -> str | None:
        """Describe the damage of an opened store; None if it is intact.

        Raises:
            sqlite3.OperationalError: the store cannot be read.
        """
        if self._compressors.damage is not None:
            return self._compressors.damage
        if not self._is_copy and files.has_valid_seal(self.path):
            return None
        all_rows = self._walk(f"{', '.join(COVERED)}, checksum")
        return integrity.find_damage(self._connection, all_rows)

    def salvage(self) -> Iterator[TrialRow]:
        """The intact rows of a damaged store, each once, without their states.

        Raises:
            sqlite3.OperationalError: the store cannot be read, so there may be more.
        """
        seen: set[str] = set()
        for values in integrity.intact_rows(self._connection):
            trial_id = values["trial_id"]
            try:
                if trial_id in seen:
                    continue
                record = self._compressors.unpack("entry", values["entry"])
            except (KeyError, TypeError, AttributeError, ValueError):
                continue
            seen.add(trial_id)
            yield TrialRow(
                trial_id,
                values["status"],
                bool(values["has_error"]),
                record,
                values["directory"],
                values["settled_at"],
                values["reported_at"],
                values["birth"],
                bool(values["resumes"]),
            )

    # The end.

    def finalize(self) -> None:
        """Move the write-ahead log into the file and let other processes read it.

        A checksum of the whole file is written beside it, so that :meth:`damage` need not check
        each row.

        Raises:
            sqlite3.OperationalError: for example, the disk is full. All content is as durable as
                before.
        """
        with self._lock:
            fold_log(self._connection)
            try:
                # Without the checksum `damage` checks each row, which takes longer.
                with suppress(OSError):
                    files.write_seal(self.path)
            finally:
                if self._writer_lock is not None:
                    self._writer_lock.release()

    def close(self) -> None:
        self._finalizer()
