"""Uploads to the experiment's storage what may have changed, instead of everything each time.

At every experiment checkpoint Ray copies its whole staging directory to the storage, the files of
all trials that ever were, though those of finished ones do not change any more. That takes time and
memory that grow with the number of trials. Here a settled trial's directory is uploaded once more
after it settled, and then left out. The last upload of a sweep looks whether anybody wrote to one
of them since.
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
from ray_tune_memguard.adapter.paths import STATE_FILE_PREFIX, StagingListing
from ray_tune_memguard.adapter.run.local_copy import copy_directory, copy_file
from ray_tune_memguard.lazy.trial_list import SpilledTrials

if TYPE_CHECKING:
    from ray_tune_memguard.adapter.seam import Controller

_SHARE_OF_UPLOADS = 0.01


class IncrementalSyncer(_FilesystemSyncer):
    """Ray's syncer, with an upload that leaves out what is known to be there.

    ``spilled_directories``: gives the directory of each spilled trial, and when it was spilled, in
    seconds since the epoch. ``thorough``: set by the controller for the last upload of a sweep.
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
        #: Uploads under way, those included that Ray has given up waiting for.
        self.running = 0
        # The first upload takes everything: what was there before is not known.
        self._first = True
        # Directories of settled trials that were not uploaded since.
        self._settled: set[str] = set()
        # Files beside the trials' directories, as they were when they were uploaded.
        self._uploaded: dict[str, tuple[int, int]] = {}

    def settled(self, directory: str | None) -> None:
        """This trial directory is to be uploaded once more."""
        if directory:
            self._settled.add(directory)

    def unsent(self) -> list[str]:
        """Directories of settled trials that may not be in the storage yet."""
        return list(self._settled)

    def _sync_up_command(
        self, local_path: str, uri: str, exclude: list[str] | None = None
    ) -> tuple[Callable[..., None], dict[str, Any]]:
        return _COMMAND(self, local_path, uri, exclude)

    def command(
        self, rays: RaysOwn, local_path: str, uri: str, exclude: list[str] | None
    ) -> tuple[Callable[..., None], dict[str, Any]]:
        """What Ray's upload thread is to call, and with which arguments."""
        settled = frozenset(self._settled)
        upload, arguments = rays(self, local_path, uri, exclude)
        if not exclude:
            # A trial that has not been started yet has no directory.
            live = {trial.relative_logdir for trial in self._trials.resident()} - {None}
            upload = functools.partial(_UPLOAD, self)
            arguments = {"local_path": local_path, "fs_path": uri, "changed": settled | live}
        return self._and_then_forget, {
            "upload": upload,
            "arguments": arguments,
            "settled": settled,
        }

    def _and_then_forget(
        self, upload: Callable[..., None], arguments: dict[str, Any], settled: frozenset[str]
    ) -> None:
        """Runs in Ray's upload thread. What failed is tried again with the next upload."""
        self.running += 1
        try:
            upload(**arguments)
        finally:
            self.running -= 1
        self._first = False
        self._settled.difference_update(settled)

    def upload_changed(
        self, rays: RaysOwn, local_path: str, fs_path: str, changed: set[str]
    ) -> None:
        """Upload what may not be in the storage as it is. Runs in Ray's upload thread."""
        try:
            names = self._chosen(local_path, changed)
        except sqlite3.Error:  # The store does not tell: do as Ray does.
            rays(self, local_path, fs_path)
            return
        failure: Exception | None = None
        # A restore goes by the state file. So that it never lacks what another file knows of, it
        # comes first; then what searchers wrote with it.
        order = {
            name: (not name.startswith(STATE_FILE_PREFIX), name in changed, name) for name in names
        }
        for name in sorted(names, key=order.__getitem__):
            path = os.path.join(local_path, name)
            try:
                version = _version(path)
                if version is None or self.thorough or self._uploaded.get(name) != version:
                    target = posixpath.join(fs_path, name)
                    rays.call(_upload, path, self.storage_filesystem, target)
                if version is not None:
                    self._uploaded[name] = version
            except FileNotFoundError as error:
                # Somebody's temporary file that is gone by now, or something that stays away.
                failure = error if os.path.exists(path) else failure
            except Exception as error:
                failure = error
        if failure is not None:
            raise failure

    def _chosen(self, local_path: str, changed: set[str]) -> Iterable[str]:
        """What of the staging directory may not be in the storage as it is."""
        if self._first:
            with os.scandir(local_path) as entries:
                return {entry.name for entry in entries}
        if self.thorough:
            return self._staging.look() | changed | self._written_later(local_path)
        return self._staging.names(_SHARE_OF_UPLOADS) | changed

    def _written_later(self, local_path: str) -> set[str]:
        """Directories of settled trials to which somebody wrote after the trial had settled."""
        return {
            directory
            for directory, settled_at in self._spilled_directories()
            if _last_write(os.path.join(local_path, directory)) >= settled_at
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
    """What Ray does."""
    _upload_to_fs_path(local_path=local_path, fs=syncer.storage_filesystem, fs_path=fs_path)


@boundary.entry("upload of a staging directory", Policy.CALL_RAY)
def _upload_changed(
    rays: RaysOwn, syncer: IncrementalSyncer, local_path: str, fs_path: str, changed: set[str]
) -> None:
    syncer.upload_changed(rays, local_path, fs_path, changed)


_UPLOAD = _upload_changed.in_place_of(_upload_everything)


def upload_incrementally(
    controller: Controller,
    trials: SpilledTrials[Trial],
    spilled_directories: Callable[[], Iterator[tuple[str, float]]],
    staging: StagingListing,
) -> tuple[IncrementalSyncer, Callable[[Controller], None]]:
    """Give the controller's checkpoint manager the syncer of this module.

    It alone: the storage context that trials hold is sent to actors and into the experiment state,
    where this package may be missing.

    Returns:
        The syncer, and a function that gives a controller its own syncer back.
    """
    manager = controller._checkpoint_manager
    own = manager._storage
    own_syncer = cast(_FilesystemSyncer, own.syncer)
    syncer = IncrementalSyncer(own_syncer, trials, spilled_directories, staging)
    manager._storage = _with_fixed_path(own)
    manager._storage.syncer = syncer

    def give_syncer_back(to: Controller) -> None:
        to._checkpoint_manager._storage = own
        # An upload that is under way is waited for before Ray begins another one.
        own_syncer._sync_process = syncer._sync_process

    return syncer, give_syncer_back


def _with_fixed_path(storage: StorageContext) -> StorageContext:
    """A copy that knows its staging directory, which Ray puts together anew on every step."""
    fixed = copy.copy(storage)
    path = storage.experiment_driver_staging_path
    fixed.__class__ = type(
        type(storage).__name__, (type(storage),), {"experiment_driver_staging_path": path}
    )
    return fixed


def _version(path: str) -> tuple[int, int] | None:
    """By which a file that was changed is told; None of a directory."""
    status = os.stat(path)
    return (status.st_mtime_ns, status.st_size) if stat.S_ISREG(status.st_mode) else None


def _upload(source: str, filesystem: FileSystem, path: str) -> None:
    """Copy a file or a directory to ``path``; nothing else can be copied, nor does Ray.

    On a local disk without Arrow, which keeps the buffers that it copies with.
    """
    local = isinstance(filesystem, LocalFileSystem)
    if os.path.isdir(source):
        if local:
            copy_directory(source, path)
        else:
            _upload_to_fs_path(local_path=source, fs=filesystem, fs_path=path)
    elif os.path.isfile(source):
        if local:
            # Not half of it, should the process be killed now.
            head, name = posixpath.split(path)
            part = posixpath.join(head, f".{name}.part")
            copy_file(source, part)
            os.replace(part, path)
        else:
            _pyarrow_fs_copy_files(source, path, destination_filesystem=filesystem)


def _last_write(directory: str) -> float:
    """The latest change below ``directory``, in seconds since the epoch.

    By ctime as well: a file that was moved or copied here may keep an old mtime.
    """
    latest = 0.0
    folders = [directory]
    for folder in folders:
        # One by one, what is gone in the meantime is passed over.
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
