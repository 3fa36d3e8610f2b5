"""Writes the rows of a trial store.

State records and states are compressed. The first of each kind is the *dictionary* of its kind. The
store has each dictionary twice, because nothing else of that kind can be read without it.
"""

from __future__ import annotations

import sqlite3
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from ray_tune_memguard.store.compression import DictionaryCompressor
from ray_tune_memguard.store.integrity import checksum_of
from ray_tune_memguard.store.schema import COLUMNS, COVERED, SqlValue

# Names of the two copies of a dictionary; each value begins with a checksum.
_DICTIONARIES = ("dictionary", "spare dictionary")
_INSERT = f"INSERT INTO trial ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"
#: The name of an attached store, of which rows are copied.
SOURCE = "source"
# What a copied row has in place of its own values.
_TAKEN_OVER = {"birth": "-1", "resumes": "0"}


@dataclass(slots=True)
class TrialRow:
    """The values of a trial's row, except its ``position``.

    Attributes:
        trial_id: Ray's id of the trial.
        status: Ray's final status of the trial.
        has_error: whether the trial ever failed, also if it completed after a retry.
        state_record: its state record, as in the experiment state file (JSON).
        directory: the name of the trial's directory; None if it has none.
        finished_at: the time since which it writes no files, in seconds since the epoch.
        reported_at: the time of its last result, in seconds since the epoch.
        creation_index: the number of trials that the run had created before it; -1 if an earlier
            run created it.
        resumes: whether a restore resumes it as unfinished.
        state: the pickled object, for this process only.
    """

    trial_id: str
    status: str
    has_error: bool
    state_record: bytes
    directory: str | None = None
    finished_at: float = field(default_factory=time.time)
    reported_at: float = float("-inf")
    creation_index: int = -1
    resumes: bool = False
    state: bytes | None = None


class Compressors:
    """The compressors of one store, by column name."""

    def __init__(self) -> None:
        self._by_kind: dict[str, DictionaryCompressor] = {}
        #: The damage of the dictionaries that were read; None if they are intact.
        self.damage: str | None = None

    def read(self, connection: sqlite3.Connection) -> None:
        """Read the dictionaries of a store."""
        for name in _DICTIONARIES:
            query = "SELECT key, value FROM meta WHERE key LIKE ?"
            for key, value in connection.execute(query, (f"{name} of %",)):
                if zlib.crc32(value[4:]) != int.from_bytes(value[:4], "big"):
                    self.damage = f"the {key} is damaged"
                else:
                    kind = key.removeprefix(f"{name} of ")
                    self._by_kind.setdefault(kind, DictionaryCompressor(value[4:]))

    def ensure(self, kind: str, first: bytes, connection: sqlite3.Connection) -> None:
        """Use ``first`` as the dictionary of its kind, unless the kind has one."""
        if kind in self._by_kind:
            return
        made = self._by_kind[kind] = DictionaryCompressor(first)
        value = zlib.crc32(made.dictionary).to_bytes(4, "big") + made.dictionary
        connection.executemany(
            "INSERT INTO meta VALUES (?, ?)",
            ((f"{name} of {kind}", value) for name in _DICTIONARIES),
        )

    def ensure_like(self, other: Compressors, kind: str, connection: sqlite3.Connection) -> None:
        """Copy another store's dictionary, so that compressed values can be copied unchanged."""
        if kind in other._by_kind:
            self.ensure(kind, other._by_kind[kind].dictionary, connection)

    def pack(self, kind: str, raw: bytes) -> bytes:
        return self._by_kind[kind].pack(raw)

    def unpack(self, kind: str, packed: bytes) -> bytes:
        """Undo :meth:`pack`.

        Raises:
            KeyError: the kind has no dictionary.
            ValueError: the bytes are damaged.
        """
        return self._by_kind[kind].unpack(packed)


@contextmanager
def transaction(connection: sqlite3.Connection, compressors: Compressors) -> Iterator[None]:
    """Commit what is written inside the block together, or nothing, also of the dictionaries."""
    known = dict(compressors._by_kind)
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # SQLite may have rolled back by itself (a full disk does that).
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        compressors._by_kind = known
        raise


def insert(
    connection: sqlite3.Connection, compressors: Compressors, position: int, row: TrialRow
) -> None:
    """Add a row.

    Raises:
        sqlite3.IntegrityError: the position or the trial id is taken.
    """
    compressors.ensure("entry", row.state_record, connection)
    if row.state is not None:
        compressors.ensure("state", row.state, connection)
    values: dict[str, SqlValue] = {
        "trial_id": row.trial_id,
        "status": row.status,
        "has_error": int(row.has_error),
        "directory": row.directory,
        "settled_at": float(row.finished_at),
        "reported_at": float(row.reported_at),
        "birth": row.creation_index,
        "resumes": int(row.resumes),
        "entry": compressors.pack("entry", row.state_record),
    }
    state = None if row.state is None else compressors.pack("state", row.state)
    covered = [values[name] for name in COVERED]
    connection.execute(_INSERT, (position, *covered, checksum_of(covered), state))


def copy(connection: sqlite3.Connection, positions: Iterable[tuple[int, int]]) -> None:
    """Copy rows of the attached store ``SOURCE`` without decompressing them.

    States are not copied, because only one process can use them. The copied trials count as created
    by an earlier run, and as finished.

    Args:
        connection: the store to write.
        positions: pairs of the position in the source and in the target.

    Raises:
        KeyError: the source has no row at a position.
    """
    connection.create_function("checksum_of", len(COVERED), _checksum_of, deterministic=True)
    # One statement, because to pass each row through Python takes three times as long.
    connection.execute("CREATE TEMP TABLE wanted (there INTEGER, here INTEGER PRIMARY KEY)")
    wanted = connection.executemany("INSERT INTO wanted VALUES (?, ?)", positions).rowcount
    values = ", ".join(_TAKEN_OVER.get(name, name) for name in COVERED)
    copied = connection.execute(
        f"INSERT INTO trial ({', '.join(COLUMNS)}) "
        f"SELECT here, {values}, checksum_of({values}), NULL "
        f"FROM wanted CROSS JOIN {SOURCE}.trial ON seq = there ORDER BY here"
    ).rowcount
    connection.execute("DROP TABLE wanted")
    if copied != wanted:
        raise KeyError(f"{wanted - copied} of {wanted} rows are missing")


def _checksum_of(*covered: SqlValue) -> int:
    return checksum_of(covered)
