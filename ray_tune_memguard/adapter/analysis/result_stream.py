"""Streams all results of all trials of an experiment, also of one that is running or was killed.

The trials are those of the experiment's trial store, in Ray's order. Trials that the store does not
know, or all of them if it cannot be read because its run is not over, are found by their
directories, in the order of their names.
"""

from __future__ import annotations

import io
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from pyarrow.fs import FileSystem

from ray_tune_memguard.adapter.analysis.histories import (
    FileHistories,
    Histories,
    StoredHistories,
    histories_at,
)
from ray_tune_memguard.adapter.analysis.result_rows import Record, UnevenRecordsError, records_of
from ray_tune_memguard.adapter.analysis.trial_reader import TrialReader
from ray_tune_memguard.adapter.histories import places
from ray_tune_memguard.adapter.location import Experiment
from ray_tune_memguard.adapter.restore.locate import StateFile, locate
from ray_tune_memguard.adapter.restore.opened import open_trials
from ray_tune_memguard.adapter.restore.rebuild import rebuild
from ray_tune_memguard.adapter.restore.verify import VerifiedStore, verify
from ray_tune_memguard.notices import logger
from ray_tune_memguard.store.errors import StoreError

_NAMES_AT_ONCE = 500


def results_of(path: str, filesystem: FileSystem | None) -> Iterator[tuple[str | None, Record]]:
    """Each result of each trial: the trial's id, if it is known, and the flat result.

    Raises:
        ValueError: there is no experiment at ``path``.
    """
    experiment = Experiment.at(path, filesystem)
    try:
        state_file = StateFile.newest_of(experiment)
    except OSError:  # It may be renamed at this moment; results are found without it.
        state_file = None
    if (
        state_file is None
        and not FileHistories(experiment.filesystem, experiment.path).directories()
        and places.find(experiment.filesystem, experiment.path) is None
    ):
        raise ValueError(f"There is no experiment at {path!r}.")
    return _stream(experiment, state_file)


def _stream(
    experiment: Experiment, state_file: StateFile | None
) -> Iterator[tuple[str | None, Record]]:
    found = _store_of(experiment)
    try:
        yield from _results(experiment, state_file, found)
    finally:
        if found is not None:
            found.close()


def _store_of(experiment: Experiment) -> VerifiedStore | None:
    """The store of the experiment; None if it cannot be read, or if Ray ran alone."""
    try:
        ref = locate(experiment)
        found = verify(ref)
        if found is None and ref.state_file is not None and ref.state_file.keeps_histories():
            # It was lost with its machine, maybe with all results but the last ones. Nothing is
            # written where the experiment is.
            found = rebuild(replace(ref, directory=None), ref.state_file)
        return found
    except (OSError, sqlite3.Error, StoreError, ValueError, KeyError) as error:
        logger.debug("The trials of %s are found by directory: %s", experiment.path, error)
        return None


def _results(
    experiment: Experiment, state_file: StateFile | None, found: VerifiedStore | None
) -> Iterator[tuple[str | None, Record]]:
    staging = _staging(state_file, found)
    files = FileHistories(experiment.filesystem, experiment.path, staging)
    histories = histories_at(experiment.filesystem, experiment.path, staging)
    in_memory: set[str | None] = set()
    seen: set[str] = set()
    if found is not None:
        trials = open_trials(found)
        reader = TrialReader(trials)
        in_memory = {trial.relative_logdir for trial in trials.resident()}
        seen = {trial.trial_id for trial in trials.resident()}
        for trial in trials:
            directory = reader.directory(trial)
            if directory is not None:
                records = _history(histories, trial.trial_id, directory)
                for record in records or records_of(reader.last_line(trial) or b""):
                    yield trial.trial_id, record
    for directory in _unknown(files.directories(), found):
        if directory not in in_memory:
            trial_id, records = _of_directory(histories, files, directory)
            seen.update(filter(None, [trial_id]))
            yield from ((trial_id, record) for record in records)
    if isinstance(histories, StoredHistories):
        for trial_id in histories.other_trials(lambda id_: id_ in seen or _knows(found, id_)):
            yield from ((trial_id, record) for record in _history(histories, trial_id, ""))


def _of_directory(
    histories: Histories, files: FileHistories, directory: str
) -> tuple[str | None, list[Record]]:
    """The id of a trial, if the histories know it, and its results, wherever they are."""
    records = _history(files, None, directory)
    trial_id = str(records[0].get("trial_id")) if records else ""
    if isinstance(histories, StoredHistories) and histories.knows(trial_id):
        return trial_id, _history(histories, trial_id, directory)
    return None, records


def _staging(state_file: StateFile | None, found: VerifiedStore | None) -> Path | None:
    """The staging directory of the last run, if it is still there."""
    name = found.store.get_metadata("staging") if found is not None else None
    if name is None and state_file is not None:
        name = state_file.staging()
    return Path(name) if name and Path(name).is_dir() else None


def _knows(found: VerifiedStore | None, trial_id: str) -> bool:
    return found is not None and found.store.row(trial_id) is not None


def _unknown(directories: list[str], found: VerifiedStore | None) -> Iterator[str]:
    for start in range(0, len(directories), _NAMES_AT_ONCE):
        some = directories[start : start + _NAMES_AT_ONCE]
        known = found.store.known_directories(some) if found is not None else set()
        yield from (name for name in some if name not in known)


def _history(histories: Histories, trial_id: str | None, directory: str) -> list[Record]:
    lines = histories.lines(trial_id or "", directory)
    if lines is not None:
        try:
            return records_of(lines)
        except UnevenRecordsError:
            # The last line of a trial that is running, or was when its driver was killed.
            return _readable(lines, directory)
    text = histories.csv(directory)
    return [] if not text else _records_of_csv(text)


def _readable(lines: bytes, directory: str) -> list[Record]:
    found: list[Record] = []
    left_out = 0
    whole, _, rest = lines.rpartition(b"\n")
    for line in [*whole.split(b"\n"), rest]:
        try:
            found += records_of(line)
        except UnevenRecordsError:
            left_out += line is not rest
    if left_out:
        logger.warning("%d lines of %s are not JSON and are left out.", left_out, directory)
    return found


def _records_of_csv(text: bytes) -> list[Record]:
    import pandas

    frame = pandas.read_csv(io.BytesIO(text), dtype={"trial_id": str})
    records: list[Record] = frame.to_dict("records")
    return records
