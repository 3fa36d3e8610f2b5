"""Checks the content of a trial store, and reads the intact rows of a damaged one.

Each row has a checksum of its state record and of most other columns, each dictionary has one, and
a file whose run is over has one of all its bytes (``files.write_seal``).
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
    """The checksum of a row.

    Args:
        covered: the values that the checksum covers, as SQLite returns them, the record last.

    Raises:
        TypeError: the state record is not bytes.
    """
    *words, record = covered
    if not isinstance(record, bytes):
        raise TypeError("a state record is bytes")
    return zlib.crc32(record, zlib.crc32(repr(words).encode()))


def is_intact(covered: Sequence[SqlValue], checksum: SqlValue) -> bool:
    try:
        return checksum_of(covered) == checksum
    except (TypeError, ValueError):  # The damage has changed the types of the values.
        return False


def find_damage(connection: sqlite3.Connection, rows: Iterable[tuple[SqlValue, ...]]) -> str | None:
    """Describe the damage of a database; None if it is intact.

    Args:
        connection: the database.
        rows: for each row the covered values and the checksum.

    Raises:
        sqlite3.OperationalError: the database cannot be read.
    """
    try:
        with damage_as_store_error():
            # This also checks the indexes, from which some queries are answered.
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
    """The covered values of the intact rows of a damaged store, by column.

    Reads from both ends, because it stops at a damaged page. Some rows are therefore returned
    twice.

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
