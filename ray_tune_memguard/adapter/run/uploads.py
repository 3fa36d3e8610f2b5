"""Uploads only the files that may have changed since the last upload.

At every experiment checkpoint Ray copies its whole staging directory to the storage, including the
files of finished trials, which no longer change. The time and memory for that grow with the number
of trials. Here the directory of a spilled trial is uploaded once more after the spill, and then
skipped. The last upload of a run also uploads directories that were written to later.
"""

from __future__ import annotations

import copy
import functools
import os
import posixpath
import sqlite3
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from pyarrow.fs import FileSystem, LocalFileSystem
from ray.train._internal.storage import (
    StorageContext,
    _FilesystemSyncer,
    _pyarrow_fs_copy_files,
    _upload_to_fs_path,
)
from ray.tune.experiment import Trial

from ray_tune_memguard.adapter import boundary
from ray_tune_memguard.adapter.boundary import Policy, RaysOwn
from ray_tune_memguard.adapter.histories.directories import is_taken_away
from ray_tune_memguard.adapter.paths import DIRECTORY, STATE_FILE_PREFIX, StagingListing
from ray_tune_memguard.adapter.run.local_copy import copy_directory, copy_file
from ray_tune_memguard.lazy.trial_list import SpilledTrials
from ray_tune_memguard.notices import logger
from ray_tune_memguard.report.records import SUFFIX

if TYPE_CHECKING:
    from ray_tune_memguard.adapter.run.part_uploads import PartUpload, PartUploads
    from ray_tune_memguard.adapter.seam import Controller

_SHARE_OF_UPLOADS = 0.01
# A file of measurements grows with the trials and is uploaded whole, so only when it has grown by
# a quarter, and at the end.
_GROWN = 1.25


@dataclass(frozen=True)
class StateUpload:
    """How one upload treats the experiment state.

    Attributes:
        parts: what to upload in parts, if it is.
        leave_out: whether the files of the experiment checkpoint are not copied.
        end: how many bytes of the state file, at least, are records of finished trials.
    """

    parts: PartUpload | None = None
    leave_out: bool = False
    end: int = 0


