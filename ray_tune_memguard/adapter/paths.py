"""The names of a run's files, and how a callback finds the run's controller.

:mod:`~ray_tune_memguard.adapter.location` says where a run puts them.
"""

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
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import TypeVar

from pyarrow.fs import FileSelector, FileSystem, LocalFileSystem
from ray.tune.execution.tune_controller import TuneController

from ray_tune_memguard.notices import logger
from ray_tune_memguard.report.series_file import OWN_DIRECTORIES
from ray_tune_memguard.store.files import SUFFIX
from ray_tune_memguard.store.state_reader import is_complete

#: The directory of MemGuard's files in an experiment. Hidden, because many scripts take every other
#: subdirectory for a trial.
DIRECTORY = OWN_DIRECTORIES[0]
_STORE_PREFIX = "trials-"
# The name of a run: Ray forms it from the time at which the run begins.
_SESSION_FORMAT = "%Y-%m-%d_%H-%M-%S"
_SESSION = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d")
# Suffixes of the files that Ray copies when it restores an experiment, and the names of two that it
# writes for every experiment.
_STATE_SUFFIXES = (".json", ".pkl")
_RAYS_OWN = frozenset({"tuner.pkl", "trainable.pkl"})
#: How the name of an experiment state file begins and ends; the name of the run is between them.
STATE_FILE_PREFIX, _STATE_FILE_SUFFIX = "experiment_state-", ".json"
# Ray's files for the states of searchers and callbacks; the braces stand for the name of the run.
_RAYS_STATE_FILES = (
    "searcher-state-{}.pkl",
    "search_gen_state-{}.json",
    "basic-variant-state-{}.json",
    "callback-states-{}.pkl",
)
_NAMES_AT_ONCE = 500
# Less than for uploads: the run waits for an experiment checkpoint, but not for an upload.
_SHARE_OF_CHECKPOINTS = 0.002
# A listing that takes 0.6 s (about 100,000 trials on an idle disk) is 1 % of this.
_MAX_LISTING_AGE_S = 60.0
_STORE_NAME = re.compile(r"(?:trials-)?(.*?_\d\d-\d\d-\d\d|.*?)(?:-(\d+))?")


Kind = TypeVar("Kind")


def calling(kind: type[Kind]) -> Kind | None:
    """Find the object whose method is calling, directly or through other functions.

    Args:
        kind: the class of the object.

    Returns:
        The innermost such object; None if there is none.
    """
    frame = sys._getframe(1)
    while frame is not None:
        if isinstance(caller := frame.f_locals.get("self"), kind):
            return caller
        frame = frame.f_back  # type: ignore[assignment]
    return None


def calling_controller() -> TuneController | None:
    """The controller that is calling a hook of a callback; Ray does not pass it as an argument."""
    return calling(TuneController)


def directories_in(experiment: str | Path) -> list[Path]:
    """The directories that may hold MemGuard's files of an experiment, the current name first."""
    return [Path(experiment, name) for name in OWN_DIRECTORIES]


def latest_run(names: Iterable[str]) -> str:
    """The name of the latest of these runs; empty if none has a name of Ray's."""
    return max(filter(_SESSION.fullmatch, names), default="")


def next_run(session: str) -> str | None:
    """The name of a run that begins a second later; None if the digits are no date."""
    with contextlib.suppress(ValueError):
        later = datetime.strptime(session, _SESSION_FORMAT) + timedelta(seconds=1)
        return later.strftime(_SESSION_FORMAT)
    return None


def run_of_state_file(path: str) -> str:
    """The name of the run that wrote an experiment state file."""
    return PurePosixPath(path).stem.removeprefix(STATE_FILE_PREFIX)


def store_name(session: str) -> str:
    """The name of the trial store of one run; names of later runs sort after earlier ones."""
    return f"{_STORE_PREFIX}{session}"


def stores_in(directory: Path) -> list[Path]:
    """The trial stores in a directory, that of the latest run first."""
    if not directory.is_dir():
        return []
    found = directory.glob(f"{_STORE_PREFIX}*{SUFFIX}")
    return sorted(found, key=run_of_store, reverse=True)


def run_of_store(path: Path) -> tuple[str, int]:
    """The name of the run that wrote a store, and the store's number among those of that name."""
    # trials-2026-11-22_10-40-37-1 is the second store that was created in that second.
    session, number = _STORE_NAME.fullmatch(path.stem).groups()  # type: ignore[union-attr]
    return session, int(number or 0)


def work_directory(staging: Path) -> Path:
    """The directory for files that only this process needs, beside Ray's staging directory."""
    return staging.with_name(DIRECTORY)


# By staging directory: the state files that this process writes elsewhere.
_published_of_staging: dict[str, Path] = {}


def is_published_at(state_file: Path, staging: Path) -> None:
    """Note that a run of this process writes its state file outside its staging directory."""
    _published_of_staging[str(staging)] = state_file


