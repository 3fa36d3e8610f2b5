"""Where the histories of an experiment are, and how they are opened.

On a local disk they are in the experiment's ``.memguard/``. Elsewhere a run writes them beside
Ray's local staging directory, and copies them to the experiment's ``.memguard/`` when it ends. What
is there, and what an earlier run has left on this machine, may be of different runs; see
:mod:`~ray_tune_memguard.adapter.histories.joining`.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import re
import shutil
import sqlite3
import tempfile
import threading
import time
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyarrow.fs import FileSystem, FileType

from ray_tune_memguard.adapter import boundary, location, paths
from ray_tune_memguard.adapter.claims import end_abandoned_runs
from ray_tune_memguard.adapter.histories import joining
from ray_tune_memguard.adapter.restore.locate import StateFile
from ray_tune_memguard.notices import logger
from ray_tune_memguard.store import files
from ray_tune_memguard.store.errors import StoreError, is_locked
from ray_tune_memguard.store.histories import FILE_NAME, HistoryStore, finish_salvage

if TYPE_CHECKING:
    from ray_tune_memguard.adapter.seam import Controller

# Experiments whose histories are open for reading in this process.
_MAX_OPEN = 4
_COPY_BYTES = 1 << 20
_LOOK_AGAIN_AFTER_S = 5.0
# In Arrow's name of a file system, which has the protocols of one of fsspec.
_OBJECT_STORE = re.compile(r"\b(s3a?|gcs|gs|abfss?|az|adl)\b")
#: The metadata key of the staging directory of the last run on this machine.
STAGING = "staging"


@dataclass(frozen=True)
class Experiment(location.Experiment):
    """The location of an experiment.

    Attributes:
        staging: the run's local staging directory, by which callbacks may open the experiment.
    """

    staging: str | None = None

    @classmethod
    def of_run(cls, controller: Controller) -> Experiment:
        storage = controller._storage
        return cls(
            storage.storage_filesystem,
            str(storage.experiment_fs_path),
            str(storage.experiment_driver_staging_path),
        )

    @property
    def file(self) -> str:
        """The path of the histories in the experiment's file system."""
        return posixpath.join(self.path, paths.DIRECTORY, FILE_NAME)


def local_file(controller: Controller) -> Path:
    """The file that a run writes."""
    experiment = Experiment.of_run(controller)
    if experiment.is_local:
        return Path(experiment.file)
    staging = Path(controller._storage.experiment_driver_staging_path)
    return paths.work_directory(staging) / FILE_NAME


def open_for_run(controller: Controller) -> HistoryStore:
    """Open the histories of a run's experiment to continue them, or create them.

    Damaged histories are replaced by new ones with the intact results. What is only published, or
    only in the file that a killed run has left on this machine, is brought together.

    Raises:
        OSError, sqlite3.Error: the file cannot be written, or another run is writing it.
        StoreError: another version of this package wrote it.
    """
    experiment, path = Experiment.of_run(controller), local_file(controller)
    end_abandoned_runs(experiment.path)
    finish_salvage(path)
    _close_opened(str(path))
    was_here = path.exists()
    if experiment.is_local:
        store, _ = joining.open_salvaged(path)
    else:
        store = _open_elsewhere(experiment, path)
    try:
        store.begin_run()
        if not was_here and store.get_metadata(STAGING):
            # That path is the same on all machines of a Ray session.
            store.set_metadata(**{STAGING: ""})
    except BaseException:
        store.close()
        raise
    for key in _keys(experiment):
        _live[key] = store
    return store


def _open_elsewhere(experiment: Experiment, path: Path) -> HistoryStore:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".others-", dir=path.parent) as directory:
        others = []
        left = _left_behind(experiment)
        if left is not None and left != path:
            others.append(Path(directory, "left", FILE_NAME))
            files.copy_to(left, others[-1])
        published = Path(directory, FILE_NAME)
        if _fetch(experiment, published):
            others.append(published)
        return joining.open_with_all(path, others, experiment.path)


def has_histories(controller: Controller) -> bool:
    """Whether an earlier run of the experiment has left histories."""
    experiment, path = Experiment.of_run(controller), local_file(controller)
    finish_salvage(path)
    return path.exists() or (not experiment.is_local and _version_of(experiment) is not None)


def has_file(filesystem: FileSystem, path: str) -> bool:
    """Whether an experiment has histories, whether or not they can be read now."""
    return _version_of(Experiment(filesystem, path)) is not None