class IncrementalSyncer(_FilesystemSyncer):
    """Ray's syncer, with an upload that skips files that the storage already has.

    Args:
        original: Ray's syncer of the run.
        trials: the run's trials.
        spilled_directories: returns the directory of each spilled trial, and the time of its spill
            in seconds since the epoch.
        staging: lists the other files in the staging directory.

    Attributes:
        thorough: whether the next upload is the last one of the run; the controller sets it.
        running: the number of uploads under way, also those that Ray no longer waits for.
        copying_state: the number of those that copy the whole experiment state file.
    """

    def __init__(
        self,
        original: _FilesystemSyncer,
        trials: SpilledTrials[Trial],
        spilled_directories: Callable[[], Iterator[tuple[str, float]]],
        staging: StagingListing,
    ) -> None:
        super().__init__(
            storage_filesystem=original.storage_filesystem,
            sync_period=original.sync_period,
            sync_timeout=original.sync_timeout,
        )
        self._trials = trials
        self._spilled_directories = spilled_directories
        self._staging = staging
        self.thorough = False
        self.running = self.copying_state = 0
        # The first upload takes everything, because what the storage has is unknown.
        self._first = True
        # Directories of spilled trials that were not uploaded since the spill.
        self._unsent: set[str] = set()
        # Files beside the trials' directories: time and size of the version that was uploaded.
        self._uploaded: dict[str, tuple[int, int]] = {}
        #: Uploads the experiment state in parts; None if it is always copied whole.
        self.part_uploads: PartUploads | None = None

    def mark_for_upload(self, directory: str | None) -> None:
        """Upload this trial directory once more."""
        if directory:
            self._unsent.add(directory)

    def unsent(self) -> list[str]:
        """Directories of spilled trials that may not be in the storage yet."""
        return list(self._unsent)

    def _sync_up_command(
        self, local_path: str, uri: str, exclude: list[str] | None = None
    ) -> tuple[Callable[..., None], dict[str, Any]]:
        return _COMMAND(self, local_path, uri, exclude)

    def command(
        self, rays: RaysOwn, local_path: str, uri: str, exclude: list[str] | None
    ) -> tuple[Callable[..., None], dict[str, Any]]:
        """The function that Ray's upload thread calls, and its arguments."""
        finished = frozenset(self._unsent)
        upload, arguments = rays(self, local_path, uri, exclude)
        if not exclude:
            # A trial that has not been started yet has no directory.
            live = {trial.relative_logdir for trial in self._trials.resident()} - {None}
            upload = functools.partial(_UPLOAD, self)
            arguments = {
                "local_path": local_path,
                "fs_path": uri,
                "changed": finished | live,
                "state": self._begin_state(),
            }
        return self._upload_and_unmark, {
            "upload": upload,
            "arguments": arguments,
            "finished": finished,
        }

    def _begin_state(self) -> StateUpload:
        """How the experiment state is uploaded this time."""
        parts = self.part_uploads
        if parts is None:
            return StateUpload()
        # Ray may no longer wait for an earlier upload, which may still write parts.
        if (self.running or parts.must_wait) and not self.thorough:
            return StateUpload(leave_out=True)
        try:
            upload = parts.begin(whole=self._first or self.thorough)
        except (OSError, sqlite3.Error) as error:
            logger.debug("The experiment state is uploaded whole: %s", error)
            upload = None
        return StateUpload(upload, upload is not None, parts.written_end)

    def complete(self, fs_path: str) -> None:
        """Upload the whole experiment state of a run that has ended without a last upload.

        Args:
            fs_path: the experiment's path in the storage.

        Raises:
            Exception: the storage cannot be written; it still has all parts.
        """
        parts = self.part_uploads
        if parts is not None and parts.are_newer:
            names = {
                name for name in self._staging.refresh() if self._staging.is_of_checkpoint(name)
            }
            for name in sorted(names, key=lambda name: (name != self._staging.state_file, name)):
                path = str(self._staging.directory / name)
                _upload(path, self.storage_filesystem, posixpath.join(fs_path, name))
            parts.whole_was_uploaded(parts.written_end)

    def _upload_and_unmark(
        self, upload: Callable[..., None], arguments: dict[str, Any], finished: frozenset[str]
    ) -> None:
        """Runs in Ray's upload thread. If the upload fails, the next one repeats it."""
        state = arguments.get("state")
        is_whole = state is None or not state.leave_out
        self.running += 1
        self.copying_state += is_whole
        try:
            upload(**arguments)
        finally:
            self.running -= 1
            self.copying_state -= is_whole
        self._first = False
        self._unsent.difference_update(finished)

    def upload_changed(
        self, rays: RaysOwn, local_path: str, fs_path: str, changed: set[str], state: StateUpload
    ) -> None:
        """Upload the files that may have changed. Runs in Ray's upload thread."""
        try:
            names = set(self._chosen(local_path, changed))
        except sqlite3.Error:  # The store cannot be read: upload everything, as Ray does.
            rays(self, local_path, fs_path)
            return
        failure: Exception | None = None
        filesystem = self.storage_filesystem
        assert filesystem is not None
        if state.leave_out:
            # The whole file in the storage stays in step with the other files of its checkpoint.
            names = {name for name in names if name in changed or not self._is_of_state(name)}
        if state.parts is not None and self.part_uploads is not None:
            try:
                self.part_uploads.carry_out(
                    state.parts,
                    lambda source, target: rays.call(_upload, source, filesystem, target),
                )
            except Exception as error:
                failure = error
        if DIRECTORY in names:
            with suppress(FileNotFoundError):
                own = os.listdir(os.path.join(local_path, DIRECTORY))
                names.update(f"{DIRECTORY}/{name}" for name in own)
        # The state file comes first, so that a restore never finds a file that refers to a trial
        # which the state file lacks. Files of searchers and callbacks follow.
        order = {
            name: (not name.startswith(STATE_FILE_PREFIX), name in changed, name) for name in names
        }
        for name in sorted(names, key=order.__getitem__):
            path = os.path.join(local_path, name)
            target = posixpath.join(fs_path, name)
            try:
                if name == DIRECTORY:
                    # Its files follow one by one.
                    rays.call(filesystem.create_dir, target, recursive=True)
                    continue
                if is_taken_away(local_path, name):
                    continue
                version = _version(path)
                if self._is_due(name, version):
                    rays.call(_upload, path, filesystem, target)
                    if version is not None:
                        self._uploaded[name] = version
            except FileNotFoundError as error:
                # A temporary file that was deleted in the meantime is no failure.
                failure = error if os.path.exists(path) else failure
            except Exception as error:
                failure = error
        if failure is not None:
            raise failure
        is_whole = not state.leave_out and self._staging.state_file in names
        if self.part_uploads is not None and is_whole:
            self.part_uploads.whole_was_uploaded(state.end)

    def _is_due(self, name: str, version: tuple[int, int] | None) -> bool:
        """Whether a directory, or this version of a file, is to be uploaded now."""
        if version is None or self.thorough:
            return True
        sent = self._uploaded.get(name)
        if sent is None or sent == version or not _is_measurement(name):
            return sent != version
        return not sent[1] <= version[1] < _GROWN * sent[1]

    def _is_of_state(self, name: str) -> bool:
        return self._staging.is_of_checkpoint(name) and (self._staging.directory / name).is_file()

    def _chosen(self, local_path: str, changed: set[str]) -> Iterable[str]:
        """The names in the staging directory whose files may have changed."""
        if self._first:
            with os.scandir(local_path) as entries:
                return {entry.name for entry in entries}
        if self.thorough:
            return self._staging.refresh() | changed | self._written_later(local_path)
        return self._staging.names(_SHARE_OF_UPLOADS) | changed

    def _written_later(self, local_path: str) -> set[str]:
        """Directories of spilled trials that were written to after the spill."""
        return {
            directory
            for directory, finished_at in self._spilled_directories()
            if _last_write(os.path.join(local_path, directory)) >= finished_at
        }


