"""Saves an experiment checkpoint, without its finished trials, in the trial store.

Rows and snapshot together describe the whole run as of the last checkpoint. They are in one file
and therefore consistent; Ray's several files are not if the driver is killed between two of them.
Rows that are newer than the snapshot are the trials that have finished since.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from ray_tune_memguard.store.errors import StoreError
from ray_tune_memguard.store.trial_store import TrialStore

_STATE = "state"
_PLACES = "places"
_FILE = "file:"
_UNSENT = "unsent at end"


@dataclass(frozen=True)
class Snapshot:
    """One experiment checkpoint without its finished trials."""

    #: The text of Ray's experiment state file, with only the trials in memory.
    state: str
    #: The ``position`` of each of these trials, in the same order.
    positions: list[int]
    #: The number of trials that this run had created.
    creation_count: int
    #: See :class:`~ray_tune_memguard.lazy.summaries.TrialSummaryIndex`.
    summaries: dict[str, object]
    #: Contents of the files of searchers and callbacks, by name; None if the snapshot has none.
    files: dict[str, bytes] | None
    #: Directories of finished trials that were not in the experiment's storage yet.
    unsent: list[str] = field(default_factory=list)

    def save(self, store: TrialStore) -> None:
        """Save it in place of the last snapshot.

        Raises:
            sqlite3.Error: it was not saved, and the last one stays.
        """
        places = {
            "seqs": self.positions,
            "births": self.creation_count,
            "ledger": self.summaries,
            "files": self.files is not None,
            "unsent": self.unsent,
        }
        store.save_snapshot(
            {
                _STATE: self.state.encode(),
                # A user may report numbers of other libraries, which become plain floats.
                _PLACES: json.dumps(places, default=float).encode(),
                **{_FILE + name: content for name, content in (self.files or {}).items()},
            }
        )

    @classmethod
    def load(cls, store: TrialStore) -> Snapshot:
        """Load the last snapshot.

        Raises:
            StoreError: there is none, or it is damaged.
        """
        parts = store.snapshot()
        if not parts:
            raise StoreError("its run ended before the first checkpoint")
        return cls.of(parts)

    @classmethod
    def of(cls, parts: Mapping[str, bytes]) -> Snapshot:
        """The snapshot with these parts.

        Raises:
            KeyError, ValueError: a part is missing or damaged.
        """
        places = json.loads(parts[_PLACES])
        return cls(
            state=parts[_STATE].decode(),
            positions=places["seqs"],
            creation_count=places["births"],
            summaries=places["ledger"],
            unsent=json.loads(parts[_UNSENT]) if _UNSENT in parts else places["unsent"],
            files={
                part.removeprefix(_FILE): content
                for part, content in parts.items()
                if part.startswith(_FILE)
            }
            if places["files"]
            else None,
        )


def save_unsent(store: TrialStore, unsent: list[str]) -> None:
    """Save in the last snapshot which directories the last upload of the run has left.

    Raises:
        sqlite3.Error: it was not saved, and those of the snapshot count, which are more.
    """
    store.add_to_snapshot(_UNSENT, json.dumps(unsent).encode())
