"""SQLite connections that fail at a chosen call, for tests of what an error leaves behind."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

#: Errors by which SQLite says that a file cannot be used now: text and result code.
REFUSALS = {
    "I/O": ("disk I/O error", 266),
    "full": ("database or disk is full", 13),
    "locked": ("database is locked", 5),
    "read-only": ("attempt to write a readonly database", 8),
    "cannot open": ("unable to open database file", 14),
    "permission": ("access permission denied", 3),
}


def error_of(kind: str, *, with_code: bool = True) -> sqlite3.OperationalError:
    """An error as SQLite raises it; without its code, as on Python 3.10."""
    text, code = REFUSALS[kind]
    error = sqlite3.OperationalError(text)
    if with_code:
        error.sqlite_errorcode = code  # type: ignore[attr-defined]
    return error


class Fault:
    """Raises ``error`` at call number ``at`` to SQLite, and at all later ones if it ``stays``."""

    def __init__(self, at: int, error: Callable[[], Exception], stays: bool) -> None:
        self.at = at
        self.error = error
        self.stays = stays
        self.calls = 0

    @property
    def happened(self) -> bool:
        return self.calls > self.at

    def count(self) -> None:
        self.calls += 1
        if self.calls == self.at + 1 or (self.stays and self.happened):
            raise self.error()


class FailingConnection:
    """A connection each call of which, and each call of whose cursors, may fail."""

    def __init__(self, connection: sqlite3.Connection, fault: Fault) -> None:
        self._connection = connection
        self._fault = fault

    def execute(self, *arguments: Any) -> FailingCursor:
        self._fault.count()
        return FailingCursor(self._connection.execute(*arguments), self._fault)

    def executemany(self, *arguments: Any) -> FailingCursor:
        self._fault.count()
        return FailingCursor(self._connection.executemany(*arguments), self._fault)

    def executescript(self, *arguments: Any) -> FailingCursor:
        self._fault.count()
        return FailingCursor(self._connection.executescript(*arguments), self._fault)

    def backup(self, target: FailingConnection) -> None:
        self._fault.count()
        self._connection.backup(target._connection)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


class FailingCursor:
    def __init__(self, cursor: sqlite3.Cursor, fault: Fault) -> None:
        self._cursor = cursor
        self._fault = fault

    def __iter__(self) -> Iterator[Any]:
        for row in self._cursor:
            self._fault.count()
            yield row

    def fetchone(self) -> Any:
        self._fault.count()
        return self._cursor.fetchone()

    def fetchall(self) -> Any:
        self._fault.count()
        return self._cursor.fetchall()

    def fetchmany(self, size: int) -> Any:
        self._fault.count()
        return self._cursor.fetchmany(size)

    @property
    def rowcount(self) -> int:
        return self._cursor.rowcount


@contextmanager
def failing(
    monkeypatch: pytest.MonkeyPatch, at: int, error: Callable[[], Exception], stays: bool = True
) -> Iterator[Fault]:
    """All connections that are made meanwhile fail at call ``at``, counted over all of them."""
    fault = Fault(at, error, stays)
    connect = sqlite3.connect

    def connect_failing(*arguments: Any, **options: Any) -> Any:
        fault.count()
        return FailingConnection(connect(*arguments, **options), fault)

    with monkeypatch.context() as patch:
        patch.setattr(sqlite3, "connect", connect_failing)
        yield fault
