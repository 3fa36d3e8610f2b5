"""What earlier runs of an experiment left behind: finding its trial store, making one, opening it.

The store that counts is that of the newest run. If that run was Ray's alone there is none: one is
made from its experiment state file (:func:`make_store`), after which the experiment is like any
other. A damaged store is made anew from what is whole of it and from the state file.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import tqdm
from pyarrow.fs import FileSystem, LocalFileSystem
from ray.train._internal.storage import get_fs_and_path
from ray.tune.experiment import Trial

from ray_tune_memguard.adapter import paths
from ray_tune_memguard.adapter.restore.searcher import UnsnapshottedTrial
from ray_tune_memguard.adapter.run.controller import POINTER_KEY
from ray_tune_memguard.adapter.run.spiller import new_summary_index
from ray_tune_memguard.adapter.serialization.json_text import decode
from ray_tune_memguard.adapter.serialization.state_record import reported_in_record, row_of_record
from ray_tune_memguard.adapter.serialization.trial_pickle import TrialStateCodec
from ray_tune_memguard.lazy.cache import TrialCache
from ray_tune_memguard.lazy.interfaces import FINISHED
from ray_tune_memguard.lazy.trial_list import SpilledTrials
from ray_tune_memguard.notices import logger
from ray_tune_memguard.store.errors import (
    EmptyStoreError,
    StoreError,
    UnsupportedVersionError,
    is_locked,
)
from ray_tune_memguard.store.files import remove, set_aside
from ray_tune_memguard.store.snapshot import Snapshot
from ray_tune_memguard.store.state_file import HEAD
from ray_tune_memguard.store.state_reader import StateReader
from ray_tune_memguard.store.trial_store import TrialRow, TrialStore

# In a store that was made from a state file: which state of the file that was.
_MADE_FROM = "made from"
# Enough of the file's end to hold the pointer to the store, and to tell one state from another.
_END_BYTES = 64 * 1024
_SHOW_PROGRESS_AFTER_S = 1.0
_PUT_AT_ONCE = 256


@dataclass(frozen=True)
class Experiment:
    """Where an experiment is; ``path`` is that of its directory in ``filesystem``."""

    filesystem: FileSystem
    path: str

    @classmethod
    def of(cls, controller: Any) -> Experiment:
        storage = controller._storage
        return cls(storage.storage_filesystem, str(storage.experiment_fs_path))

    # What a trial's storage context is given when the experiment is not where it was.
    @property
    def storage_filesystem(self) -> FileSystem:
        return self.filesystem

    @property
    def storage_fs_path(self) -> str:
        return str(PurePosixPath(self.path).parent)

    @property
    def experiment_dir_name(self) -> str:
        return PurePosixPath(self.path).name

    #: Of trials that are only looked at nothing is uploaded.
    syncer = None

    def state_file(self) -> str | None:
        """The path of the newest run's experiment state file that is complete."""
        return paths.newest_state_file(self.filesystem, self.path)

    def owns(self, store: TrialStore) -> bool:
        """Whether the store is this experiment's alone, and not that of one it is a copy of."""
        return store.path.parent in self.store_directories() or self.is_at(
            store.get_metadata("experiment")
        )

    def is_at(self, place: str | None) -> bool:
        """Whether the path ``place`` means this experiment, in whatever spelling."""
        if place is None or place == self.path:
            return place is not None
        # By way of a symbolic link, or with a slash at the end.
        local = isinstance(self.filesystem, LocalFileSystem)
        return local and os.path.realpath(place) == os.path.realpath(self.path)

    def store_directory(self) -> Path | None:
        """Where its trial stores are written unless the user wants them elsewhere."""
        return next(iter(self.store_directories()), None)

    def store_directories(self) -> list[Path]:
        """Where its trial stores are unless the user put them elsewhere."""
        is_local = isinstance(self.filesystem, LocalFileSystem)
        return paths.directories_in(self.path) if is_local else []


