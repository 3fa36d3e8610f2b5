"""Tells other processes that a run writes a file, by a lock on another file beside it.

Reason: SQLite locks its file by POSIX locks, and a process loses all of those that it has on a file
as soon as it closes the file once (fcntl(2)), be it a user's callback that has copied the
experiment. SQLite does not notice; another process could then write to the file, or take the run
for over. A lock by ``flock`` stays until the file of the lock is closed. It is on a file of its
own, because network file systems make a POSIX lock of it.

A process that is forked does not have the lock: the run is over when its own process has ended.
"""

from __future__ import annotations

import fcntl
import os
import time
import weakref
from contextlib import suppress
from pathlib import Path

SUFFIX = ".lock"
# A reader that looks has the lock for an instant.
_WAIT_S = 1.0
_PAUSE_S = 0.02


class WriterLock:
    """The lock of a file. It is released when the process ends, however that happens.

    Args:
        path: the file of the lock.
        number: its descriptor.
    """

    def __init__(self, path: Path, number: int) -> None:
        self._path = path
        self._number: int | None = number
        _held.add(self)

    @classmethod
    def take(cls, path: Path) -> WriterLock | None:
        """Lock a file for writing.

        Args:
            path: the file; it need not exist.

        Returns:
            The lock; None if another run has it.

        Raises:
            OSError: the file of the lock cannot be created.
        """
        lock = path.with_name(path.name + SUFFIX)
        until = time.monotonic() + _WAIT_S
        while True:
            number = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
            is_free = try_lock(number, fcntl.LOCK_EX) is not False
            is_late = time.monotonic() > until
            # Whoever had it may have removed the file meanwhile. Some file systems cannot tell.
            if is_free and (is_late or _is_at(number, lock)):
                return cls(lock, number)
            _close(number)
            if is_late:
                return None
            time.sleep(_PAUSE_S)

    def release(self) -> None:
        """Unlock the file, and remove the file of the lock. A second call does nothing."""
        number, self._number = self._number, None
        if number is not None:
            with suppress(OSError):
                if _is_at(number, self._path):
                    self._path.unlink()
            _close(number)

    def _forget(self) -> None:
        """Close the lock of the process that this one was forked from, which keeps it."""
        number, self._number = self._number, None
        if number is not None:
            os.close(number)


def is_taken(path: Path) -> bool:
    """Whether a run writes a file."""
    try:
        number = os.open(path.with_name(path.name + SUFFIX), os.O_RDONLY)
    except OSError:
        return False
    try:
        return try_lock(number, fcntl.LOCK_SH) is False
    finally:
        _close(number)


def _close(number: int) -> None:
    """Unlock and close a file: a process that was forked just now has it, too."""
    with suppress(OSError):
        fcntl.flock(number, fcntl.LOCK_UN)
    os.close(number)


def try_lock(number: int, kind: int) -> bool | None:
    """Lock an open file until it is closed. Does not wait.

    Args:
        number: its descriptor.
        kind: ``fcntl.LOCK_EX`` or ``fcntl.LOCK_SH``.

    Returns:
        Whether it is locked now; False if somebody else has the lock, None if the file system has
        no locks.
    """
    try:
        fcntl.flock(number, kind | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # SMB says the second.
        return False
    except OSError:
        return None
    return True


def _is_at(number: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(number), path.stat())
    except OSError:
        return False


def _after_fork() -> None:
    for lock in list(_held):
        lock._forget()


_held: weakref.WeakSet[WriterLock] = weakref.WeakSet()
os.register_at_fork(after_in_child=_after_fork)
