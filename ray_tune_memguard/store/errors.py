"""The errors of a trial store, and the classification of SQLite's errors.

Two kinds of error look alike to a caller and must never be confused:

- *Damage*: the bytes of the file are not those that were written. A damaged store is rebuilt from
  its intact rows.
- *Refusal*: the file cannot be used now, because the disk is full, an I/O operation failed, the
  file is locked, read-only or not permitted, or memory ran out. All bytes may be intact, so nothing
  on disk changes, and the same call may succeed later.

Only errors that are known to mean damage count as damage; any other is a refusal.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

# https://www.sqlite.org/rescode.html; `sqlite3` has names for these codes from Python 3.11 on.
_ERROR = 1  # The schema is damaged: "no such table", "unsupported file format", …
_INTERNAL = 2
_BUSY = 5
_LOCKED = 6
_CORRUPT = 11
_TOOBIG = 18
_CONSTRAINT = 19
_MISMATCH = 20
_FORMAT = 24
_NOTADB = 26
_DAMAGE_CODES = frozenset(
    {_ERROR, _INTERNAL, _CORRUPT, _TOOBIG, _CONSTRAINT, _MISMATCH, _FORMAT, _NOTADB}
)
# Python 3.10 gives no codes. It derives the class of an error from the code: DatabaseError itself
# is CORRUPT, FORMAT or NOTADB, InternalError is INTERNAL, DataError is TOOBIG and IntegrityError is
# CONSTRAINT or MISMATCH. OperationalError is ERROR and all refusals (PERM, ABORT, BUSY, LOCKED,
# READONLY, INTERRUPT, IOERR, FULL, CANTOPEN, PROTOCOL, SCHEMA), each with SQLite's fixed text.
_DAMAGE_CLASSES = (
    sqlite3.DatabaseError,
    sqlite3.InternalError,
    sqlite3.DataError,
    sqlite3.IntegrityError,
)
# The beginnings of the texts of ERROR for a damaged file. The last text is Python's own.
_DAMAGE_TEXTS = (
    "no such ",
    "no query solution",
    "SQL logic error",
    "unsupported file format",
    "Could not decode to UTF-8",
)
_BUSY_TEXTS = ("database is locked", "database table is locked", "database schema is locked")
# A line of an integrity check about a page that could not be read.
_UNREAD_PAGE = re.compile(r"error code=(\d+)")


class StoreError(Exception):
    """A file is not a trial store that this version can read, or it is damaged."""


class EmptyStoreError(StoreError):
    """A trial store without any commit: its run was killed while it created the store."""


class UnsupportedVersionError(StoreError):
    """A trial store of a version that this one cannot read."""


def is_damage(error: sqlite3.Error) -> bool:
    """Whether an error that reading has raised means that the file's content is damaged."""
    code = _primary_code(error)
    if code is not None:
        return code in _DAMAGE_CODES
    if type(error) is sqlite3.OperationalError:
        return str(error).startswith(_DAMAGE_TEXTS)
    return type(error) in _DAMAGE_CLASSES


def is_locked(error: sqlite3.Error) -> bool:
    """Whether another connection is writing the file: its run is not over."""
    code = _primary_code(error)
    if code is not None:
        return code in (_BUSY, _LOCKED)
    return str(error).startswith(_BUSY_TEXTS)


@contextmanager
def damage_as_store_error() -> Iterator[None]:
    """Raise :class:`StoreError` for damage found inside the block; a refusal passes unchanged."""
    try:
        yield
    except UnicodeDecodeError as error:
        # SQLite's message quotes bytes of the file that are not text.
        raise StoreError(f"its schema is damaged: {error}") from error
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise
        raise StoreError(str(error)) from error


def raise_if_unread(finding: str) -> None:
    """Raise if an integrity check reports, without raising, that a page could not be read.

    Raises:
        sqlite3.OperationalError: for example, an I/O error.
    """
    for code in _UNREAD_PAGE.findall(finding):
        if int(code) & 0xFF not in _DAMAGE_CODES:
            raise sqlite3.OperationalError(finding)


def _primary_code(error: sqlite3.Error) -> int | None:
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF
