"""Decides what a restore does with each trial, before anything is changed.

A :class:`RestorePlan` follows from a trial store and the user's ``ResumeConfig``; Ray need not be
running. The plan contains each trial once:

- A finished trial stays on disk, unless the user wants trials of its status to run again.
- Every other trial returns to memory. Ray then queues it, or skips it, as the user wants.

A record in the snapshot is older than a row of the same trial, so the row counts.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from ray.tune import ResumeConfig
from ray.tune.experiment import Trial
from ray.tune.utils import flatten_dict

from ray_tune_memguard.adapter.restore.verify import VerifiedStore
from ray_tune_memguard.adapter.serialization.json_text import decode
from ray_tune_memguard.adapter.serialization.state_record import last_result_in_record
from ray_tune_memguard.lazy.interfaces import FINISHED
from ray_tune_memguard.store.snapshot import Snapshot
from ray_tune_memguard.store.trial_store import TrialStore
from ray_tune_memguard.system.collector import no_collection


@dataclass(frozen=True)
class UnsnapshottedTrial:
    """A trial that was spilled after the last snapshot.

    Attributes:
        trial_id: its id.
        creation_index: the number of trials that the run had created before it; None if the run
            created it before the snapshot, so that the saved searcher knows it.
        state_json, metadata_json: its state record, as in the experiment state file.
        is_reported: whether it had finished by the snapshot, so that the saved searcher has its
            result.
    """

    trial_id: str
    creation_index: int | None
    state_json: str
    metadata_json: str
    is_reported: bool = False

    def failed(self) -> bool:
        return bool(json.loads(self.state_json)["status"] == Trial.ERROR)

    def result(self) -> dict[str, object]:
        flat: dict[str, object] = flatten_dict(last_result_in_record(self.metadata_json))
        return flat

    def parameters(self) -> dict[str, object]:
        """The parameters that the searcher suggested, as a flat dictionary."""
        parameters: dict[str, object] = decode(self.state_json)["evaluated_params"]
        return parameters


class RestoreEntry(NamedTuple):
    """A trial in the plan.

    Attributes:
        reported_at: when it last reported, in seconds since the epoch.
        position: its position in the previous run; infinite if it has none.
        trial_id, status: the trial's id, and its status at the end of the previous run.
        state_record: its state record, if it returns to memory; otherwise None.
    """

    reported_at: float
    position: float
    trial_id: str
    status: str
    state_record: list[str] | None = None

    def rank(self) -> tuple[float, float]:
        """The sort key of Ray's order: the trials that reported last come first."""
        return -self.reported_at, self.position


@dataclass(frozen=True)
class RestorePlan:
    """What becomes of the trials of an earlier run.

    Attributes:
        entries: all trials, in the order in which Ray restores them.
        runner_data: the state of Ray's controller.
        unsnapshotted: trials whose results the saved searcher may lack.
        rerun: statuses of finished trials that are to run again.
    """

    entries: list[RestoreEntry]
    runner_data: dict[str, object] = field(default_factory=dict)
    unsnapshotted: list[UnsnapshottedTrial] = field(default_factory=list)
    rerun: frozenset[str] = frozenset()

    def returning(self) -> list[list[str]]:
        """The records of trials that return to memory, in order."""
        return [entry.state_record for entry in self.entries if entry.state_record is not None]

    def first_record(self, store: TrialStore) -> list[str]:
        """The state record of the first trial that returns to memory, or else of the first one.

        Args:
            store: the store that has the trials that stay on disk.
        """
        returning = self.returning()
        return (
            returning[0] if returning else json.loads(store.state_record(self.entries[0].trial_id))
        )

    def staying(self) -> list[tuple[int, RestoreEntry]]:
        """The trials that stay on disk, with their new positions."""
        return [
            (position, entry)
            for position, entry in enumerate(self.entries)
            if entry.state_record is None
        ]

    def finished_in_memory(self) -> list[str]:
        """The states of trials that had finished by the snapshot, but were not spilled."""
        return [
            entry.state_record[0]
            for entry in self.entries
            if entry.state_record is not None
            and entry.status in FINISHED
            and entry.status not in self.rerun
        ]

    def __str__(self) -> str:
        returning = Counter(
            entry.status for entry in self.entries if entry.state_record is not None
        )
        staying = len(self.entries) - returning.total()
        statuses = ", ".join(f"{count} {status}" for status, count in sorted(returning.items()))
        return (
            f"{staying} finished trials stay on disk, {returning.total()} trials return to memory"
            + (f" ({statuses})" if statuses else "")
        )


