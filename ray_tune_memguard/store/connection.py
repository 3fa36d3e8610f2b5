"""Opens connections to the file of a trial store, to write it or to read it.

While a run writes its store, it holds an exclusive lock on the file, and another one that it cannot
lose (``writer_lock``). No other process can write to it, and a reader finds out at once that the
run is not over.

A reader needs no permission to write and leaves nothing behind. SQLite reads a write-ahead log only
where it may write, so the file and the log of a killed run are copied to a temporary directory and
read there.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ray_tune_memguard.store import files
from ray_tune_memguard.store.errors import is_damage, is_locked
from ray_tune_memguard.store.schema import pragma
from ray_tune_memguard.store.writer_lock import WriterLock, is_taken

_CACHE_KIB = 1024
# 32 MiB. Snapshots sync the log before it grows to this length, so that no spill has to.
_LOG_PAGES = 8192
_LOCK_WAIT_S = 2.0
# As SQLite says it.
_IS_LOCKED = "database is locked"
# Of a process that was forked from the one that opened them.
_inherited: list[sqlite3.Connection] = []


def connect(path: Path, wait_s: float = _LOCK_WAIT_S, mode: str = "rw") -> sqlite3.Connection:
    """A connection in autocommit mode.

    Args:
        path: the file.
        wait_s: seconds to wait for a lock.
        mode: SQLite's ``rw`` or ``ro``, or ``rwc`` to create a missing file.
    """
    # The store's lock protects each use, so any thread may use the connection.
    return sqlite3.connect(
        _uri(path, mode),
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=wait_s,
    )


def _uri(path: Path, mode: str) -> str:
    return f"{path.absolute().as_uri()}?mode={mode}"


def close(connection: sqlite3.Connection, opened_by: int, lock: WriterLock | None = None) -> None:
    """Close a connection, and release its lock, if this process is the one that opened it."""
    if os.getpid() == opened_by:
        connection.close()
        if lock is not None:
            lock.release()
    else:
        # SQLite would take the lock for its own, and delete the log that the run goes on writing.
        _inherited.append(connection)


def prepare_to_write(connection: sqlite3.Connection) -> None:
    """Lock a new file, and write commits to a write-ahead log."""
    # Exclusive before WAL: no shared-memory file, which network file systems lack.
    connection.execute("PRAGMA locking_mode=EXCLUSIVE")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
    connection.execute(f"PRAGMA wal_autocheckpoint={_LOG_PAGES}")


@contextmanager
def without_log(connection: sqlite3.Connection) -> Iterator[None]:
    """Let transactions inside the block write to the file at once, not to the log first.

    That halves what a large transaction writes, in a file that has little to be rolled back.
    """
    connection.execute("PRAGMA journal_mode=DELETE")
    try:
        yield
    finally:
        connection.execute("PRAGMA journal_mode=WAL")


@contextmanager
def attached(
    connection: sqlite3.Connection, name: str, path: Path, copy: sqlite3.Connection | None
) -> Iterator[None]:
    """Let the statements of a connection read a store that another one reads, inside the block.

    Args:
        connection: it has begun no transaction.
        name: of the store's tables in statements.
        path: the store's file.
        copy: the other connection, if what it reads is a copy that has no path any more.

    Raises:
        OSError: there is no room for another copy.
        sqlite3.Error: the file cannot be read.
    """
    if copy is None:
        connection.execute(f"ATTACH ? AS {name}", (_uri(path, "ro"),))
    else:
        another = files.write_privately(path, lambda file: _back_up(copy, file))
        try:
            connection.execute(f"ATTACH ? AS {name}", (_uri(another, "ro"),))
            # SQLite opens the file at the first use.
            connection.execute(f"SELECT 1 FROM {name}.sqlite_master").fetchone()
        finally:
            shutil.rmtree(another.parent, ignore_errors=True)
    try:
        yield
    finally:
        connection.execute(f"DETACH {name}")


def _back_up(connection: sqlite3.Connection, path: Path) -> None:
    target = connect(path, mode="rwc")
    try:
        connection.backup(target)
        # Otherwise it cannot be read without write access, like the one that has a log.
        target.execute("PRAGMA journal_mode=DELETE")
    except sqlite3.OperationalError as error:
        raise OSError(f"{path} cannot be written: {error}") from error
    finally:
        target.close()


def lock_to_write(path: Path) -> WriterLock:
    """Lock a file that is to be written, before it is opened.

    Raises:
        OSError: the file of the lock cannot be created.
        sqlite3.OperationalError: a run is writing it.
    """
    lock = WriterLock.take(path)
    if lock is None:
        raise sqlite3.OperationalError(_IS_LOCKED)
    return lock


def fold_log(connection: sqlite3.Connection) -> None:
    """Move the content of the log into the file, and release the lock.

    Raises:
        sqlite3.OperationalError: for example, the disk is full. All commits are still in the log.
    """
    connection.execute("PRAGMA journal_mode=DELETE")
    connection.execute("PRAGMA locking_mode=NORMAL")
    # The lock is released at the next use.
    connection.execute("SELECT count(*) FROM meta").fetchone()


def connect_to_read(path: Path) -> tuple[sqlite3.Connection, bool]:
    """A connection that reads all commits to a file, and whether it reads a copy.

    Raises:
        OSError: the file cannot be copied.
        sqlite3.DatabaseError: the run is not over, or the file cannot be read or is damaged.
    """
    if is_taken(path):
        raise sqlite3.OperationalError(_IS_LOCKED)
    connection = connect(path, wait_s=0, mode="ro")
    try:
        # Exclusive, so that SQLite does not make a file for shared memory beside a log.
        connection.execute("PRAGMA locking_mode=EXCLUSIVE")
        pragma(connection, "application_id")
        connection.execute("PRAGMA locking_mode=NORMAL")
        pragma(connection, "application_id")
        connection.execute(f"PRAGMA busy_timeout={_LOCK_WAIT_S * 1000:.0f}")
        _allow_reading_only(connection)
        return connection, False
    except sqlite3.DatabaseError as error:
        connection.close()
        if is_locked(error) or is_damage(error):
            raise
    # No run writes the file, and SQLite cannot read it without write access: it has a log.
    return connect_to_copy(path), True


def connect_to_copy(path: Path) -> sqlite3.Connection:
    """A connection that reads a copy of a file and its log, as of this moment.

    Raises:
        OSError: the file cannot be copied.
        sqlite3.DatabaseError: it is damaged, or a run has changed it while it was copied.
    """
    copy = files.copy_privately(path)
    try:
        connection = connect(copy)
        try:
            connection.execute("PRAGMA locking_mode=EXCLUSIVE")
            pragma(connection, "application_id")
            _allow_reading_only(connection)
        except BaseException:
            connection.close()
            raise
        return connection
    finally:
        # The copy stays readable while it is open, and leaves nothing behind.
        shutil.rmtree(copy.parent, ignore_errors=True)


def _allow_reading_only(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA query_only=ON")
    connection.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
