"""What can be done with an experiment's files while no run uses them: examine them, build a store.

:func:`examine` runs a restore up to its plan, ``locate → verify (or rebuild) → plan``, and writes
nothing: where a restore would build a store in the experiment, a temporary one is built.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from pyarrow.fs import FileSystem
from ray.tune import ResumeConfig

from ray_tune_memguard.adapter import paths
from ray_tune_memguard.adapter.location import Experiment
from ray_tune_memguard.adapter.restore.locate import StoreRef, locate
from ray_tune_memguard.adapter.restore.plan import plan
from ray_tune_memguard.adapter.restore.rebuild import rebuild, verify_or_rebuild
from ray_tune_memguard.adapter.restore.verify import (
    Damage,
    DamagedStoreError,
    VerifiedStore,
    verify,
)
from ray_tune_memguard.store.errors import StoreError, is_locked
from ray_tune_memguard.store.histories import FILE_NAME, HistoryStore
from ray_tune_memguard.system.progress_bar import progress_bar

#: What a restore reads.
STORE, REBUILT, STATE_FILE, NOTHING = "store", "rebuilt store", "state file", "nothing"

_NO_CHECKPOINT = "its run ended before its first experiment checkpoint"


@dataclass(frozen=True)
class Histories:
    """The file with all results of an experiment.

    Attributes:
        path: the file.
        trials, results: how many it has.
        damage: what is wrong with it; None if it is whole.
    """

    path: Path
    trials: int = 0
    results: int = 0
    damage: str | None = None


@dataclass(frozen=True)
class Examination:
    """What a restore of an experiment would do.

    Attributes:
        source: what it would read: ``store``, ``rebuilt store`` (the store is damaged; its intact
            rows and the experiment state file), ``state file`` (Ray ran alone) or ``nothing``.
        store: the trial store; None if there is none.
        state_file: the name of the experiment state file; None if there is none.
        problems: what is damaged, or written by another version.
        staying: finished trials that stay on disk, by status.
        returning: trials that return to memory, by status.
        unsnapshotted: trials that finished after the last experiment checkpoint. They do not run
            again; the searcher receives their results.
        histories: the file with all results; None if there is none on a local disk.
    """

    source: str
    store: Path | None
    state_file: str | None
    problems: tuple[str, ...] = ()
    staying: dict[str, int] = field(default_factory=dict)
    returning: dict[str, int] = field(default_factory=dict)
    unsnapshotted: int = 0
    histories: Histories | None = None


@dataclass(frozen=True)
class Import:
    """A trial store that was built, or was there.

    Attributes:
        store: the file.
        trials: the number of trials of the experiment.
        is_new: whether it was built now.
    """

    store: Path
    trials: int
    is_new: bool


def examine(path: str, filesystem: FileSystem | None, resume_config: ResumeConfig) -> Examination:
    """Find out whether an experiment's files are whole, and what a restore would do.

    Args:
        path: the experiment's directory, or its URI.
        filesystem: of ``path``; None for the one that ``path`` tells.
        resume_config: which trials are to run again.

    Raises:
        ValueError: there is no experiment.
        RuntimeError: its run is not over.
        OSError, sqlite3.Error: a file cannot be read now.
    """
    with _refusal_of_running():
        ref = _located(path, filesystem)
        histories = _histories(ref.experiment)
        store = next(iter(ref.current_stores()), None)
        name = None if ref.state_file is None else ref.state_file.name
        examination = Examination(NOTHING, store, name, histories=histories)
        try:
            source, problems, found = _restorable(ref)
        except (StoreError, ValueError) as error:
            return replace(examination, problems=(str(error),))
        try:
            made = plan(found, resume_config)
        finally:
            found.close()
        returning = Counter(entry.status for entry in made.entries if entry.state_record)
        return replace(
            examination,
            source=source,
            store=found.store.path if source == STORE else store,
            problems=problems,
            staying=dict(Counter(entry.status for _, entry in made.staying())),
            returning=dict(returning),
            unsnapshotted=len(made.unsnapshotted),
        )


def import_experiment(path: str, filesystem: FileSystem | None) -> Import:
    """Build the trial store of an experiment that ran without this package.

    Args:
        path: the experiment's directory, or its URI.
        filesystem: of ``path``; None for the one that ``path`` tells.

    Raises:
        ValueError: there is no experiment, or its experiment state file is not valid.
        RuntimeError: its run is not over.
        OSError, sqlite3.Error: a file cannot be read, or no store can be written.
        StoreError: its store cannot be read, and not be built anew; or its run ended before its
            first experiment checkpoint.
    """
    with _refusal_of_running():
        ref = _located(path, filesystem)
        if ref.directory is None:
            raise OSError("a store can only be built in an experiment on a local disk")
        found = verify_or_rebuild(ref)
        if found is None:
            raise StoreError(_NO_CHECKPOINT)
        is_new = found.store.path not in ref.stores
        try:
            if is_new and found.store.path.parent != ref.directory:
                raise OSError(f"{ref.directory} cannot be written")
            entries = plan(found, ResumeConfig()).entries
        finally:
            found.close()
        return Import(found.store.path, len(entries), is_new)


def _located(path: str, filesystem: FileSystem | None) -> StoreRef:
    ref = locate(Experiment.at(path, filesystem))
    if ref.state_file is None and not ref.stores:
        raise ValueError(f"There is no experiment at {path!r}.")
    return ref


def _restorable(ref: StoreRef) -> tuple[str, tuple[str, ...], VerifiedStore]:
    """What a restore reads, what is damaged, and the store that it reads or builds.

    Raises:
        StoreError, ValueError: nothing can be restored.
    """
    # Where a restore would build a store, a temporary one is built, and damaged ones keep names.
    aside = replace(ref, directory=None)
    try:
        found = verify(ref)
    except DamagedStoreError as error:
        if ref.state_file is None:
            raise
        built = rebuild(aside, ref.state_file, error.damaged, error.intact)
        return REBUILT, _problems(error.damaged), built
    if found is not None:
        return STORE, _problems(found.passed_over), found
    if ref.state_file is None:
        raise StoreError(_NO_CHECKPOINT)
    return STATE_FILE, (), rebuild(aside, ref.state_file)


def _problems(damaged: Sequence[Damage]) -> tuple[str, ...]:
    return tuple(f"{damage.path}: {damage.reason}" for damage in damaged)


def _histories(experiment: Experiment) -> Histories | None:
    path = Path(experiment.path, paths.DIRECTORY, FILE_NAME)
    if not experiment.is_local or not path.is_file():
        return None
    found = Histories(path)
    try:
        store = HistoryStore.open(path)
    except StoreError as error:
        return replace(found, damage=str(error))
    try:
        for trial_id in progress_bar(store.trial_ids(), "Checking results"):
            history = store.history(trial_id)
            found = replace(
                found, trials=found.trials + 1, results=found.results + len(history.results)
            )
            if history.missing:
                missing = f"results of trial {trial_id} are damaged"
                found = replace(found, damage=found.damage or missing)
    finally:
        store.close()
    return found


@contextmanager
def _refusal_of_running() -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        if is_locked(error):
            raise RuntimeError("its run is not over") from error
        raise
