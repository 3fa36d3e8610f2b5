"""What an experiment checkpoint consists of beside its finished trials, kept in the trial store.

Rows and snapshot together are the whole run as of the last checkpoint, in one file and so of the
same moment, which Ray's several files are not when a driver is killed between them. Rows that
came later than the snapshot tell what has finished since.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from ray_tune_memguard.store.errors import StoreError
from ray_tune_memguard.store.trial_store import TrialStore

_STATE = "state"
_PLACES = "places"
_FILE = "file:"


@dataclass(frozen=True)
class Snapshot:
    """One experiment checkpoint without its finished trials."""

    #: What Ray wrote to its experiment state file, but with the trials in memory only.
    state: str
    #: The ``position`` of each of these trials, in the same order.
    positions: list[int]
    #: How many trials this run had created.
    creation_count: int
    #: See :class:`~ray_tune_memguard.lazy.summaries.TrialSummaryIndex`.
    summaries: dict[str, object]
    #: Files that searchers and callbacks wrote, by name; None if they are beside the state file.
    files: dict[str, bytes] | None
    #: Directories of finished trials that were not in the experiment's storage yet.
    unsent: list[str] = field(default_factory=list)

    def save(self, store: TrialStore) -> None:
        """Raises sqlite3.Error: it was not saved, and the last one is still there."""
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
                # Numbers of other libraries, which a user may report, become plain ones.
                _PLACES: json.dumps(places, default=float).encode(),
                **{_FILE + name: content for name, content in (self.files or {}).items()},
            }
        )

    @classmethod
    def load(cls, store: TrialStore) -> Snapshot:
        """The last one.

        Raises:
            StoreError: there is none, or it is damaged.
        """
        parts = store.snapshot()
        if not parts:
            raise StoreError("it was left before the first checkpoint")
        places = json.loads(parts[_PLACES])
        return cls(
            state=parts[_STATE].decode(),
            positions=places["seqs"],
            creation_count=places["births"],
            summaries=places["ledger"],
            unsent=places["unsent"],
            files={
                part.removeprefix(_FILE): content
                for part, content in parts.items()
                if part.startswith(_FILE)
            }
            if places["files"]
            else None,
        )
