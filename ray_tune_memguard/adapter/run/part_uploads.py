"""Uploads an experiment checkpoint in parts, see ``uploaded_parts``."""

from __future__ import annotations

import io
import os
import posixpath
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pyarrow.fs import FileSystem

from ray_tune_memguard.adapter import uploaded_parts
from ray_tune_memguard.adapter.uploaded_parts import PARTS_DIRECTORY, Manifest

if TYPE_CHECKING:
    from ray_tune_memguard.adapter.run.last_checkpoint import LastCheckpoint
    from ray_tune_memguard.store.state_file import ExperimentStateFile
    from ray_tune_memguard.store.trial_store import TrialStore

#: A state file with fewer bytes of finished trials (about 600) is uploaded whole.
MAX_WHOLE_BYTES = 4 << 20


@dataclass
class PartUpload:
    """One upload of parts. It is made in the run's thread, and carried out in the upload thread.

    Attributes:
        file: the state file; the records that it has do not change any more.
        start: the first byte that is not in the storage yet.
        manifest: what is written last.
    """

    file: io.FileIO
    start: int
    manifest: Manifest


class PartUploads:
    """Decides at each upload of a run whether the state file is copied whole or in parts.

    Args:
        filesystem: the experiment's storage.
        experiment: the path of the experiment in it.
        run: the name of the run.
        store: the trial store, which has the snapshot.
        state_file: the experiment state file.
        checkpoint: the run's last one.
        work_directory: a local directory for temporary files.
    """

    def __init__(
        self,
        filesystem: FileSystem,
        experiment: str,
        run: str,
        store: TrialStore,
        state_file: ExperimentStateFile,
        checkpoint: LastCheckpoint,
        work_directory: Path,
    ) -> None:
        self._filesystem = filesystem
        self._experiment = experiment
        self._run = run
        self._store = store
        self._state_file = state_file
        self._checkpoint = checkpoint
        self._work_directory = work_directory
        # In the storage: the records in the whole file, those in it and in segments, and segments.
        self._base = self._end = 0
        self._first = 1
        self._last = 0
        # Manifests that were uploaded completely; one that was not may be damaged.
        self._manifests = 0
        # Whether there may be any, also of an earlier run; whether they are newer than the file.
        self._has_parts = True
        self.are_newer = False

    def begin(self, whole: bool) -> PartUpload | None:
        """Begin an upload, in the run's thread, after a checkpoint.

        Args:
            whole: whether the whole file is wanted in any case.

        Returns:
            The upload; None if the whole file is to be copied.
        """
        if whole or not self._base or self.written_end <= MAX_WHOLE_BYTES:
            return None
        end = self.written_end
        snapshot = uploaded_parts.in_text(self._store.packed_snapshot())
        last = self._last + (end > self._end)
        number = self._checkpoint.number
        manifest = Manifest(self._run, number, self._base, self._first, last, end, snapshot)
        return PartUpload(self._state_file.open_published(), self._end, manifest)

    @property
    def written_end(self) -> int:
        """How many bytes of the last checkpoint's state file are records of finished trials.

        0 if not all files of the checkpoint were written: they may be of different moments.
        """
        return self._checkpoint.end or 0

    @property
    def must_wait(self) -> bool:
        """Whether the storage has a checkpoint, and the last one cannot be uploaded in parts."""
        return self._base > 0 and self._checkpoint.end is None

    def carry_out(self, upload: PartUpload, copy: Callable[[str, str], None]) -> None:
        """Upload the parts, in the upload thread. After an error the next upload repeats them.

        Args:
            upload: of :meth:`begin`.
            copy: uploads a local file to a path in the storage.

        Raises:
            Exception: a part cannot be written or uploaded.
        """
        manifest = upload.manifest
        directory = posixpath.join(self._experiment, PARTS_DIRECTORY)
        local = self._work_directory / f"part-{os.getpid()}-{manifest.number}"
        self._filesystem.create_dir(directory, recursive=True)
        # Also if a later error leaves only some of them.
        self._has_parts = True
        try:
            if manifest.end > upload.start:
                name = uploaded_parts.segment_name(self._run, manifest.last)
                with upload.file as file:
                    uploaded_parts.write_segment(file, upload.start, manifest.end, str(local))
                copy(str(local), posixpath.join(directory, name))
            local.write_bytes(manifest.dump())
            name = uploaded_parts.manifest_name(self._run, self._manifests)
            copy(str(local), posixpath.join(directory, name))
        finally:
            upload.file.close()
            local.unlink(missing_ok=True)
        self._manifests += 1
        self._end, self._last = manifest.end, manifest.last
        self.are_newer = True

    def whole_was_uploaded(self, end: int) -> None:
        """Note, in the upload thread, that the whole file of a checkpoint is in the storage.

        Args:
            end: how many bytes of it are records of finished trials, at least.
        """
        self._base = self._end = end
        self._first = self._last + 1
        self.are_newer = False
        if self._has_parts:
            # If they stay, their numbers say that they are older.
            with suppress(OSError):
                uploaded_parts.remove_parts(self._filesystem, self._experiment)
                self._has_parts = False
