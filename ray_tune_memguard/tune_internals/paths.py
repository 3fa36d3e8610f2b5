"""Where the files of a sweep go, and how its controller is found."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from pyarrow.fs import LocalFileSystem
from ray.tune.execution.tune_controller import TuneController

from ray_tune_memguard.spill.store import SUFFIX

#: The folder of ours in an experiment's directory.
DIRECTORY = "memguard"
_STORE_PREFIX = "trials-"
# A run's name, as Ray makes it of the time at which the run began.
_SESSION = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d")
# What Ray takes along when it restores an experiment, and what it writes there itself.
_STATE_SUFFIXES = (".json", ".pkl")
_RAYS_OWN = frozenset({"tuner.pkl", "trainable.pkl"})
_STORE_NAME = re.compile(r"(?:trials-)?(.*?_\d\d-\d\d-\d\d|.*?)(?:-(\d+))?")


def calling(kind: type) -> Any | None:
    """The object of this kind whose method is among the callers; the innermost one."""
    frame = sys._getframe(1)
    while frame is not None:
        if isinstance(caller := frame.f_locals.get("self"), kind):
            return caller
        frame = frame.f_back  # type: ignore[assignment]
    return None


def calling_controller() -> Any | None:
    """The controller whose ``setup`` or hook call this is; Ray hands callbacks none."""
    return calling(TuneController)


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


def store_name(session: str) -> str:
    """Of the trial store of one run of an experiment; later runs sort behind earlier ones."""
    return f"{_STORE_PREFIX}{session}"


def stores_in(directory: Path) -> list[Path]:
    """The trial stores in a directory, the last run's first."""
    if not directory.is_dir():
        return []
    found = directory.glob(f"{_STORE_PREFIX}*{SUFFIX}")
    return sorted(found, key=run_of_store, reverse=True)


def run_of_store(path: Path) -> tuple[str, int]:
    """The session name of the run that wrote a store, and which store of that second it is."""
    # trials-2026-11-22_10-40-37-1: another one in the same second.
    session, number = _STORE_NAME.fullmatch(path.stem).groups()  # type: ignore[union-attr]
    return session, int(number or 0)


def work_directory(controller: Any) -> Path:
    """For files that only this process needs, on the same disk as the experiment state file."""
    return Path(controller._storage.experiment_driver_staging_path).with_name(DIRECTORY)


def session_files(controller: Any) -> dict[str, bytes]:
    """What searchers and callbacks wrote for this run at the last experiment checkpoint.

    Ray's own put the name of the run into the file's name; somebody else's need not.
    """
    staging = Path(controller._storage.experiment_driver_staging_path)
    session = session_name(controller)
    state_file = Path(controller.experiment_state_path).name
    return {
        path.name: path.read_bytes()
        for path in staging.glob("[!.]*")
        if path.name != state_file and _is_state_of(path.name, session) and path.is_file()
    }


def _is_state_of(name: str, session: str) -> bool:
    if session in name:
        return True
    return (
        name.endswith(_STATE_SUFFIXES) and name not in _RAYS_OWN and _SESSION.search(name) is None
    )


def forget_later_runs(staging: Path, session: str) -> None:
    """Remove what a run after this one left of searchers and callbacks; the newest is restored.

    A driver that is killed between writing these and its first experiment checkpoint leaves them.
    """
    for path in staging.glob("[!.]*"):
        run = _SESSION.search(path.name)
        if run is not None and run.group() > session and path.is_file():
            path.unlink(missing_ok=True)
