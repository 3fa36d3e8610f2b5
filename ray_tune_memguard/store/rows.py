"""Writing the rows of a trial store.

State records and states are compressed, each kind against the first of its kind: its *dictionary*,
which is kept in the store twice, because without it nothing else of that kind can be read.
"""

from __future__ import annotations

import sqlite3
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ray_tune_memguard.store.compression import DictionaryCompressor
from ray_tune_memguard.store.integrity import checksum_of
from ray_tune_memguard.store.schema import COLUMNS, COVERED, SqlValue

# Under which a dictionary is kept, behind its checksum.
_DICTIONARIES = ("dictionary", "spare dictionary")
_INSERT = (
    f"INSERT INTO trial ({', '.join(COLUMNS)}) VALUES ({', '.join(f':{name}' for name in COLUMNS)})"
)
_SELECT_COVERED = f"SELECT {', '.join(COVERED)} FROM trial"


@dataclass(slots=True)
class TrialRow:
    """All that is written of a trial but its ``position``.

    Attributes:
        trial_id: Ray's id of the trial.
        status: Ray's word for how it ended.
        has_error: whether it ever failed, though it may have ended well since.
        state_record: what the experiment state file holds of it, as JSON.
        directory: the name of the directory with its own files, if it has one.
        finished_at: since when it does not write these files, in seconds since the epoch.
        reported_at: when it last reported, in seconds since the epoch.
        creation_index: how many trials the run had created before it; -1 if an earlier run did.
        resumes: whether it is unfinished to a restore.
        state: the object itself, for this process only.
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

    def created_at_index(self, creation_index: int) -> TrialRow:
        return replace(self, creation_index=creation_index)


class Compressors:
    """The compressors of one store, by the kind of what they compress: its columns' names."""

    def __init__(self) -> None:
        self._by_kind: dict[str, DictionaryCompressor] = {}
        #: What is wrong with the dictionaries that were read; None if they are intact.
        self.damage: str | None = None

    def read(self, connection: sqlite3.Connection) -> None:
        """Take the dictionaries that a store has."""
        for name in _DICTIONARIES:
            query = "SELECT key, value FROM meta WHERE key LIKE ?"
            for key, value in connection.execute(query, (f"{name} of %",)):
                if zlib.crc32(value[4:]) != int.from_bytes(value[:4], "big"):
                    self.damage = f"the {key} is not as it was written"
                else:
                    kind = key.removeprefix(f"{name} of ")
                    self._by_kind.setdefault(kind, DictionaryCompressor(value[4:]))

    def ensure(self, kind: str, first: bytes, connection: sqlite3.Connection) -> None:
        """Make what is ``first`` of its kind the dictionary, unless there is one."""
        if kind in self._by_kind:
            return
        made = self._by_kind[kind] = DictionaryCompressor(first)
        value = zlib.crc32(made.dictionary).to_bytes(4, "big") + made.dictionary
        connection.executemany(
            "INSERT INTO meta VALUES (?, ?)",
            ((f"{name} of {kind}", value) for name in _DICTIONARIES),
        )

    def ensure_like(self, other: Compressors, kind: str, connection: sqlite3.Connection) -> None:
        """Take another store's dictionary, so that what it has packed can be taken as it is."""
        if kind in other._by_kind:
            self.ensure(kind, other._by_kind[kind].dictionary, connection)

    def pack(self, kind: str, raw: bytes) -> bytes:
        return self._by_kind[kind].pack(raw)

    def unpack(self, kind: str, packed: bytes) -> bytes:
        """Undo :meth:`pack`.

        Raises:
            KeyError: there is no dictionary of this kind.
            ValueError: it is not what :meth:`pack` has returned.
        """
        return self._by_kind[kind].unpack(packed)

    def mark(self) -> Mapping[str, DictionaryCompressor]:
        """What there is now, for :meth:`rewind`."""
        return dict(self._by_kind)

    def rewind(self, mark: Mapping[str, DictionaryCompressor]) -> None:
        """Forget dictionaries whose transaction was rolled back."""
        self._by_kind = dict(mark)


def insert(
    connection: sqlite3.Connection, compressors: Compressors, position: int, row: TrialRow
) -> None:
    """Add a row. Raises sqlite3.IntegrityError if the position or the trial id is taken."""
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
    connection.execute(_INSERT, _with_checksum(position, values, state))


def copy(
    source: sqlite3.Connection, target: sqlite3.Connection, positions: Iterable[tuple[int, int]]
) -> None:
    """Copy rows as they are packed. ``positions``: pairs of the position there and here.

    States, which are of use to one process only, are left out, and to the target's run the trials
    are not new and not to be resumed.
    """
    query = f"{_SELECT_COVERED} WHERE seq = ?"
    target.executemany(
        _INSERT,
        (
            _taken_over(here, source.execute(query, (there,)).fetchone())
            for there, here in positions
        ),
    )


def _taken_over(position: int, covered: Sequence[SqlValue]) -> dict[str, SqlValue]:
    by_name = dict(zip(COVERED, covered, strict=True))
    return _with_checksum(position, {**by_name, "birth": -1, "resumes": 0}, None)


def _with_checksum(
    position: int, values: Mapping[str, SqlValue], state: bytes | None
) -> dict[str, SqlValue]:
    covered = [values[name] for name in COVERED]
    return {**values, "seq": position, "checksum": checksum_of(covered), "state": state}
