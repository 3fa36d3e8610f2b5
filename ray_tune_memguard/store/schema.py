"""The tables of a trial store: names, order and meaning of their columns, defined once.

The names are those of schema 5, which stays readable; Python names that say more are in
``rows.TrialRow``: ``seq`` is ``position`` there, ``birth`` ``creation_index``, ``settled_at``
``finished_at`` and ``entry`` ``state_record``.
"""

from __future__ import annotations

import sqlite3
from typing import TypeAlias

from ray_tune_memguard.store.errors import (
    EmptyStoreError,
    StoreError,
    UnsupportedVersionError,
)

SqlValue: TypeAlias = str | int | float | bytes | None

#: "RTMG": marks the file as ours, see https://www.sqlite.org/pragma.html#pragma_application_id
APPLICATION_ID = 0x52544D47
SCHEMA_VERSION = 5

_TRIAL_COLUMNS = {
    "seq": "INTEGER PRIMARY KEY",
    "trial_id": "TEXT NOT NULL UNIQUE",
    "status": "TEXT NOT NULL",
    "has_error": "INTEGER NOT NULL",
    # Of the trial's own files, and since when (seconds since the epoch) it does not write them.
    "directory": "TEXT",
    "settled_at": "REAL NOT NULL",
    # When it last reported, by which a restored run is ordered.
    "reported_at": "REAL NOT NULL",
    # How many trials this run had created before it; -1 if an earlier run created it.
    "birth": "INTEGER NOT NULL",
    # Whether the state record says that it is to be resumed: it was paused when its run ended.
    "resumes": "INTEGER NOT NULL",
    # The state record: what the experiment state file holds of it, for any process.
    "entry": "BLOB NOT NULL",
    # Of all the above but the position.
    "checksum": "INTEGER NOT NULL",
    # The object itself, for the process that wrote it.
    "state": "BLOB",
}
COLUMNS = tuple(_TRIAL_COLUMNS)
#: What the checksum of a row is made of, in this order; the state record is the last.
COVERED = COLUMNS[COLUMNS.index("trial_id") : COLUMNS.index("checksum")]
#: What is asked of all trials at once is read from an index, without their states between.
SUMMARY = "trial INDEXED BY trial_words"

_TABLES = f"""
CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
-- The last experiment checkpoint, without its finished trials, by part.
CREATE TABLE snapshot (part TEXT PRIMARY KEY, content BLOB NOT NULL, checksum INTEGER NOT NULL);
CREATE TABLE trial ({", ".join(f"{name} {kind}" for name, kind in _TRIAL_COLUMNS.items())});
CREATE INDEX trial_by_directory ON trial (directory);
CREATE INDEX trial_with_error ON trial (seq) WHERE has_error;
CREATE INDEX trial_words ON trial (seq, trial_id, status, reported_at, birth, resumes);
"""


def create_tables(connection: sqlite3.Connection) -> None:
    """Create them in an empty database, in one transaction: a kill leaves all or nothing."""
    connection.executescript(
        f"BEGIN IMMEDIATE; PRAGMA application_id={APPLICATION_ID}; "
        f"PRAGMA user_version={SCHEMA_VERSION}; {_TABLES} COMMIT;"
    )


def check_kind(connection: sqlite3.Connection) -> None:
    """Check that a database is a trial store of this version.

    Raises:
        EmptyStoreError: nothing was committed to it.
        UnsupportedVersionError: it is a store of another version.
        StoreError: it is something else.
    """
    if connection.execute("SELECT 1 FROM sqlite_master").fetchone() is None:
        raise EmptyStoreError("it is empty")
    if pragma(connection, "application_id") != APPLICATION_ID:
        raise StoreError("it is not a trial store, or its first bytes are damaged")
    version = int(pragma(connection, "user_version") or 0)
    if version != SCHEMA_VERSION:
        raise UnsupportedVersionError(f"it is of version {version}, this is {SCHEMA_VERSION}")


def pragma(connection: sqlite3.Connection, name: str) -> SqlValue:
    value: SqlValue = connection.execute(f"PRAGMA {name}").fetchone()[0]
    return value
