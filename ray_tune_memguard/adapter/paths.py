"""Where the files of a sweep go, and how its controller is found."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import os
import posixpath
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from pyarrow.fs import FileSelector, FileSystem, LocalFileSystem
from ray.tune.execution.tune_controller import TuneController

from ray_tune_memguard.notices import logger
from ray_tune_memguard.store.files import SUFFIX
from ray_tune_memguard.store.state_file import can_take_turns, remove_spares
from ray_tune_memguard.store.state_reader import is_complete

#: Where MemGuard's files are in an experiment. Hidden: to many scripts each other subdirectory is a
#: trial.
DIRECTORY = ".memguard"
# Where earlier versions put them. They are read from there, and not written there.
_FORMER_DIRECTORY = "memguard"
_STORE_PREFIX = "trials-"
# A run's name, as Ray makes it of the time at which the run began.
_SESSION = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d")
# What Ray takes along when it restores an experiment, and what it writes there itself.
_STATE_SUFFIXES = (".json", ".pkl")
_RAYS_OWN = frozenset({"tuner.pkl", "trainable.pkl"})
#: Of the name of an experiment state file; between them is the name of the run.
STATE_FILE_PREFIX, _STATE_FILE_SUFFIX = "experiment_state-", ".json"
#: What searchers and callbacks are saved to; in the braces is the name of the run.
_RAYS_STATE_FILES = (
    "searcher-state-{}.pkl",
    "search_gen_state-{}.json",
    "basic-variant-state-{}.json",
    "callback-states-{}.pkl",
)
_NAMES_AT_ONCE = 500
# Who waits for an experiment checkpoint is the sweep; uploads run beside it.
_SHARE_OF_CHECKPOINTS = 0.002
# A look at 100,000 trials on an idle disk takes 0.6 s, which is 1 % of this.
_MAX_LISTING_AGE_S = 60.0
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


def directories_in(experiment: str | Path) -> list[Path]:
    """The directories that may hold MemGuard's files of an experiment, the current name first."""
    return [Path(experiment, name) for name in (DIRECTORY, _FORMER_DIRECTORY)]


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
    """For files that only this process needs."""
    return Path(controller._storage.experiment_driver_staging_path).with_name(DIRECTORY)


# By staging directory: the state files that this process writes elsewhere.
_published_of_staging: dict[str, Path] = {}


def state_file_of_staging(directory: str) -> str | None:
    """The state file of a run of this process, given the run's staging directory.

    With Ray alone it is there; callbacks open it by ``trial.local_experiment_path``.

    Returns:
        The path; None of another directory, or if the run has written none elsewhere yet.
    """
    published = _published_of_staging.get(os.path.normpath(directory))
    return str(published) if published is not None and published.is_file() else None


def state_file_and_work_directory(controller: Any) -> tuple[Path, Path]:
    """Where the experiment state file is written, and where its spare is, on the same disk.

    In the experiment itself if that is on a disk where two files can take turns: nobody then needs
    to copy it there, which at 100,000 trials is 700 MB at every experiment checkpoint. Otherwise
    where Ray has it, from where it is uploaded.
    """
    name = Path(controller.experiment_state_path).name
    storage = controller._storage
    if isinstance(storage.storage_filesystem, LocalFileSystem):
        work = Path(storage.experiment_fs_path, DIRECTORY)
        work.mkdir(parents=True, exist_ok=True)
        if can_take_turns(work, Path(storage.experiment_fs_path)):
            for directory in directories_in(storage.experiment_fs_path):
                remove_spares(directory)
            published = Path(storage.experiment_fs_path, name)
            _published_of_staging[str(storage.experiment_driver_staging_path)] = published
            return published, work
    return Path(controller.experiment_state_path), work_directory(controller)