@boundary.entry("_FilesystemSyncer._sync_up_command", Policy.CALL_RAY)
def _command(
    rays: RaysOwn,
    syncer: IncrementalSyncer,
    local_path: str,
    uri: str,
    exclude: list[str] | None = None,
) -> tuple[Callable[..., None], dict[str, Any]]:
    return syncer.command(rays, local_path, uri, exclude)


_COMMAND = _command.in_place_of(_FilesystemSyncer._sync_up_command)


def _upload_everything(
    syncer: IncrementalSyncer, local_path: str, fs_path: str, **_: object
) -> None:
    """Upload the whole staging directory, as Ray does."""
    syncer.copying_state += 1
    try:
        _upload_to_fs_path(local_path=local_path, fs=syncer.storage_filesystem, fs_path=fs_path)
    finally:
        syncer.copying_state -= 1


@boundary.entry("upload of a staging directory", Policy.CALL_RAY)
def _upload_changed(
    rays: RaysOwn,
    syncer: IncrementalSyncer,
    local_path: str,
    fs_path: str,
    changed: set[str],
    state: StateUpload,
) -> None:
    syncer.upload_changed(rays, local_path, fs_path, changed, state)


_UPLOAD = _upload_changed.in_place_of(_upload_everything)


def upload_incrementally(
    controller: Controller,
    trials: SpilledTrials[Trial],
    spilled_directories: Callable[[], Iterator[tuple[str, float]]],
    staging: StagingListing,
) -> tuple[IncrementalSyncer, Callable[[Controller], None]]:
    """Replace the syncer of the controller's checkpoint manager.

    Only the manager's storage context changes. Ray sends the trials' own contexts to actors and
    writes them to the experiment state, which may be read where this package is not installed.

    Returns:
        The new syncer, and a function that restores the controller's own syncer.
    """
    manager = controller._checkpoint_manager
    own = manager._storage
    own_syncer = cast(_FilesystemSyncer, own.syncer)
    syncer = IncrementalSyncer(own_syncer, trials, spilled_directories, staging)
    manager._storage = _with_fixed_path(own)
    manager._storage.syncer = syncer

    def restore_syncer(to: Controller) -> None:
        to._checkpoint_manager._storage = own
        # Ray must wait for an upload that is under way before it begins another one.
        own_syncer._sync_process = syncer._sync_process

    return syncer, restore_syncer


def _with_fixed_path(storage: StorageContext) -> StorageContext:
    """A copy with a fixed staging directory, whose path Ray would compute on every step."""
    fixed = copy.copy(storage)
    path = storage.experiment_driver_staging_path
    fixed.__class__ = type(
        type(storage).__name__, (type(storage),), {"experiment_driver_staging_path": path}
    )
    return fixed


def _is_measurement(name: str) -> bool:
    """Whether it is a file of measurements, to which lines are only added."""
    return name.startswith(f"{DIRECTORY}/") and name.endswith((".csv", SUFFIX))


def _version(path: str) -> tuple[int, int] | None:
    """The modification time (ns) and size (bytes) of a file; None for a directory."""
    status = os.stat(path)
    return (status.st_mtime_ns, status.st_size) if stat.S_ISREG(status.st_mode) else None


def _upload(source: str, filesystem: FileSystem, path: str) -> None:
    """Copy a file or a directory to ``path``. Like Ray, it copies nothing else.

    On a local disk Arrow is not used, because it keeps the buffers that it copies with.
    """
    local = isinstance(filesystem, LocalFileSystem)
    if os.path.isdir(source):
        if local:
            copy_directory(source, path)
        else:
            _upload_to_fs_path(local_path=source, fs=filesystem, fs_path=path)
    elif os.path.isfile(source):
        if local:
            # A kill must not leave half of the file under its name.
            head, name = posixpath.split(path)
            part = posixpath.join(head, f".{name}.part")
            copy_file(source, part)
            os.replace(part, path)
        else:
            _pyarrow_fs_copy_files(source, path, destination_filesystem=filesystem)


def _last_write(directory: str) -> float:
    """The latest change below ``directory``, in seconds since the epoch.

    It includes the ctime, because a moved or copied file may keep an old mtime.
    """
    latest = 0.0
    folders = [directory]
    for folder in folders:
        # Each file by itself, because it may have been deleted in the meantime.
        with suppress(OSError):
            latest = max(latest, _written(os.stat(folder)))
            with os.scandir(folder) as entries:
                for entry in entries:
                    with suppress(OSError):
                        if entry.is_dir(follow_symlinks=False):
                            folders.append(entry.path)
                        else:
                            latest = max(latest, _written(entry.stat()))
    return latest


def _written(status: os.stat_result) -> float:
    return max(status.st_mtime, status.st_ctime)
