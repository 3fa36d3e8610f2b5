"""Exports the histories of an experiment to the files of Ray's loggers."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePath, PurePosixPath
from types import SimpleNamespace
from typing import Any, NamedTuple

from pyarrow.fs import FileSelector, FileSystem, LocalFileSystem
from ray.air.constants import EXPR_RESULT_FILE
from ray.tune.experiment import Trial

from ray_tune_memguard.adapter import boundary, paths
from ray_tune_memguard.adapter.histories import last_results, places, reading
from ray_tune_memguard.adapter.histories.export import EVENT_FILES, write_files
from ray_tune_memguard.adapter.histories.merging import are_the_same, merged
from ray_tune_memguard.adapter.incomplete_export import IncompleteExportError
from ray_tune_memguard.adapter.location import Experiment
from ray_tune_memguard.adapter.restore.opened import store_of
from ray_tune_memguard.adapter.restore.plan import unfinished_records
from ray_tune_memguard.adapter.restore.verify import VerifiedStore
from ray_tune_memguard.adapter.run.releasers import TensorboardExitHooks, tensorboard_exit_hooks
from ray_tune_memguard.adapter.serialization.json_text import decode
from ray_tune_memguard.adapter.serialization.state_record import last_result_in_record
from ray_tune_memguard.adapter.serialization.trial_pickle import TrialStateCodec
from ray_tune_memguard.lazy.cache import TrialCache
from ray_tune_memguard.lazy.interfaces import FINISHED
from ray_tune_memguard.store.histories import History, HistoryStore
from ray_tune_memguard.system.progress_bar import progress_bar

_RELEASE_EVERY_TRIALS = 50
_ROWS_AT_ONCE = 512
# A disk on which no other trial can be written either.
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
# If so many trials in a row cannot be written, it is the storage.
_MAX_FAILURES_IN_A_ROW = 10


@dataclass
class _FromRecord:
    """What is exported of a trial whose config or results need a class that is not here."""

    trial_id: str
    status: str
    relative_logdir: str | None
    storage: SimpleNamespace
    run_metadata: SimpleNamespace
    config: dict[str, object] = field(default_factory=dict)
    evaluated_params: dict[str, object] = field(default_factory=dict)

    @classmethod
    def of(cls, experiment: Experiment, state_json: str, metadata_json: str) -> _FromRecord:
        state = json.loads(state_json)
        directory = state.get("relative_logdir")
        try:
            last_result = last_result_in_record(metadata_json)
        except Exception as error:
            boundary.raise_if_of_signal(error)
            last_result = {}
        return cls(
            state["trial_id"],
            state["status"],
            directory,
            SimpleNamespace(
                storage_filesystem=experiment.filesystem,
                experiment_fs_path=experiment.path,
                trial_fs_path=f"{experiment.path}/{directory}",
            ),
            SimpleNamespace(last_result=last_result),
        )

    def is_finished(self) -> bool:
        return self.status in FINISHED


class _Listed(NamedTuple):
    """A trial of the experiment, before it is read."""

    trial_id: str
    read: Callable[[], Trial]
    record: Callable[[], list[str]]


class _Listing:
    """All trials of an experiment, finished ones first. None is read."""

    def __init__(self, found: VerifiedStore) -> None:
        self._store = found.store
        self._codec = TrialStateCodec(found.experiment, stub=True)
        self._cache = TrialCache(found.store, self._codec)
        records = decode(found.snapshot.state)["trial_data"]
        self._unfinished = {
            json.loads(record[0])["trial_id"]: record
            for _, record in unfinished_records(found.store, found.snapshot, records)
        }
        with_row = sum(found.store.row(trial_id) is not None for trial_id in self._unfinished)
        self._count = found.store.extent()[0] + len(self._unfinished) - with_row

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[_Listed]:
        for start in range(0, self._store.extent()[1] + 1, _ROWS_AT_ONCE):
            for row in self._store.rows(start, start + _ROWS_AT_ONCE):
                if row.trial_id not in self._unfinished:
                    yield self._finished(row.trial_id)
        for trial_id, record in self._unfinished.items():
            read = partial(self._codec.trial_of, *record)
            yield _Listed(trial_id, read, partial(list, record))

    def _finished(self, trial_id: str) -> _Listed:
        return _Listed(
            trial_id,
            lambda: self._cache.load_detached(trial_id),
            lambda: json.loads(self._store.state_record(trial_id)),
        )


def export_files(path: str, filesystem: FileSystem | None, destination: Path | None) -> None:
    """See :func:`ray_tune_memguard.exporting.export_results`."""
    experiment = Experiment.at(path, filesystem)
    if experiment.newest_state_file() is None:
        raise ValueError(f"There is no experiment at {path!r}.")
    store = places.find(experiment.filesystem, experiment.path)
    if store is None:
        if places.has_file(experiment.filesystem, experiment.path):
            raise RuntimeError(f"The histories of {path} cannot be read now.")
        if not last_results.are_in_store(experiment):
            return  # Its results are in files.
    found = store_of(path, filesystem)
    if found is None:
        raise RuntimeError(f"The trials of {path} cannot be read; its run may not be over.")
    bar = progress_bar(_Listing(found), "Writing files")
    left_out: list[str] = []
    failures = 0
    with _closed_writers_released() as hooks, _scratch(experiment, destination) as scratch:
        for number, listed in enumerate(bar):
            try:
                parts = _export_listed(listed, experiment, store, scratch, destination)
                failures = 0
            except OSError as error:
                failures += 1
                if error.errno in _OF_THE_DISK or failures == _MAX_FAILURES_IN_A_ROW:
                    raise
                parts = [f"it is not written: {error}"]
            left_out += [f"Trial {listed.trial_id}: {part}" for part in parts]
            if hooks is not None and number % _RELEASE_EVERY_TRIALS == 0:
                hooks.release_closed()
    if left_out:
        raise IncompleteExportError(left_out)


def _export_listed(
    listed: _Listed,
    experiment: Experiment,
    store: HistoryStore | None,
    scratch: Path,
    destination: Path | None,
) -> list[str]:
    """Export one trial, also if its config cannot be read. Returns what is left out."""
    trial: Any
    config_error = None
    try:
        try:
            trial = listed.read()
        except (OSError, sqlite3.Error):
            raise
        except Exception as error:
            boundary.raise_if_of_signal(error)
            trial, config_error = _FromRecord.of(experiment, *listed.record()), error
        target = None if destination is None else destination / (trial.relative_logdir or "")
        return _export(trial, store, scratch, target, config_error)
    except (OSError, sqlite3.Error):
        raise
    except Exception as error:
        boundary.raise_if_of_signal(error)
        return [f"it is not written: {error!r}"]


def _export(
    trial: Any,
    store: HistoryStore | None,
    scratch: Path,
    target: Path | None,
    config_error: Exception | None = None,
) -> list[str]:
    storage = trial.storage
    # Without a directory it has not begun.
    if storage is None or not trial.relative_logdir:
        return []
    path = PurePosixPath(storage.trial_fs_path, EXPR_RESULT_FILE)
    in_file = reading.results_in(reading.content_of(storage.storage_filesystem, str(path)))
    stored = History([]) if store is None else reading.history(store, trial.trial_id)
    history = merged(stored, in_file)
    count = len(history.results)
    if not count:
        history = History(last_results.of_trial(trial))
    # One that was running when its driver ended is pending, too.
    if not history.results and trial.status == Trial.PENDING:
        return []
    if target is None and len(stored.results) < count and are_the_same(history.results, in_file):
        return []  # All of it is in files.
    folder = scratch / trial.trial_id
    folder.mkdir()
    try:
        has_ended = trial.is_finished()
        left_out = write_files(
            trial, history, folder, has_ended=has_ended, config_error=config_error
        )
        if target is not None:
            _move(folder, target)
        elif isinstance(storage.storage_filesystem, LocalFileSystem):
            _move(folder, Path(storage.trial_fs_path))
        else:
            _upload(folder, storage.storage_filesystem, storage.trial_fs_path)
        return left_out
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _move(folder: Path, target: Path) -> None:
    """Put the files in place of those of an earlier export; each is whole under its name."""
    target.mkdir(parents=True, exist_ok=True)
    earlier = set(target.glob(EVENT_FILES))
    for path in folder.iterdir():
        os.replace(path, target / path.name)
        earlier.discard(target / path.name)
    for path in earlier:
        path.unlink()


def _upload(folder: Path, filesystem: FileSystem, target: str) -> None:
    filesystem.create_dir(target, recursive=True)
    present = filesystem.get_file_info(FileSelector(target))
    earlier = {file.base_name for file in present if PurePath(file.base_name).match(EVENT_FILES)}
    for path in folder.iterdir():
        places.upload(path, filesystem, str(PurePosixPath(target, path.name)))
        earlier.discard(path.name)
    for name in earlier:
        filesystem.delete_file(str(PurePosixPath(target, name)))


@contextmanager
def _scratch(experiment: Experiment, destination: Path | None) -> Iterator[Path]:
    """A directory for files that are being written, on the disk where they go."""
    parent = destination
    if parent is not None:
        parent.mkdir(parents=True, exist_ok=True)
    elif experiment.is_local:
        parent = Path(experiment.path, paths.DIRECTORY)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=parent) as directory:
        yield Path(directory)


@contextmanager
def _closed_writers_released() -> Iterator[TensorboardExitHooks | None]:
    """Let closed writers of event files be freed, of which tensorboardX keeps each."""
    hooks = tensorboard_exit_hooks()
    try:
        yield hooks
    finally:
        if hooks is not None:
            hooks.release_closed()