def state_file_of_staging(directory: str) -> str | None:
    """The state file of a run of this process, given the run's staging directory.

    Ray alone writes it into the staging directory, where callbacks open it by
    ``trial.local_experiment_path``.

    Returns:
        The path, of an earlier run's file while the run has not written its own; None for any other
        directory, or if there is none.
    """
    published = _published_of_staging.get(os.path.normpath(directory))
    if published is None:
        return None
    if published.is_file():
        return str(published)
    return newest_state_file(LocalFileSystem(), str(published.parent))


def newest_state_file(filesystem: FileSystem, experiment: str) -> str | None:
    """The path of the newest run's complete experiment state file.

    Ray takes the newest file, even if a full disk or a kill has left it empty or incomplete. If
    none is complete, this returns the newest one as well.
    """
    found = sorted(map(posixpath.basename, _state_files(filesystem, experiment)), reverse=True)
    paths = [PurePosixPath(experiment, name).as_posix() for name in found]
    for number, path in enumerate(paths):
        if not _is_complete(filesystem, path):
            continue
        if number:
            _warn_once(
                f"The experiment state file {paths[0]} is incomplete; {found[number]} is used."
            )
        return path
    return paths[0] if paths else None


def _is_complete(filesystem: FileSystem, state_file: str) -> bool:
    try:
        with filesystem.open_input_file(state_file) as file:
            return is_complete(file)
    except OSError:  # It may be complete; whoever reads it reports the error.
        return True


def _state_files(filesystem: FileSystem, experiment: str) -> list[str]:
    """The experiment state files in a directory, in any order; none if there is no directory."""
    if isinstance(filesystem, LocalFileSystem):
        # Arrow would create an object for each directory entry, and so one for each trial.
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            names = os.listdir(experiment)  # Trials' directories as well, maybe 100,000.
            return [
                name
                for name in names
                if name.startswith(STATE_FILE_PREFIX) and _is_state_file(name)
            ]
        return []
    entries = filesystem.get_file_info(FileSelector(experiment, allow_not_found=True))
    return [entry.path for entry in entries if entry.is_file and _is_state_file(entry.base_name)]


def _is_state_file(name: str) -> bool:
    return name.startswith(STATE_FILE_PREFIX) and name.endswith(_STATE_FILE_SUFFIX)


@functools.lru_cache
def _warn_once(line: str) -> None:
    """Log a warning once, even if the same experiment is opened several times."""
    logger.warning(line)


class StagingListing:
    """Lists what the driver's staging directory contains besides directories of spilled trials.

    The time for a listing grows with the number of trials. A listing is therefore used again, for
    as long as is needed to keep listings below a given share of the time, and for 60 s at most.

    Args:
        directory: the staging directory.
        session: the name of the run.
        state_file: the name of the run's experiment state file.
        known_directories: returns those of the given names that are directories of spilled trials.
    """

    def __init__(
        self,
        directory: Path,
        session: str,
        state_file: str,
        known_directories: Callable[[Sequence[str]], set[str]],
    ) -> None:
        self.directory = directory
        self._session = session
        self._state_file = state_file
        self._known_directories = known_directories
        self._names: frozenset[str] = frozenset()
        self._listed_at = self._took = -math.inf

    def names(self, share: float) -> frozenset[str]:
        """The names, at most 60 s old.

        Args:
            share: the share of the time that listings may take, from 0 to 1. A listing that is 60 s
                old is refreshed even if that takes more.
        """
        age = time.monotonic() - self._listed_at
        if age >= min(self._took / share, _MAX_LISTING_AGE_S):
            self.refresh()
        # Ray's own files may be newer than the listing.
        own = (name.format(self._session) for name in _RAYS_STATE_FILES)
        return self._names.union(name for name in own if (self.directory / name).is_file())

    def refresh(self) -> frozenset[str]:
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

    def is_of_checkpoint(self, name: str) -> bool:
        """Whether a file of this name is written at each experiment checkpoint of the run."""
        return name == self._state_file or self._session in name

    @property
    def state_file(self) -> str:
        """The name of the run's experiment state file."""
        return self._state_file

    def session_files(self) -> dict[str, bytes]:
        """The files that searchers and callbacks wrote at the last experiment checkpoint.

        Ray's own have the name of the run in their names; a user's need not.
        """
        return {
            name: path.read_bytes()
            for name in sorted(self.names(_SHARE_OF_CHECKPOINTS))
            if not name.startswith(".")
            and name != self._state_file
            and _is_state_of(name, self._session)
            and (path := self.directory / name).is_file()
        }


def is_saved_state(name: str) -> bool:
    """Whether a file of this name is one that Ray copies to restore searchers and callbacks."""
    return name.endswith(_STATE_SUFFIXES) and not _is_state_file(name)


def _is_state_of(name: str, session: str) -> bool:
    if session in name:
        return True
    return (
        name.endswith(_STATE_SUFFIXES) and name not in _RAYS_OWN and _SESSION.search(name) is None
    )


def forget_later_runs(staging: Path, session: str) -> None:
    """Remove the states of searchers and callbacks that runs after this one have written.

    A driver leaves such files if it is killed before its first experiment checkpoint is complete.
    Ray would restore from them, because it takes the newest.
    """
    for path in staging.glob("[!.]*"):
        run = _SESSION.search(path.name)
        if run is not None and run.group() > session and path.is_file():
            path.unlink(missing_ok=True)
