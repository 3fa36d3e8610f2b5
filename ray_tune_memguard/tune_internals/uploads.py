"""Uploads to the experiment's storage what may have changed, instead of everything each time.

At every experiment checkpoint Ray copies its whole staging directory to the storage, the files of
all trials that ever were, though those of finished ones do not change any more. That takes time and
memory that grow with the number of trials. Here a settled trial's directory is uploaded once more
after it settled, and then left out. The last upload of a sweep looks whether anybody wrote to one
of them since.
"""

from __future__ import annotations

import copy
import os
import posixpath
from collections.abc import Callable
from typing import Any

from ray.train._internal.storage import _FilesystemSyncer, _upload_to_fs_path

from ray_tune_memguard.spill.trials import SpilledTrials


class IncrementalSyncer(_FilesystemSyncer):
    """Ray's syncer, with an upload that leaves out what is known to be there.

    ``thorough``: set by the controller for the last upload of a sweep.
    """

    def __init__(self, original: _FilesystemSyncer, trials: SpilledTrials) -> None:
        super().__init__(
            storage_filesystem=original.storage_filesystem,
            sync_period=original.sync_period,
            sync_timeout=original.sync_timeout,
        )
        self._trials = trials
        self.thorough = False
        # The first upload takes everything: what was there before is not known.
        self._first = True
        # Directories of settled trials that were not uploaded since.
        self._settled: set[str] = set()

    def settled(self, directory: str | None) -> None:
        """This trial directory is to be uploaded once more."""
        if directory:
            self._settled.add(directory)

    def _sync_up_command(
        self, local_path: str, uri: str, exclude: list[str] | None = None
    ) -> tuple[Callable[..., None], dict[str, Any]]:
        settled = frozenset(self._settled)
        upload, arguments = super()._sync_up_command(local_path, uri, exclude)
        if not self._first and not exclude:
            live = {trial.relative_logdir for trial in self._trials.resident()}
            upload = self._upload_changed
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
        upload(**arguments)
        self._first = False
        self._settled.difference_update(settled)

    def _upload_changed(self, local_path: str, fs_path: str, changed: set[str]) -> None:
        written_later = self._written_later(local_path) if self.thorough else set()
        with os.scandir(local_path) as entries:
            for entry in entries:
                if (
                    not entry.is_dir()
                    or entry.name in changed
                    or entry.name in written_later
                    or not self._trials.residency.store.has_directory(entry.name)
                ):
                    _upload_to_fs_path(
                        local_path=entry.path,
                        fs=self.storage_filesystem,
                        fs_path=posixpath.join(fs_path, entry.name),
                    )

    def _written_later(self, local_path: str) -> set[str]:
        """Directories of settled trials to which somebody wrote after the trial had settled."""
        return {
            directory
            for directory, settled_at in self._trials.residency.store.directories()
            if _last_write(os.path.join(local_path, directory)) >= settled_at
        }


def upload_incrementally(controller: Any, trials: SpilledTrials) -> IncrementalSyncer:
    """Give the controller's checkpoint manager the syncer of this module.

    It alone: the storage context that trials hold is sent to actors and into the experiment state,
    where this package may be missing.
    """
    manager = controller._checkpoint_manager
    syncer = IncrementalSyncer(manager._storage.syncer, trials)
    manager._storage = copy.copy(manager._storage)
    manager._storage.syncer = syncer
    return syncer


def _last_write(directory: str) -> float:
    """The latest change of a file below ``directory``, in seconds since the epoch."""
    latest = 0.0
    for folder, _, files in os.walk(directory):
        for name in files:
            try:
                latest = max(latest, os.stat(os.path.join(folder, name)).st_mtime)
            except OSError:  # Gone in the meantime.
                continue
    return latest