# A collection would walk over the objects of all trials, again and again.
@no_collection()
def plan(found: VerifiedStore, resume_config: ResumeConfig) -> RestorePlan:
    """Decide what becomes of each trial. This changes nothing.

    Args:
        found: the trial store of the previous run.
        resume_config: which trials are to run again.
    """
    store, snapshot = found.store, found.snapshot
    state = decode(snapshot.state)
    records = state["trial_data"]
    treatments: dict[str, object] = {
        Trial.ERROR: resume_config.errored,
        Trial.TERMINATED: resume_config.finished,
    }
    rerun = frozenset(
        status
        for status, treatment in treatments.items()
        if treatment != ResumeConfig.ResumeType.SKIP
    )
    entries = [
        _returning(*record) for record in unfinished_records(store, snapshot, records, rerun)
    ]
    return_to_memory = {entry.trial_id for entry in entries}
    entries += [
        RestoreEntry(reported_at, position, trial_id, status)
        for reported_at, position, trial_id, status in store.report_times()
        if trial_id not in return_to_memory
    ]
    entries.sort(key=RestoreEntry.rank)
    # The searcher has also created the trials that run again, and knows that they ended. Only
    # trials that were to be resumed when the run ended are still running to the searcher.
    to_resume = {row.trial_id for row in store.to_resume()}
    unsnapshotted = [
        trial
        for trial in unsnapshotted_trials(store, snapshot, records)
        if trial.trial_id not in to_resume
    ]
    return RestorePlan(entries, state["runner_data"], unsnapshotted, rerun)


def _returning(position: int, record: list[str]) -> RestoreEntry:
    state, metadata = json.loads(record[0]), json.loads(record[1])
    return RestoreEntry(
        metadata["last_result_time"],
        math.inf if position < 0 else position,
        state["trial_id"],
        state["status"],
        record,
    )


def unsnapshotted_trials(
    store: TrialStore, snapshot: Snapshot, records: list[list[str]]
) -> Iterator[UnsnapshottedTrial]:
    """The trials that were spilled after the snapshot.

    Args:
        store: the trial store.
        snapshot: its snapshot.
        records: the trials in the snapshot.
    """
    creation_indices = {
        row.trial_id: creation_index
        for creation_index, row in store.created_since(snapshot.creation_count)
    }
    states = (json.loads(state) for state, _ in records)
    had_finished = {state["trial_id"]: state["status"] in FINISHED for state in states}
    spilled_since = [trial_id for trial_id in had_finished if store.row(trial_id) is not None]
    for trial_id in dict.fromkeys([*spilled_since, *creation_indices]):
        state_json, metadata_json = json.loads(store.state_record(trial_id))
        yield UnsnapshottedTrial(
            trial_id,
            creation_indices.get(trial_id),
            state_json,
            metadata_json,
            is_reported=had_finished.get(trial_id, False),
        )


def unfinished_records(
    store: TrialStore,
    snapshot: Snapshot,
    records: list[list[str]],
    rerun: frozenset[str] = frozenset(),
) -> list[tuple[int, list[str]]]:
    """Positions and records of trials that are not finished, or whose status is in ``rerun``.

    Args:
        store: the trial store.
        snapshot: its snapshot.
        records: the trials in the snapshot. Those that were spilled since are rows of the store.
        rerun: statuses of finished trials that are to run again.
    """
    found = []
    for position, record in zip(snapshot.positions, records, strict=True):
        if store.row(json.loads(record[0])["trial_id"]) is None:
            found.append((position, list(record)))
    for row in store.to_resume(rerun):
        found.append((row.position, json.loads(store.state_record(row.trial_id))))
    return found
