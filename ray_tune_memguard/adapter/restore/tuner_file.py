"""Restores a ``Tuner`` whose ``tuner.pkl`` is damaged or missing, from the trial store's copy.

``Tuner.restore`` reads the file first. Ray writes it when a ``Tuner`` is created; a full disk or a
crash at that moment leaves it empty, and later it may be deleted like any other file.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path, PurePosixPath

from pyarrow.fs import FileSystem

from ray_tune_memguard.adapter.location import Experiment
from ray_tune_memguard.adapter.restore.locate import locate
from ray_tune_memguard.adapter.run.tuner_copy import TUNER_FILE, load_copy, read_file
from ray_tune_memguard.adapter.serialization import unpickling
from ray_tune_memguard.notices import logger, show_lines
from ray_tune_memguard.store.errors import StoreError
from ray_tune_memguard.store.trial_store import TrialStore

_HOW_TO_GO_ON = (
    "%s cannot be read (%r), and no trial store has a copy of it. The trials are not affected. To "
    "go on, create the Tuner again with the same arguments, including the name and storage_path of "
    "RunConfig, which writes the file again; then call Tuner.restore(path, trainable), not fit()."
)


def restore_tuner(
    original: Callable[..., object],
    tuner: object,
    path_or_uri: str,
    *args: object,
    storage_filesystem: FileSystem | None = None,
    **kwargs: object,
) -> object:
    """Replaces ``TunerInternal._restore_from_path_or_uri``."""

    def restore() -> object:
        return original(tuner, path_or_uri, *args, storage_filesystem=storage_filesystem, **kwargs)

    try:
        return restore()
    except Exception as error:
        if not _is_replaced(Experiment.at(path_or_uri, storage_filesystem), error):
            raise
    return restore()


def _is_replaced(experiment: Experiment, error: Exception) -> bool:
    """Whether the file caused the error, and has been replaced by the copy."""
    path = PurePosixPath(experiment.path, TUNER_FILE).as_posix()
    content = b""
    with suppress(OSError):
        content = read_file(experiment.filesystem, path)
    with suppress(Exception):
        unpickling.loads(content)
        return False
    if isinstance(error, (ImportError, AttributeError)) or experiment.newest_state_file() is None:
        return False  # One of the user's modules is missing, or there is no experiment.
    show_lines()
    for store_path in locate(experiment).stores:
        copy = _copy_in(store_path)
        if copy is not None and copy != content:
            with experiment.filesystem.open_output_stream(path) as file:
                file.write(copy)
            logger.warning(
                "%s cannot be read (%r). It is replaced by the copy in %s.", path, error, store_path
            )
            return True
    logger.error(_HOW_TO_GO_ON, path, error)
    return False


def _copy_in(store_path: Path) -> bytes | None:
    try:
        store = TrialStore.open(store_path)
    except (OSError, sqlite3.Error, StoreError):
        return None
    try:
        return load_copy(store)
    except (sqlite3.Error, ValueError):
        return None
    finally:
        store.close()