def note_files(store: HistoryStore) -> None:
    """Note that Ray's loggers have written results of the experiment to files as well."""
    store.set_metadata(**{joining.HAS_FILES: "yes"})


def may_have_files(experiment: Experiment, store: HistoryStore) -> bool:
    """Whether trials may have results in files that are not in the histories."""
    # On a local disk a user's own loggers are read too; elsewhere each look takes too long.
    if experiment.is_local or store.get_metadata(joining.HAS_FILES):
        return True
    try:
        state_file = StateFile.newest_of(experiment)
    except OSError:
        return True
    return state_file is not None and state_file.pointer() is None


def publish(experiment: Experiment, path: Path) -> None:
    """Copy the histories of a run that has ended to the experiment's storage.

    Raises:
        OSError: they could not be copied.
    """
    if experiment.is_local:
        return
    experiment.filesystem.create_dir(posixpath.dirname(experiment.file), recursive=True)
    upload(path, experiment.filesystem, experiment.file)


def upload(path: Path, filesystem: FileSystem, target: str) -> None:
    """Copy a local file to a storage, where it is whole under its name.

    Raises:
        OSError: it could not be copied.
    """
    # Object stores show a file when it is closed, and move it by copying it.
    if _OBJECT_STORE.search(str(filesystem.type_name)):
        _write(path, filesystem, target)
        return
    part = f"{target}.part"
    try:
        _write(path, filesystem, part)
        filesystem.move(part, target)
    # Not every storage can, or in place of a file, or with the arguments that Arrow gives (SFTP).
    except Exception as error:
        with contextlib.suppress(Exception):
            filesystem.delete_file(part)
        boundary.raise_if_of_signal(error)
        _write(path, filesystem, target)


def _write(path: Path, filesystem: FileSystem, target: str) -> None:
    with path.open("rb") as source, filesystem.open_output_stream(target) as output:
        shutil.copyfileobj(source, output, _COPY_BYTES)


def _fetch(experiment: Experiment, path: Path) -> bool:
    """Copy the published histories of an experiment to a new local file, if there are any."""
    if _size_of(experiment) is None:
        return False
    with (
        experiment.filesystem.open_input_stream(experiment.file) as source,
        path.open("xb") as target,
    ):
        shutil.copyfileobj(source, target, _COPY_BYTES)
    return True


def _size_of(experiment: Experiment) -> tuple[int, int] | None:
    """The size and the time (ns) of the published file; None if there is none."""
    info = experiment.filesystem.get_file_info(experiment.file)
    return None if info.type != FileType.File else (info.size, info.mtime_ns or 0)


def _left_behind(experiment: Experiment) -> Path | None:
    """The file that the last run, or one before it, has left on this machine, if there is one.

    It may be older than what is published: another machine may have the same path.
    """
    try:
        state_file = StateFile.newest_of(experiment)
    except OSError:
        return None
    pointer = None if state_file is None else state_file.pointer()
    if state_file is None or pointer is None:
        return None
    # Beside the staging directory. The trial store is there, too, unless it is in a `spill_dir`;
    # state files of earlier versions have only its path.
    staging = state_file.staging()
    beside = pointer.parent if staging is None else paths.work_directory(Path(staging))
    file = beside / FILE_NAME
    return file if file.is_file() else None


# Stores in this process.

#: Of runs that go on, by the path of the experiment and of its staging directory.
_live: weakref.WeakValueDictionary[str, HistoryStore] = weakref.WeakValueDictionary()
#: Opened for reading, by the path of the file, with what the file was then. The latest is last.
_opened: dict[str, tuple[Any, HistoryStore]] = {}
#: When to look again, by ``time.monotonic()``.
_look_again_at: dict[str, float] = {}
_lock = threading.RLock()
_warned: set[str] = set()
#: The runs of a published file, by its path, with what the file was then.
_published_runs: dict[str, tuple[object, frozenset[str]]] = {}


def forget_live(experiment: Experiment) -> None:
    """Let a store be opened again when it is read, because its run has ended."""
    for key in _keys(experiment):
        _live.pop(key, None)
        _look_again_at.pop(f"{key}/{FILE_NAME}", None)


