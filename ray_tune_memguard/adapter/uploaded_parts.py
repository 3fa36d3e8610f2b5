"""An experiment checkpoint in parts, for storage that is not a local disk.

The experiment state file has a record of each finished trial, so copying it at every experiment
checkpoint takes more each time. While a run goes on, the storage therefore has

- the *whole file* as of an earlier checkpoint, with the searchers' and callbacks' files of the same
  moment: Ray alone restores from these;
- *segments*, each with the records that were added since the part before it;
- the *manifest* of the newest checkpoint: which segments belong to it, and its snapshot (all that
  is not a record of a finished trial). It is written last, under two names in turn, and has a
  checksum, so that one is always complete.

At the end of a run, also on an interrupt, the whole file is uploaded and the parts are removed.
The number of the checkpoint, which both have, says whether the whole file or a manifest is newer.
"""

from __future__ import annotations

import base64
import io
import json
import os
import posixpath
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import BinaryIO

import zstandard
from pyarrow.fs import FileSelector, FileSystem, FileType

from ray_tune_memguard.adapter.paths import DIRECTORY

#: The directory of the parts in an experiment.
PARTS_DIRECTORY = f"{DIRECTORY}/checkpoints"
_CHUNK_BYTES = 1 << 20
_LEVEL = 3


@dataclass(frozen=True)
class Manifest:
    """What belongs to one checkpoint.

    Attributes:
        run: the name of the run.
        number: the number of the checkpoint in the run.
        base: how many bytes of the whole file are records of finished trials.
        first, last: the numbers of the first and the last segment; they begin where ``base`` ends.
        end: where the last segment ends, counted as if all were one file.
        snapshot: the parts of the snapshot, packed, in base 64.
    """

    run: str
    number: int
    base: int
    first: int
    last: int
    end: int
    snapshot: dict[str, str]

    def dump(self) -> bytes:
        content = json.dumps(asdict(self)).encode()
        return b"%d\n%s" % (zlib.crc32(content), content)

    @classmethod
    def load(cls, raw: bytes) -> Manifest | None:
        """The manifest in a file; None if the file is incomplete or damaged."""
        checksum, _, content = raw.partition(b"\n")
        if checksum != b"%d" % zlib.crc32(content):
            return None
        return cls(**json.loads(content))

    def snapshot_parts(self) -> dict[str, bytes]:
        return {name: base64.b64decode(text) for name, text in self.snapshot.items()}


def in_text(parts: dict[str, bytes]) -> dict[str, str]:
    """The packed parts of a snapshot, for a :class:`Manifest`."""
    return {name: base64.b64encode(content).decode() for name, content in parts.items()}


def manifest_name(run: str, turn: int) -> str:
    """The name of a manifest that is not the one written before it, with the turn before."""
    return f"{run}-manifest-{turn % 2}.json"


def segment_name(run: str, number: int) -> str:
    return f"{run}-{number:06d}.records.zst"


def write_segment(source: BinaryIO | io.FileIO, start: int, end: int, path: str) -> None:
    """Compress the bytes from ``start`` to ``end`` of a file into another file.

    Args:
        source: the file; other code may use its position.
        start, end: the offsets.
        path: of the other file.

    Raises:
        OSError: the bytes cannot be read, or the file cannot be written.
    """
    compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
    with open(path, "wb") as file, compressor.stream_writer(file) as writer:
        while start < end:
            block = os.pread(source.fileno(), min(_CHUNK_BYTES, end - start), start)
            if not block:
                raise OSError("the experiment state file has fewer records than were written to it")
            writer.write(block)
            start += len(block)


def newest_manifest(filesystem: FileSystem, experiment: str, run: str) -> Manifest | None:
    """The manifest of the newest checkpoint of a run; None if there is none."""
    directory = posixpath.join(experiment, PARTS_DIRECTORY)
    entries = filesystem.get_file_info(FileSelector(directory, allow_not_found=True))
    found = []
    for entry in entries:
        if entry.type == FileType.File and entry.base_name.startswith(f"{run}-manifest-"):
            with suppress(OSError, ValueError, TypeError):
                with filesystem.open_input_stream(entry.path) as file:
                    manifest = Manifest.load(file.readall())
                if manifest is not None:
                    found.append(manifest)
    return max(found, key=lambda manifest: manifest.number, default=None)


def read_records(
    filesystem: FileSystem, experiment: str, whole_file: str, manifest: Manifest
) -> Iterator[bytes]:
    """The beginning of the experiment state file that a manifest describes, with all its records.

    Args:
        filesystem: the experiment's file system.
        experiment: the path of the experiment in it.
        whole_file: the path of the whole file of an earlier checkpoint.
        manifest: the checkpoint.

    Raises:
        OSError: a part is missing or cannot be read.
        ValueError: a part is damaged.
    """
    total = 0
    with filesystem.open_input_file(whole_file) as file:
        while total < manifest.base and (
            block := file.read(min(_CHUNK_BYTES, manifest.base - total))
        ):
            total += len(block)
            yield block
    directory = posixpath.join(experiment, PARTS_DIRECTORY)
    decompressor = zstandard.ZstdDecompressor()
    for number in range(manifest.first, manifest.last + 1):
        path = posixpath.join(directory, segment_name(manifest.run, number))
        with filesystem.open_input_stream(path, compression=None) as stream:
            packed = stream.readall()
        try:
            for block in decompressor.read_to_iter(io.BytesIO(packed)):
                # A later upload, whose manifest is missing, may have written it with more records.
                found = block[: manifest.end - total]
                total += len(found)
                yield found
        except zstandard.ZstdError as error:
            raise ValueError(f"{path} is damaged: {error}") from error
    if total != manifest.end:
        raise ValueError(f"a part of the experiment state in {directory} is incomplete")


def remove_parts(filesystem: FileSystem, experiment: str) -> None:
    """Remove all parts, because the whole file has everything."""
    filesystem.delete_dir_contents(posixpath.join(experiment, PARTS_DIRECTORY), missing_dir_ok=True)