def current_store(
    experiment: Experiment,
    directory: Path | None = None,
    make: bool = False,
    salvage: bool = False,
) -> TrialStore | None:
    """The newest run's trial store, opened for reading; None if that run left none.

    ``directory``: where to look as well, and to ``make`` a store if there is none: that is, if the
    newest run was Ray's alone. ``salvage``: rebuild a damaged one.

    Raises:
        OSError, sqlite3.Error: what is there cannot be read, or the store cannot be made.
        StoreError: the store is damaged, and is not to be rebuilt; or of another version.
        ValueError: the experiment state file is not one.
    """
    state_file = experiment.state_file()
    end = _end_of(experiment, state_file) if state_file else b""
    damaged: list[tuple[Path, str]] = []
    older: Path | None = None
    empty: list[tuple[Path, str]] = []
    for path in _candidates(experiment, directory, end):
        if state_file is not None and paths.run_of_store(path)[0] < _session_of(state_file):
            break  # A run without this package has gone on since.
        try:
            store = _whole(path)
            if store is None:
                continue
            made_from = store.get_metadata(_MADE_FROM)
            if made_from is not None and made_from != _mark(state_file or "", end):
                store.close()
                break  # The file that it was made from has changed.
            if not damaged:
                return store
            # What it has and a newer, damaged one lacks is taken from it.
            store.close()
            older = path
            break
        except FileNotFoundError:
            continue
        except EmptyStoreError as error:
            empty.append((path, str(error)))
        except UnsupportedVersionError as error:
            raise UnsupportedVersionError(f"{path}: {error}") from error
        except StoreError as error:
            damaged.append((path, str(error)))
    # An empty one has nothing that an older one lacks.
    damaged = damaged or empty
    if damaged and (not salvage or state_file is None):
        raise StoreError(f"{damaged[0][0]}: {damaged[0][1]}")
    if state_file is None or not (make or damaged):
        return None
    return make_store(
        experiment, state_file, end, directory or experiment.store_directory(), damaged, older
    )


def _whole(path: Path) -> TrialStore | None:
    """The opened store; None if its run ended before anything was finished.

    Raises:
        StoreError: it is damaged.
    """
    store = TrialStore.open(path)
    try:
        wrong = store.damage()
        if wrong is not None:
            raise StoreError(wrong)
        if store.has_snapshot():
            store.snapshot()
            return store
    except BaseException:
        store.close()
        raise
    store.close()
    return None


def stores_of(experiment: Experiment) -> list[Path]:
    """The stores that may be the experiment's, the newest run's first."""
    state_file = experiment.state_file()
    return _candidates(experiment, None, _end_of(experiment, state_file) if state_file else b"")


def _candidates(experiment: Experiment, directory: Path | None, end: bytes) -> list[Path]:
    """The stores that may be the experiment's, the newest run's first."""
    own = experiment.store_directories()
    found = {path for place in own for path in paths.stores_in(place)}
    if directory is not None and directory not in own:
        # Several experiments may share it.
        found |= {path for path in paths.stores_in(directory) if _belongs(path, experiment)}
    pointed = _pointer(end)
    if pointed is not None and pointed.name not in {path.name for path in found}:
        with suppress(OSError):
            found |= {pointed} if _tells_of(pointed, experiment, end) else set()
    return sorted(found, key=paths.run_of_store, reverse=True)