def _keys(experiment: Experiment) -> list[str]:
    staging = experiment.staging
    staged = [] if staging is None else [f"local:{os.path.realpath(staging)}"]
    if experiment.is_local:  # A path may have several spellings.
        return [f"local:{os.path.realpath(experiment.path)}", *staged]
    kind = str(experiment.filesystem.type_name)
    return [f"{kind}:{experiment.path.rstrip('/')}", *staged]


def find(filesystem: FileSystem, path: str) -> HistoryStore | None:
    """The histories of an experiment, opened for reading.

    Args:
        filesystem: of the experiment's storage.
        path: the experiment's directory in it.

    Returns:
        The histories; None if the experiment has none, or they cannot be read now. The second is
        logged once.
    """
    experiment = Experiment(filesystem, path)
    live = _live.get(_keys(experiment)[0])
    if live is not None:
        return live
    with _lock:
        try:
            return _open(experiment)
        except (OSError, sqlite3.Error, StoreError) as error:
            if experiment.file not in _warned:
                _warned.add(experiment.file)
                logger.warning("The histories in %s cannot be read (%s).", experiment.file, error)
            return None


def _open(experiment: Experiment) -> HistoryStore | None:
    key = f"{_keys(experiment)[0]}/{FILE_NAME}"
    known = _opened.get(key)
    # There may be a look for each trial, and each takes its time if it goes to remote storage, or
    # copies what a run of another process is writing.
    if time.monotonic() < _look_again_at.get(key, 0.0):
        return None if known is None else known[1]
    if not experiment.is_local:
        _look_again_at[key] = time.monotonic() + _LOOK_AGAIN_AFTER_S
    version = _version_of(experiment)
    if known is not None and known[0] == version:
        return known[1]
    _opened.pop(key, None)
    if version is None:
        return None
    if experiment.is_local:
        store = _open_here(Path(experiment.file), key)
    else:
        store = _open_latest(experiment, key)
    _opened[key] = version, store
    while len(_opened) > _MAX_OPEN:
        _opened.pop(next(iter(_opened)))
    return store


def _open_here(path: Path, key: str) -> HistoryStore:
    """Open a local file, or a copy if a run of another process is writing it."""
    try:
        return HistoryStore.open(path)
    except sqlite3.OperationalError as error:
        if not is_locked(error):
            raise
        store = HistoryStore.open_copy(path)
        _look_again_at[key] = time.monotonic() + _LOOK_AGAIN_AFTER_S
        return store


def _open_latest(experiment: Experiment, key: str) -> HistoryStore:
    """Open what a run would go on with, of the published file and of one on this machine."""
    left = _left_behind(experiment)
    here = None
    if left is not None:
        try:
            here = _open_here(left, key)
        except StoreError:
            if _size_of(experiment) is None:
                raise
    if here is not None and _has_published(experiment, here):
        return here
    with tempfile.TemporaryDirectory(prefix="memguard-") as directory:
        # The copy stays readable while it is open.
        copy = Path(directory, FILE_NAME)
        _fetch(experiment, copy)
        try:
            published = HistoryStore.open(copy)
        except StoreError:
            if here is None:
                raise
            return here
        _published_runs[experiment.file] = _size_of(experiment), frozenset(published.runs())
        if left is None or here is None or published.has_runs_of(here):
            return published
        if here.has_runs_of(published):
            return here
        here.close()
        return joining.view_of_both(left, published, Path(directory))


def _has_published(experiment: Experiment, store: HistoryStore) -> bool:
    """Whether a store has all that is published, as far as is known without fetching that."""
    version = _size_of(experiment)
    known, runs = _published_runs.get(experiment.file, (None, frozenset()))
    return version is None or (known == version and bool(runs) and runs <= set(store.runs()))


def _version_of(experiment: Experiment) -> object | None:
    """What changes with the content of the file; None if there is no file."""
    found: list[object] = []
    file: str | Path | None = experiment.file
    if not experiment.is_local:
        published = _size_of(experiment)
        found += [] if published is None else [published]
        file = _left_behind(experiment)
    for suffix in ("", "-wal") if file is not None else ():
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            status = Path(f"{file}{suffix}").stat()
            found.append((status.st_ino, status.st_size, status.st_mtime_ns))
    return tuple(found) or None


def _close_opened(path: str) -> None:
    """Close what this process has opened for reading, for a reader would refuse the lock."""
    with _lock:
        for key in [key for key, (_, store) in _opened.items() if str(store.path) == path]:
            _opened.pop(key)[1].close()
