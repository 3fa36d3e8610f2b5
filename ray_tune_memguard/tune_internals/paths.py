"""Where the files of a sweep go, and how its controller is found."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pyarrow.fs import LocalFileSystem
from ray.tune.execution.tune_controller import TuneController

#: The folder of ours in an experiment's directory.
DIRECTORY = "memguard"


def calling_controller() -> Any | None:
    """The controller whose ``setup`` or hook call this is, found among the callers.

    Ray hands callbacks no controller; it is ``self`` in one of the frames above them.
    """
    frame = sys._getframe(1)
    while frame is not None:
        if isinstance(caller := frame.f_locals.get("self"), TuneController):
            return caller
        frame = frame.f_back  # type: ignore[assignment]
    return None


def session_name(controller: Any) -> str:
    """Ray's name of this run of the experiment, the time at which it began."""
    return str(controller._session_str)


def report_directory(controller: Any) -> Path:
    """Where small files for people go: they end up with the experiment's other files."""
    storage = controller._storage
    if isinstance(storage.storage_filesystem, LocalFileSystem):
        return Path(storage.experiment_fs_path, DIRECTORY)
    # Ray uploads this one to the storage at every experiment checkpoint.
    return Path(storage.experiment_driver_staging_path, DIRECTORY)


def store_directory(controller: Any) -> Path:
    """Where the trial store goes: with the experiment if that is a local path.

    Otherwise beside the directory that Ray uploads, not in it: a database that is copied while it
    is written arrives broken.
    """
    storage = controller._storage
    if isinstance(storage.storage_filesystem, LocalFileSystem):
        return Path(storage.experiment_fs_path, DIRECTORY)
    return work_directory(controller)


def work_directory(controller: Any) -> Path:
    """For files that only this process needs, on the same disk as the experiment state file."""
    return Path(controller._storage.experiment_driver_staging_path).with_name(DIRECTORY)
