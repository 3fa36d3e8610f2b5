"""Begins the files of the run that continues an experiment, before its controller has any trial.

The rows of trials that stay on disk become rows of the new run's store. If the disk has no room for
them, no controller was changed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ray_tune_memguard.adapter.installation import RunFiles, new_summary_index
from ray_tune_memguard.adapter.restore.new_run import NewRun
from ray_tune_memguard.adapter.restore.plan import RestorePlan
from ray_tune_memguard.adapter.restore.staged_files import fetch_saved_states
from ray_tune_memguard.adapter.restore.verify import VerifiedStore
from ray_tune_memguard.adapter.serialization.state_record import reported_in_record
from ray_tune_memguard.lazy.summaries import TrialSummaryIndex
from ray_tune_memguard.store.snapshot import Snapshot
from ray_tune_memguard.system.collector import no_collection


@dataclass(frozen=True)
class BegunRun:
    """A run whose files have the trials that stay on disk.

    Attributes:
        files: the run's files.
        has_saved_states: whether the staging directory has the states of searchers and callbacks.
        summaries: the index of the trials in the store.
        unsent: trial directories in the staging directory that are still to be uploaded.
        replaces: the store of the previous run, which this run's store replaces; None if it belongs
            to another experiment, of which this one is a copy.
    """

    files: RunFiles
    has_saved_states: bool
    summaries: TrialSummaryIndex
    unsent: tuple[str, ...] = ()
    replaces: Path | None = None


# A collection would walk over the objects of all trials, again and again.
@no_collection()
def begin(
    plan: RestorePlan, found: VerifiedStore, run: NewRun, unsent: tuple[str, ...] = ()
) -> BegunRun:
    """Create the new run's files, with the trials that stay on disk.

    Args:
        plan: what becomes of each trial.
        found: the trial store of the previous run.
        run: the new run.
        unsent: trial directories that are still to be uploaded.

    Raises:
        OSError, sqlite3.Error: the files cannot be written. None is left behind.
    """
    files = RunFiles.create(run.location, run.store_directory)
    # Otherwise Ray uploads experiment state files, and callbacks may read them where it does.
    is_direct = files.state_file.path.parent != run.location.staging
    try:
        if is_direct:
            fetch_saved_states(run.location.experiment, run.location.staging)
        with files.store.first_transaction(found.store):
            files.store.copy_rows(
                ((int(old.position), position) for position, old in plan.staying()),
                then=files.state_file.add,
            )
        summaries = _summaries(plan, found.snapshot)
        replaces = found.store.path if found.is_owned() else None
    except BaseException:
        files.discard()
        raise
    return BegunRun(files, is_direct, summaries, unsent, replaces)


def _summaries(plan: RestorePlan, snapshot: Snapshot) -> TrialSummaryIndex:
    summaries = new_summary_index()
    positions = {entry.trial_id: position for position, entry in plan.staying()}
    summaries.load(snapshot.summaries, positions)
    for trial in plan.unsnapshotted:
        if trial.trial_id in positions:  # Otherwise it runs again.
            reported = reported_in_record(trial.metadata_json)
            summaries.note(positions[trial.trial_id], trial.trial_id, *reported)
    return summaries
