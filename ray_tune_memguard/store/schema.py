"""Defines the tables of a trial store: names, order and meaning of their columns.

The column names are those of schema 5, which stays readable. ``rows.TrialRow`` has clearer names
for four of them: ``position`` for ``seq``, ``creation_index`` for ``birth``, ``finished_at`` for
``settled_at``, and ``state_record`` for ``entry``.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
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
    # The trial's directory, and the time (seconds since the epoch) since which it writes no files.
    "directory": "TEXT",
    "settled_at": "REAL NOT NULL",
    # The time of its last result, which is the order of a restored run.
    "reported_at": "REAL NOT NULL",
    # The number of trials that this run had created before it; -1 if an earlier run created it.
    "birth": "INTEGER NOT NULL",
    # Whether a restore resumes it: it was paused when its run ended.
    "resumes": "INTEGER NOT NULL",
    # The state record, as in the experiment state file, for any process.
    "entry": "BLOB NOT NULL",
    # The checksum of all columns above except the position.
    "checksum": "INTEGER NOT NULL",
    # The pickled object, for the process that wrote it.
    "state": "BLOB",
}
COLUMNS = tuple(_TRIAL_COLUMNS)
#: The columns that a row's checksum covers, in this order; the state record is the last.
COVERED = COLUMNS[COLUMNS.index("trial_id") : COLUMNS.index("checksum")]
#: Queries of all trials read this index, which does not contain their states.
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


@dataclass(frozen=True)
class Schema:
    """The tables of one kind of database.

    Attributes:
        what: the kind of database, in messages.
        application_id: marks a file of this kind.
        version: changes with the meaning of the tables.
        tables: the SQL that creates them.
    """

    what: str
    application_id: int
    version: int
    tables: str

    def create(self, connection: sqlite3.Connection) -> None:
        """Create all tables of an empty database in one transaction."""
        connection.executescript(
            f"BEGIN IMMEDIATE; PRAGMA application_id={self.application_id}; "
            f"PRAGMA user_version={self.version}; {self.tables} COMMIT;"
        )

    def check(self, connection: sqlite3.Connection) -> None:
        """Check that a database is of this kind and version.

        Raises:
            EmptyStoreError: it has no commit.
            UnsupportedVersionError: it is of another version.
            StoreError: it is another database.
        """
        if is_empty(connection):
            raise EmptyStoreError("it is empty")
        if pragma(connection, "application_id") != self.application_id:
            raise StoreError(f"it is not {self.what}, or its first bytes are damaged")
        version = int(pragma(connection, "user_version") or 0)
        if version != self.version:
            raise UnsupportedVersionError(
                f"its schema version is {version}; this package reads version {self.version}"
            )


TRIALS = Schema("a trial store", APPLICATION_ID, SCHEMA_VERSION, _TABLES)


def is_empty(connection: sqlite3.Connection) -> bool:
    """Whether a database has no commit."""
    return connection.execute("SELECT 1 FROM sqlite_master").fetchone() is None


def pragma(connection: sqlite3.Connection, name: str) -> SqlValue:
    value: SqlValue = connection.execute(f"PRAGMA {name}").fetchone()[0]
    return value