def _belongs(path: Path, experiment: Experiment) -> bool:
    """Whether a store in a directory that experiments share is this experiment's.

    Raises:
        OSError, sqlite3.Error: it cannot be read now. It may be the newest one of this experiment,
            so an older one must not be taken in its place.
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


def _tells_of(pointed: Path, experiment: Experiment, end: bytes) -> bool:
    """Whether the store that a state file points to is about this experiment as it is now.

    The file may be in a copy of the experiment, and the store go on with the original.
    """
    if not pointed.exists():
        return False
    try:
        store = TrialStore.open(pointed)
    except (OSError, sqlite3.Error, StoreError):
        return True  # Whoever opens it next says what is wrong.
    try:
        owner = store.get_metadata("experiment")
        return (
            experiment.is_at(owner) or _is_gone(owner or "", experiment) or _is_state_of(store, end)
        )
    except (sqlite3.Error, StoreError):
        return True
    finally:
        store.close()


def _is_gone(owner: str, experiment: Experiment) -> bool:
    """Whether the experiment was moved here from its place ``owner``."""
    of_this_kind = (
        PurePosixPath(owner).is_absolute() == PurePosixPath(experiment.path).is_absolute()
    )
    return of_this_kind and Experiment(experiment.filesystem, owner).state_file() is None


def _is_state_of(store: TrialStore, end: bytes) -> bool:
    """Whether a state file that ends so was written together with the last snapshot."""
    state = store.snapshot().get("state", b"").rstrip().removesuffix(b"}")
    state = state.removeprefix(HEAD.encode())
    published = end[: end.rfind(b', "%s": ' % POINTER_KEY.encode())]
    compared = min(len(state), len(published))
    return compared > 0 and state[-compared:] == published[-compared:]


def _session_of(state_file: str) -> str:
    return PurePosixPath(state_file).stem.removeprefix("experiment_state-")


def _mark(state_file: str, end: bytes) -> str:
    """Tells a state of a state file from later ones, also after it was copied."""
    return f"{PurePosixPath(state_file).name} {zlib.crc32(end)}"


def _end_of(experiment: Experiment, state_file: str) -> bytes:
    with experiment.filesystem.open_input_file(state_file) as file:
        size = file.size()
        file.seek(max(0, size - _END_BYTES))
        end: bytes = file.read()
    return end + str(size).encode()


def _pointer(end: bytes) -> Path | None:
    """The store that a state file says it belongs to."""
    found = re.findall(rb'"%s": (\{"store": .*?\})\}' % POINTER_KEY.encode(), end)
    return Path(json.loads(found[-1])["store"]) if found else None


# Making a store.


def make_store(
    experiment: Experiment,
    state_file: str,
    end: bytes,
    directory: Path | None,
    damaged: Sequence[tuple[Path, str]] = (),
    older: Path | None = None,
) -> TrialStore:
    """A store of what a state file tells, and of the intact rows of ``damaged`` stores.

    ``damaged``: their paths and what is wrong with each, the newest run's first. ``older``: an
    intact store of a run before; it has trials that a damaged one has lost.

    Damaged stores are set aside once the new one is complete, and only then: a temporary store,
    which is made where none can be written beside it, does not replace it.

    Raises: see :func:`current_store`.
    """
    with _new_store(directory, _session_of(state_file)) as store:
        known = _read_state(experiment, state_file, store)
        if damaged:
            _take_over(damaged, older, store, known, state_file)
        store.set_metadata(experiment=experiment.path, **{_MADE_FROM: _mark(state_file, end)})
        store.finalize()
    is_permanent = store.path.parent == directory
    for path, _ in damaged if is_permanent else ():
        # Kept for whoever wants to know what happened. The next search does not find it.
        with suppress(OSError):
            set_aside(path)
    store.close()
    made = TrialStore.open(store.path)
    if not is_permanent:
        # It is read as long as it is open, and leaves nothing behind.
        shutil.rmtree(store.path.parent, ignore_errors=True)
    return made


@contextmanager
def _new_store(directory: Path | None, session: str) -> Iterator[TrialStore]:
    name = paths.store_name(session)
    try:
        if directory is None:
            raise OSError("not a local directory")
        store = TrialStore.create(directory, name)
    except (OSError, sqlite3.OperationalError) as error:
        # A read-only archive, say. The store then serves this process only.
        elsewhere = Path(tempfile.mkdtemp(prefix="memguard-"))
        logger.debug("The store is made in %s: %s", elsewhere, error)
        store = TrialStore.create(elsewhere, name)
    try:
        yield store
    except BaseException:
        store.close()
        remove(store.path)
        raise


def _read_state(experiment: Experiment, state_file: str, store: TrialStore) -> dict[str, str]:
    """Put finished trials into the store as rows, the rest as its snapshot; statuses by id."""
    summaries = new_summary_index()
    unfinished: list[Any] = []
    places: list[int] = []
    known: dict[str, str] = {}
    with (
        experiment.filesystem.open_input_file(state_file) as file,
        tqdm.tqdm(
            desc=f"Reading {PurePosixPath(state_file).name}",
            total=file.size(),
            unit="B",
            unit_scale=True,
            delay=_SHOW_PROGRESS_AFTER_S,
            leave=False,
        ) as bar,
    ):
        reader = StateReader(file.read, bar.update)
        rows: list[tuple[int, TrialRow]] = []
        for position, (entry, text) in enumerate(reader.entries()):
            row = row_of_record(entry[0], entry[1], text)
            if row.trial_id in known or row.status not in FINISHED:
                unfinished.append(entry)
                places.append(position)
            else:
                rows.append((position, row))
                summaries.note(position, row.trial_id, *reported_in_record(entry[1]))
                if len(rows) >= _PUT_AT_ONCE:
                    _put(store, rows)
            known[row.trial_id] = row.status
        _put(store, rows)
        rest = reader.rest()
    state = json.loads(rest)
    state["trial_data"] = unfinished
    snapshot = Snapshot(
        state=json.dumps(state),
        positions=places,
        creation_count=0,
        summaries=summaries.dump(),
        files=None,
    )
    snapshot.save(store)
    return known


def _put(store: TrialStore, rows: list[tuple[int, TrialRow]]) -> None:
    with store.transaction():
        for position, row in rows:
            store.put(position, row)
    rows.clear()


def _take_over(
    damaged: Sequence[tuple[Path, str]],
    older: Path | None,
    store: TrialStore,
    known: dict[str, str],
    state_file: str,
) -> None:
    """Add what these stores have and the state file lacks, and say what came of it."""
    salvaged: set[str] = set()
    position = len(known)
    later = 0
    for path in [*(path for path, _ in damaged), *([older] if older else [])]:
        try:
            source = TrialStore.open(path)
        except StoreError:
            continue
        for row in source.salvage():
            if row.trial_id in salvaged:
                continue
            salvaged.add(row.trial_id)
            if known.get(row.trial_id) in FINISHED:
                continue
            # Trials that the state file does not know are new since; those it knows are not.
            creation_index = -1 if row.trial_id in known else later
            with store.transaction():
                store.put(position, row.created_at_index(creation_index))
            position += 1
            later += 1
        source.close()
    path, wrong = damaged[0]
    finished = sum(status in FINISHED for status in known.values())
    logger.warning(
        "The trial store %s is damaged (%s). Of its trials %d could be read. The experiment state "
        "file %s has %d finished trials; %d that finished after it was written were taken from "
        "the store. Trials that are in neither run again.",
        path,
        wrong,
        len(salvaged),
        PurePosixPath(state_file).name,
        finished,
        later,
    )


# Looking at an experiment.


def trials_of(path: str, filesystem: FileSystem | None) -> SpilledTrials[Trial] | None:
    """The trials of the experiment at a path or URI, of which a store is made if there is none.

    None where Ray is to open it: its sweep is running, or it is no experiment, which Ray says.
    """
    filesystem, inner = get_fs_and_path(path, filesystem)
    experiment = Experiment(filesystem, inner.rstrip("/"))
    try:
        store = current_store(experiment, make=True, salvage=True)
    except (OSError, sqlite3.OperationalError) as error:
        if isinstance(error, sqlite3.Error) and is_locked(error):
            logger.debug("Its run is not over, so Ray alone opens %s: %s", path, error)
        else:
            logger.warning(
                "The trial store of %s cannot be read (%s). The experiment is opened as Ray does "
                "it, from the experiment state file.",
                path,
                error,
            )
        return None
    return None if store is None else open_trials(experiment, store)


def open_trials(experiment: Experiment, store: TrialStore) -> SpilledTrials[Trial]:
    """The trials of an experiment that is only looked at."""
    codec = TrialStateCodec(experiment, stub=True)
    snapshot = Snapshot.load(store)
    summaries = new_summary_index()
    summaries.load(snapshot.summaries)
    residents = {}
    state = decode(snapshot.state)
    unfinished = unfinished_entries(store, snapshot, state["trial_data"])
    for late in unsnapshotted_trials(store, snapshot, state["trial_data"]):
        row = store.row(late.trial_id)
        if row is not None:
            summaries.note(row.position, row.trial_id, *reported_in_record(late.metadata_json))
    end = max([store.extent()[1], *(position for position, _ in unfinished)]) + 1
    for position, entry in unfinished:
        # One that was taken out of the list and is in the file all the same comes last.
        if position < 0:
            position, end = end, end + 1
        residents[position] = codec.trial_of(*entry)
    return SpilledTrials.reopened(residents, TrialCache(store, codec), summaries)


def unsnapshotted_trials(
    store: TrialStore, snapshot: Snapshot, trial_data: list[list[str]]
) -> Iterator[UnsnapshottedTrial]:
    """The trials that were spilled after the snapshot. ``trial_data``: the entries in it."""
    creation_count = {
        row.trial_id: creation_index
        for creation_index, row in store.created_since(snapshot.creation_count)
    }
    states = (json.loads(state) for state, _ in trial_data)
    then = {state["trial_id"]: state["status"] in FINISHED for state in states}
    spilled_since = [trial_id for trial_id in then if store.row(trial_id) is not None]
    for trial_id in [*spilled_since, *creation_count]:
        state_json, metadata_json = json.loads(store.state_record(trial_id))
        told = then.get(trial_id, False)
        yield UnsnapshottedTrial(
            trial_id, creation_count.get(trial_id), state_json, metadata_json, told
        )


def unfinished_entries(
    store: TrialStore,
    snapshot: Snapshot,
    trial_data: list[list[str]],
    rerun: frozenset[str] = frozenset(),
) -> list[tuple[int, list[str]]]:
    """Places and entries of trials that are not finished, or whose status is one to ``rerun``.

    ``trial_data``: the entries in the snapshot. Those that have finished since it was taken are in
    the store, and not among what is returned.
    """
    found = []
    for position, entry in zip(snapshot.positions, trial_data, strict=True):
        if store.row(json.loads(entry[0])["trial_id"]) is None:
            found.append((position, list(entry)))
    for row in store.to_resume(rerun):
        found.append((row.position, json.loads(store.state_record(row.trial_id))))
    return found