def newest_state_file(filesystem: FileSystem, experiment: str) -> str | None:
    """The path of the experiment state file of the newest run, of those that are complete.

    Ray takes the newest one, which is empty or ends in the middle if a full disk or a kill has
    interrupted its writing. If none is complete, the newest one is returned.
    """
    found = sorted(map(posixpath.basename, _state_files(filesystem, experiment)), reverse=True)
    paths = [PurePosixPath(experiment, name).as_posix() for name in found]
    for number, path in enumerate(paths):
        if not _is_complete(filesystem, path):
            continue
        if number:
            _say_once(
                f"The experiment state file {paths[0]} is incomplete; {found[number]} is used."
            )
        return path
    return paths[0] if paths else None


def _is_complete(filesystem: FileSystem, state_file: str) -> bool:
    try:
        with filesystem.open_input_file(state_file) as file:
            return is_complete(file)
    except OSError:  # It may be; whoever reads it says what is wrong.
        return True


def _state_files(filesystem: FileSystem, experiment: str) -> list[str]:
    """The experiment state files in a directory, in any order; none if there is no directory."""
    if isinstance(filesystem, LocalFileSystem):
        # Arrow makes an object of each of its entries, of which there is one for each trial.
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            names = os.listdir(experiment)
            return [name for name in names if _is_state_file(name)]
        return []
    entries = filesystem.get_file_info(FileSelector(experiment, allow_not_found=True))
    return [entry.path for entry in entries if entry.is_file and _is_state_file(entry.base_name)]


def _is_state_file(name: str) -> bool:
    return name.startswith(STATE_FILE_PREFIX) and name.endswith(_STATE_FILE_SUFFIX)


@functools.lru_cache
def _say_once(line: str) -> None:
    """Log a warning that several looks at the same experiment lead to."""
    logger.warning(line)


class StagingListing:
    """What there is in the driver's staging directory beside the directories of trials.

    Listing takes time that grows with the number of trials, so a listing is used again for a while:
    for as long as keeps the time for listings below a share of the whole, and at most a minute.

    Args:
        controller: the run's.
        known_directories: which of some names are those of spilled trials.
    """

    def __init__(
        self, controller: Any, known_directories: Callable[[Sequence[str]], set[str]]
    ) -> None:
        self.directory = Path(controller._storage.experiment_driver_staging_path)
        self._session = session_name(controller)
        self._state_file = Path(controller.experiment_state_path).name
        self._known_directories = known_directories
        self._names: frozenset[str] = frozenset()
        self._listed_at = self._took = -math.inf

    def names(self, share: float) -> frozenset[str]:
        """The names as of the last minute.

        Args:
            share: of the time that listings may take, unless that makes the listing older.
        """
        age = time.monotonic() - self._listed_at
        if age >= min(self._took / share, _MAX_LISTING_AGE_S):
            self.look()
        # Ray's own may be new, and are not to be missed.
        own = (name.format(self._session) for name in _RAYS_STATE_FILES)
        return self._names.union(name for name in own if (self.directory / name).is_file())

    def look(self) -> frozenset[str]:
        """List the directory now."""
        began = time.monotonic()
        found: set[str] = set()
        with contextlib.suppress(FileNotFoundError), os.scandir(self.directory) as entries:
            while some := list(itertools.islice(entries, _NAMES_AT_ONCE)):
                known = self._known_directories([entry.name for entry in some])
                found.update(entry.name for entry in some if entry.name not in known)
        self._names = frozenset(found)
        self._listed_at = time.monotonic()
        self._took = self._listed_at - began
        return self._names

    def session_files(self) -> dict[str, bytes]:
        """What searchers and callbacks wrote for this run at the last experiment checkpoint.

        Ray's own put the name of the run into the file's name; somebody else's need not.
        """
        return {
            name: path.read_bytes()
            for name in sorted(self.names(_SHARE_OF_CHECKPOINTS))
            if not name.startswith(".")
            and name != self._state_file
            and _is_state_of(name, self._session)
            and (path := self.directory / name).is_file()
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
