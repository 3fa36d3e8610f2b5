"""Reads a checkpoint that a run has uploaded in parts, see ``adapter.uploaded_parts``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pyarrow.fs import LocalFileSystem

from ray_tune_memguard.adapter.location import Experiment
from ray_tune_memguard.adapter.restore.locate import StateFile
from ray_tune_memguard.adapter.uploaded_parts import Manifest, newest_manifest, read_records
from ray_tune_memguard.store.compression import unpack
from ray_tune_memguard.store.snapshot import Snapshot
from ray_tune_memguard.store.state_file import HEAD


@dataclass(frozen=True)
class UploadedParts:
    """A checkpoint in parts that is newer than the whole experiment state file."""

    manifest: Manifest
    snapshot: Snapshot

    def read_whole(self, experiment: Experiment, state_file: StateFile) -> Callable[[int], bytes]:
        """A function that reads the experiment state file which the parts make up.

        Its argument is ignored: it returns a block of the size that it is stored in.
        """
        blocks = self._blocks(experiment, state_file)
        return lambda _size: next(blocks, b"")

    def _blocks(self, experiment: Experiment, state_file: StateFile) -> Iterator[bytes]:
        yield from read_records(
            experiment.filesystem, experiment.path, state_file.path, self.manifest
        )
        rest = self.snapshot.state.removeprefix(HEAD)
        yield (rest if rest.lstrip().startswith("]") else f",\n{rest}").encode()


def uploaded_parts(experiment: Experiment, state_file: StateFile) -> UploadedParts | None:
    """The parts of a later checkpoint of the run that wrote a state file; None without any.

    Raises:
        OSError: the storage cannot be read now.
        KeyError, ValueError: the manifest lacks something.
    """
    number = state_file.number()
    # Without a number Ray wrote the file alone, and whole.
    if number is None or isinstance(experiment.filesystem, LocalFileSystem):
        return None
    manifest = newest_manifest(experiment.filesystem, experiment.path, state_file.run)
    if manifest is None or manifest.number <= number:
        return None
    parts = manifest.snapshot_parts()
    snapshot = Snapshot.of({name: unpack(content) for name, content in parts.items()})
    return UploadedParts(manifest, snapshot)
