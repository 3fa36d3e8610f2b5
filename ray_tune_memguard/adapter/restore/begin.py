"""Begins the files of the run that continues an experiment, before its controller has any trial.

The rows of trials that stay on disk become rows of the new run's store. If the disk has no room for
them, no controller was changed.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from ray_tune_memguard.adapter.installation import RunFiles, new_summary_index
from ray_tune_memguard.adapter.restore.new_run import NewRun
from ray_tune_memguard.adapter.restore.plan import RestorePlan
from ray_tune_memguard.adapter.restore.verify import VerifiedStore
from ray_tune_memguard.adapter.serialization.state_record import reported_in_record
from ray_tune_memguard.lazy.summaries import TrialSummaryIndex
from ray_tune_memguard.notices import logger
from ray_tune_memguard.store.snapshot import Snapshot
from ray_tune_memguard.store.state_file import ExperimentStateFile
from ray_tune_memguard.store.trial_store import TrialStore

_RECORDS_AT_ONCE = 256


@dataclass(frozen=True)
class BegunRun:
    """A run whose files have the trials that stay on disk.

    Attributes:
        files: the run's files.
        summaries: the index of the trials in the store.
        unsent: trial directories in the staging directory that are still to be uploaded.
        replaces: the store of the previous run, which this run's store replaces; None if it belongs
            to another experiment, of which this one is a copy.
    """

    files: RunFiles
    summaries: TrialSummaryIndex
    unsent: tuple[str, ...] = ()
    replaces: Path | None = None


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
    try:
        with files.store.transaction():
            files.store.copy_rows(
                found.store, ((int(old.position), position) for position, old in plan.staying())
            )
        _begin_state_file(files.state_file, files.store)
        summaries = _summaries(plan, found.snapshot)
        replaces = found.store.path if found.is_owned() else None
    except BaseException:
        files.discard()
        raise
    return BegunRun(files, summaries, unsent, replaces)


def fetch_trial_files(plan: RestorePlan, found: VerifiedStore, staging: Path) -> tuple[str, ...]:
    """Copy files of finished trials that were not uploaded into this run's staging directory.

    A killed driver leaves such files in its own staging directory; Ray uploads them from this
    run's. On another machine, or if temporary files were deleted, they are missing: these trials
    then have their last result and no history.

    Returns:
        The directories still to be uploaded.
    """
    staged = Path(found.store.get_metadata("staging") or "")
    states = [trial.state_json for trial in plan.unsnapshotted] + plan.finished_in_memory()
    of_trials = {json.loads(state).get("relative_logdir") for state in states}
    fetched = []
    for directory in {*found.snapshot.unsent, *of_trials}:
        if not directory or not staged.is_absolute() or not (staged / directory).is_dir():
            continue
        try:
            if staged != staging:
                shutil.copytree(staged / directory, staging / directory, dirs_exist_ok=True)
        except OSError as error:
            logger.warning("Files in %s are missing: %s", staged / directory, error)
        else:
            fetched.append(directory)
    return tuple(fetched)


def _begin_state_file(state_file: ExperimentStateFile, store: TrialStore) -> None:
    records = store.state_records()
    while batch := list(islice(records, _RECORDS_AT_ONCE)):
        state_file.add(batch)


def _summaries(plan: RestorePlan, snapshot: Snapshot) -> TrialSummaryIndex:
    summaries = new_summary_index()
    positions = {entry.trial_id: position for position, entry in plan.staying()}
    summaries.load(snapshot.summaries, positions)
    for trial in plan.unsnapshotted:
        if trial.trial_id in positions:  # Otherwise it runs again.
            reported = reported_in_record(trial.metadata_json)
            summaries.note(positions[trial.trial_id], trial.trial_id, *reported)
    return summaries
