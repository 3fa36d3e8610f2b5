"""The copy of Ray's ``tuner.pkl`` that a run keeps in its trial store."""

from __future__ import annotations

import zlib
from pathlib import PurePosixPath

from pyarrow.fs import FileSystem

from ray_tune_memguard.adapter.location import Experiment
from ray_tune_memguard.store.trial_store import TrialStore

TUNER_FILE = "tuner.pkl"
# A Tuner that carries more data than this is not copied.
_MAX_BYTES = 16 << 20
_CHECKSUM_BYTES = 4


def save_copy(experiment: Experiment, store: TrialStore) -> None:
    """Copy the file of the experiment, if it has one, into the store of its new run."""
    path = PurePosixPath(experiment.path, TUNER_FILE).as_posix()
    try:
        content = read_file(experiment.filesystem, path)
    except OSError:  # `tune.run` writes no such file.
        return
    if 0 < len(content) <= _MAX_BYTES:
        store.set_metadata(**{TUNER_FILE: _checksum(content) + content})


def load_copy(store: TrialStore) -> bytes | None:
    """The copy in a store; None if there is none.

    Raises:
        sqlite3.Error, ValueError: the copy cannot be read, or is damaged.
    """
    found = store.get_bytes(TUNER_FILE)
    if found is None:
        # Earlier versions wrote hexadecimal digits.
        return bytes.fromhex(store.get_metadata(TUNER_FILE) or "") or None
    checksum, content = found[:_CHECKSUM_BYTES], found[_CHECKSUM_BYTES:]
    if checksum != _checksum(content):
        raise ValueError(f"the copy of {TUNER_FILE} is damaged")
    return content


def _checksum(content: bytes) -> bytes:
    return zlib.crc32(content).to_bytes(_CHECKSUM_BYTES, "big")


def read_file(filesystem: FileSystem, path: str) -> bytes:
    """The content of a file.

    Raises:
        OSError: the file cannot be read.
    """
    with filesystem.open_input_file(path) as file:
        content: bytes = file.readall()
    return content
