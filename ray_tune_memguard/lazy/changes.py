"""Keeps the states of trials that were changed after their spill, outside the store.

The rows of the store are the durable records of finished trials, so they never change. A later
change belongs to this process only, as with Ray alone.
"""

from __future__ import annotations

import sqlite3
import zlib

_CACHE_KIB = 256


class ChangedStates:
    """States of changed trials by trial id and *version*.

    The version number increases each time that results are built. A result shows a trial as of its
    version, so an older state stays until this object is freed.

    The states are in a private SQLite database, which the first change creates. SQLite keeps it in
    memory while it is small, and moves it to a temporary file that is deleted with this object.
    """

    def __init__(self) -> None:
        self._connection: sqlite3.Connection | None = None

    def __bool__(self) -> bool:
        return self._connection is not None

    def put(self, trial_id: str, version: int, state: bytes) -> None:
        """Store the state that a trial has from ``version`` on.

        Raises:
            sqlite3.Error: for example, the disk is full. Earlier states stay.
        """
        if self._connection is None:
            connection = sqlite3.connect("", isolation_level=None, check_same_thread=False)
            connection.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
            connection.execute(
                "CREATE TABLE changed (trial_id TEXT, version INTEGER, state BLOB, "
                "PRIMARY KEY (trial_id, version)) WITHOUT ROWID"
            )
            self._connection = connection
        self._connection.execute(
            "INSERT OR REPLACE INTO changed VALUES (?, ?, ?)",
            (trial_id, version, zlib.compress(state, 1)),
        )

    def get(self, trial_id: str, version: int) -> bytes | None:
        """The state of the trial in ``version``; None if it had not been changed."""
        if self._connection is None:
            return None
        found = self._connection.execute(
            "SELECT state FROM changed WHERE trial_id = ? AND version <= ? "
            "ORDER BY version DESC LIMIT 1",
            (trial_id, version),
        ).fetchone()
        return None if found is None else zlib.decompress(found[0])
