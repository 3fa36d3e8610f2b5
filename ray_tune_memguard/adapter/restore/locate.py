"""Finds the state file and the trial stores that earlier runs of an experiment left.

A restore uses the store of the newest run, which the names of the files tell;
:mod:`~ray_tune_memguard.adapter.restore.verify` opens it.
"""

from __future__ import annotations

import json
import re
import sqlite3
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ray_tune_memguard.adapter import paths
from ray_tune_memguard.adapter.location import Experiment
from ray_tune_memguard.adapter.run.checkpoint import POINTER_KEY
from ray_tune_memguard.store.errors import StoreError, is_locked
from ray_tune_memguard.store.state_file import HEAD
from ray_tune_memguard.store.state_reader import is_complete
from ray_tune_memguard.store.trial_store import TrialStore

# Enough of the file's end to hold the pointer to the store, and to tell one state from another.
_END_BYTES = 64 * 1024


@dataclass(frozen=True)
class StateFile:
    """An experiment state file.

    Attributes:
        path: in the experiment's file system.
        end: its last bytes, and its size.
    """

    path: str
    end: bytes

    @classmethod
    def newest_of(cls, experiment: Experiment) -> StateFile | None:
        """The state file of the newest run; None if there is none."""
        path = experiment.newest_state_file()
        if path is None:
            return None
        with experiment.filesystem.open_input_file(path) as file:
            size = file.size()
            file.seek(max(0, size - _END_BYTES))
            end: bytes = file.read()
        return cls(path, end + str(size).encode())

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name

    @property
    def run(self) -> str:
        """The name of the run that wrote it."""
        return paths.run_of_state_file(self.path)

    @property
    def version(self) -> str:
        """A text that identifies this version of the file, also after it was copied."""
        return f"{self.name} {zlib.crc32(self.end)}"

    def pointer(self) -> Path | None:
        """The path of the trial store that the file points to; None without a pointer."""
        path = self._pointers().get("store")
        return Path(str(path)) if path else None

    def staging(self) -> str | None:
        """The path of the run's staging directory; None without a pointer, or one to it."""
        path = self._pointers().get("staging")
        return str(path) if path else None

    def keeps_histories(self) -> bool:
        """Whether the run kept all results in a store of histories."""
        return self._pointers().get("histories") is True

    def number(self) -> int | None:
        """The number of its checkpoint in the run; None if Ray wrote it alone."""
        number = self._pointers().get("number")
        return number if isinstance(number, int) else None

    def _pointers(self) -> dict[str, object]:
        found = re.findall(rb'"%s": (\{"store": .*?\})\}' % POINTER_KEY.encode(), self.end)
        pointers: dict[str, object] = json.loads(found[-1]) if found else {}
        return pointers


@dataclass(frozen=True)
class StoreRef:
    """The files of an experiment that were found, before any is opened.

    Attributes:
        experiment: the location of the experiment.
        state_file: the newest run's state file; None if there is none.
        stores: the trial stores that may be the experiment's, the newest run's first.
        directory: the directory for a new store; None if the experiment is not on a local disk.
    """

    experiment: Experiment
    state_file: StateFile | None
    stores: tuple[Path, ...]
    directory: Path | None

    def current_stores(self) -> tuple[Path, ...]:
        """The stores that no later run, without this package, has made out of date."""
        if self.state_file is None:
            return self.stores
        run = self.state_file.run
        return tuple(path for path in self.stores if paths.run_of_store(path)[0] >= run)

    def went_on_alone(self, store: Path) -> bool:
        """Whether the run that wrote the store later continued with Ray alone.

        The run spills nothing before its state file points to the store, and Ray alone writes no
        pointer.
        """
        file = self.state_file
        if file is None or paths.run_of_store(store)[0] != file.run or file.pointer() is not None:
            return False
        # The end of an incomplete file, where the pointer is, may be what is missing.
        with self.experiment.filesystem.open_input_file(file.path) as content:
            return is_complete(content)


def locate(experiment: Experiment, spill_dir: Path | None = None) -> StoreRef:
    """Find an experiment's files.

    Args:
        experiment: the location of the experiment.
        spill_dir: the user's directory for trial stores; None for the default.

    Raises:
        OSError, sqlite3.Error: a file that may be the experiment's cannot be read now.
    """
    state_file = StateFile.newest_of(experiment)
    own = experiment.store_directories()
    found = {path for directory in own for path in paths.stores_in(directory)}
    if spill_dir is not None and spill_dir not in own:
        # Several experiments may share it.
        found |= {path for path in paths.stores_in(spill_dir) if _belongs(path, experiment)}
    pointed = state_file and state_file.pointer()
    if state_file and pointed and pointed.name not in {path.name for path in found}:
        with suppress(OSError):
            found |= {pointed} if _is_about(pointed, experiment, state_file) else set()
    stores = tuple(sorted(found, key=paths.run_of_store, reverse=True))
    return StoreRef(experiment, state_file, stores, spill_dir or experiment.store_directory())


def _belongs(path: Path, experiment: Experiment) -> bool:
    """Whether a store in a directory that experiments share is this experiment's.

    Raises:
        OSError, sqlite3.Error: the store cannot be read now. It may be this experiment's newest,
            so no older one may be used in its place.
    """
    try:
        store = TrialStore.open(path)
    except (FileNotFoundError, PermissionError, StoreError):
        return False
    except sqlite3.OperationalError as error:
        if is_locked(error):
            return False
        raise
    try:
        return experiment.is_at(store.get_metadata("experiment"))
    finally:
        store.close()


def _is_about(pointed: Path, experiment: Experiment, state_file: StateFile) -> bool:
    """Whether the store that a state file points to describes this experiment as it is now.

    The state file may be in a copy of the experiment, and the store may belong to the original.
    """
    if not pointed.exists():
        return False
    try:
        store = TrialStore.open(pointed)
    except (OSError, sqlite3.Error, StoreError):
        return True  # ``verify`` opens it again and reports the error.
    try:
        owner = store.get_metadata("experiment")
        return (
            experiment.is_at(owner)
            or _was_moved(owner or "", experiment)
            or _is_written_with(state_file, store)
        )
    except (sqlite3.Error, StoreError):
        return True
    finally:
        store.close()


def _was_moved(owner: str, experiment: Experiment) -> bool:
    """Whether the experiment is no longer at its former path ``owner``."""
    of_this_kind = (
        PurePosixPath(owner).is_absolute() == PurePosixPath(experiment.path).is_absolute()
    )
    return of_this_kind and Experiment(experiment.filesystem, owner).newest_state_file() is None


def _is_written_with(state_file: StateFile, store: TrialStore) -> bool:
    """Whether the state file was written together with the store's last snapshot."""
    state = store.snapshot().get("state", b"").rstrip().removesuffix(b"}")
    state = state.removeprefix(HEAD.encode())
    published = state_file.end[: state_file.end.rfind(b', "%s": ' % POINTER_KEY.encode())]
    compared = min(len(state), len(published))
    return compared > 0 and state[-compared:] == published[-compared:]
