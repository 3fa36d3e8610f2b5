"""Whether the content of a trial store is what was written, and what is intact if it is not.

Each row has a checksum of its state record and of the columns beside it, the dictionaries have one
each, and a file whose run is over has one of all its bytes (``files.write_seal``).
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ray_tune_memguard.store.errors import (
    StoreError,
    damage_as_store_error,
    raise_if_unread,
)
from ray_tune_memguard.store.schema import COVERED, SqlValue, pragma


def checksum_of(covered: Sequence[SqlValue]) -> int:
    """Of a row: the values that its checksum covers, as SQLite gives them, the record last.

    Raises:
        TypeError: the state record is not one.
    """
    *words, record = covered
    if not isinstance(record, bytes):
        raise TypeError("a state record is bytes")
    return zlib.crc32(record, zlib.crc32(repr(words).encode()))


def is_intact(covered: Sequence[SqlValue], checksum: SqlValue) -> bool:
    try:
        return checksum_of(covered) == checksum
    except (TypeError, ValueError):  # Even what sort of values they are was changed.
        return False


def find_damage(connection: sqlite3.Connection, rows: Iterable[tuple[SqlValue, ...]]) -> str | None:
    """What is wrong with a database; None if nothing is.

    ``rows``: the covered values and the checksum of each.

    Raises:
        sqlite3.OperationalError: it cannot be read.
    """
    try:
        with damage_as_store_error():
            # Its indexes as well: what is asked of all rows is answered by one.
            found = str(pragma(connection, "integrity_check(1)"))
            if found != "ok":
                raise_if_unread(found)
                return found
            bad = total = 0
            for *covered, checksum in rows:
                total += 1
                bad += not is_intact(covered, checksum)
    except StoreError as error:
        return str(error)
    return f"{bad} of {total} trials are damaged" if bad else None


def intact_rows(connection: sqlite3.Connection) -> Iterator[dict[str, Any]]:
    """The covered values of the intact rows of a damaged store, by column; some come twice.

    They are read from both ends, because reading ends where a page is damaged.

    Raises:
        sqlite3.OperationalError: the store cannot be read, so there may be more.
    """
    for order in ("ASC", "DESC"):
        rows = _read_to_damage(
            connection, f"SELECT {', '.join(COVERED)}, checksum FROM trial ORDER BY seq {order}"
        )
        for *covered, checksum in rows:
            if is_intact(covered, checksum):
                yield dict(zip(COVERED, covered, strict=True))


def _read_to_damage(connection: sqlite3.Connection, query: str) -> Iterator[tuple[SqlValue, ...]]:
    try:
        with damage_as_store_error():
            yield from connection.execute(query)
    except StoreError:
        return
