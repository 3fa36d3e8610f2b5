"""Exports the histories of an experiment to the files of Ray's loggers."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath, PurePosixPath

from pyarrow.fs import FileSelector, FileSystem, LocalFileSystem
from ray.air.constants import EXPR_RESULT_FILE
from ray.tune.experiment import Trial

from ray_tune_memguard.adapter import paths
from ray_tune_memguard.adapter.histories import places, reading
from ray_tune_memguard.adapter.histories.export import EVENT_FILES, write_files
from ray_tune_memguard.adapter.location import Experiment
from ray_tune_memguard.adapter.restore.opened import trials_of
from ray_tune_memguard.adapter.run.releasers import TensorboardExitHooks, tensorboard_exit_hooks
from ray_tune_memguard.store.histories import HistoryStore
from ray_tune_memguard.system.progress_bar import progress_bar

_RELEASE_EVERY_TRIALS = 50


def export_files(path: str, filesystem: FileSystem | None, destination: Path | None) -> None:
    """See :func:`ray_tune_memguard.exporting.export_results`."""
    experiment = Experiment.at(path, filesystem)
    if experiment.newest_state_file() is None:
        raise ValueError(f"There is no experiment at {path!r}.")
    store = places.find(experiment.filesystem, experiment.path)
    if store is None:
        if places.has_file(experiment.filesystem, experiment.path):
            raise RuntimeError(f"The histories of {path} cannot be read now.")
        return  # Its results are in files.
    trials = trials_of(path, filesystem)
    if trials is None:
        raise RuntimeError(f"The trials of {path} cannot be read; its run may not be over.")
    bar = progress_bar(trials, "Writing files")
    with _closed_writers_released() as hooks, _scratch(experiment, destination) as scratch:
        for number, listed in enumerate(bar):
            trial = trials.cache.peek(listed)
            target = None if destination is None else destination / (trial.relative_logdir or "")
            _export(trial, store, scratch, target)
            if hooks is not None and number % _RELEASE_EVERY_TRIALS == 0:
                hooks.release_closed()


def _export(trial: Trial, store: HistoryStore, scratch: Path, target: Path | None) -> None:
    storage = trial.storage
    # Without a directory it has not begun.
    if storage is None or not trial.relative_logdir:
        return
    path = PurePosixPath(storage.trial_fs_path, EXPR_RESULT_FILE)
    in_file = reading.results_in(reading.content_of(storage.storage_filesystem, str(path)))
    stored = reading.history(store, trial.trial_id)
    history = reading.merged(stored, in_file)
    count = len(history.results)
    # One that was running when its driver ended is pending, too.
    if not count and trial.status == Trial.PENDING:
        return
    if target is None and len(stored.results) < count == len(in_file):
        return  # All of it is in files.
    folder = scratch / trial.trial_id
    folder.mkdir()
    try:
        write_files(trial, history, folder, has_ended=trial.is_finished())
        if target is not None:
            _move(folder, target)
        elif isinstance(storage.storage_filesystem, LocalFileSystem):
            _move(folder, Path(storage.trial_fs_path))
        else:
            _upload(folder, storage.storage_filesystem, storage.trial_fs_path)
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
