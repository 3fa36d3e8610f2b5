"""What was changed on spilled trials since their spill, kept outside the store.

The rows of the store are the durable records of what Ray ran, so they never change. A change that
somebody makes later is this process's own, as it is with Ray alone.
"""

from __future__ import annotations

import sqlite3
import zlib

_CACHE_KIB = 256


class ChangedStates:
    """States of changed trials by trial id and *version*.

    Versions are counted up each time that results are built. A result shows a trial as of its
    version, whatever was changed later, so an older state stays until this object goes.

    They are in a private SQLite database, which is made at the first change. SQLite keeps it in
    memory while it is small and moves it to a temporary file that is deleted with this object.
    """

    def __init__(self) -> None:
        self._connection: sqlite3.Connection | None = None

    def __bool__(self) -> bool:
        return self._connection is not None

    def put(self, trial_id: str, version: int, state: bytes) -> None:
        """Keep the state that a trial has from ``version`` on.

        Raises:
            sqlite3.Error: there is no room for it. What was kept before still is.
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
        """The state that the trial had in ``version``; None if it was not changed by then."""
        if self._connection is None:
            return None
        found = self._connection.execute(
            "SELECT state FROM changed WHERE trial_id = ? AND version <= ? "
            "ORDER BY version DESC LIMIT 1",
            (trial_id, version),
        ).fetchone()
        return None if found is None else zlib.decompress(found[0])
