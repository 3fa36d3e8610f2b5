"""The trials of an experiment that is opened for reading."""

from __future__ import annotations

import sqlite3

from pyarrow.fs import FileSystem
from ray.tune.experiment import Trial

from ray_tune_memguard.adapter.installation import new_summary_index
from ray_tune_memguard.adapter.location import Experiment
from ray_tune_memguard.adapter.restore.locate import locate
from ray_tune_memguard.adapter.restore.plan import unfinished_records, unsnapshotted_trials
from ray_tune_memguard.adapter.restore.rebuild import verify_or_rebuild
from ray_tune_memguard.adapter.restore.verify import VerifiedStore
from ray_tune_memguard.adapter.serialization.json_text import decode
from ray_tune_memguard.adapter.serialization.state_record import reported_in_record
from ray_tune_memguard.adapter.serialization.trial_pickle import TrialStateCodec
from ray_tune_memguard.lazy.cache import TrialCache
from ray_tune_memguard.lazy.trial_list import SpilledTrials
from ray_tune_memguard.notices import logger
from ray_tune_memguard.store.errors import is_locked


def trials_of(path: str, filesystem: FileSystem | None) -> SpilledTrials[Trial] | None:
    """The trials of the experiment at a path or URI. A store is built if there is none.

    Returns:
        The trials; None if Ray is to open the experiment, because its run is not over, its store
        cannot be read now, or there is no experiment (Ray then raises its own error).
    """
    found = store_of(path, filesystem)
    return None if found is None else open_trials(found)


def store_of(path: str, filesystem: FileSystem | None) -> VerifiedStore | None:
    """The trial store of the experiment at a path or URI, as :func:`trials_of` opens it."""
    experiment = Experiment.at(path, filesystem)
    try:
        return verify_or_rebuild(locate(experiment))
    except (OSError, sqlite3.OperationalError) as error:
        if isinstance(error, sqlite3.Error) and is_locked(error):
            logger.debug("The run is not over, so Ray alone opens %s: %s", path, error)
        else:
            logger.warning(
                "The trial store of %s cannot be read (%s). The experiment is opened as Ray does "
                "it, from the experiment state file.",
                path,
                error,
            )
        return None


def open_trials(found: VerifiedStore) -> SpilledTrials[Trial]:
    """The trials of an experiment. Each finished trial is read when it is used."""
    store, snapshot = found.store, found.snapshot
    codec = TrialStateCodec(found.experiment, stub=True)
    summaries = new_summary_index()
    summaries.load(snapshot.summaries)
    residents = {}
    records = decode(snapshot.state)["trial_data"]
    unfinished = unfinished_records(store, snapshot, records)
    for trial in unsnapshotted_trials(store, snapshot, records):
        row = store.row(trial.trial_id)
        if row is not None:
            summaries.note(row.position, row.trial_id, *reported_in_record(trial.metadata_json))
    end = max([store.extent()[1], *(position for position, _ in unfinished)]) + 1
    for position, record in unfinished:
        # A trial that was removed from the list but is in the snapshot comes last.
        if position < 0:
            position, end = end, end + 1
        residents[position] = codec.trial_of(*record)
    return SpilledTrials.reopened(residents, TrialCache(store, codec), summaries)
