"""Builds a trial store from an experiment state file and the intact rows of damaged stores.

An experiment that Ray ran alone also gets its trial store this way.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from ray_tune_memguard.adapter import paths
from ray_tune_memguard.adapter.installation import new_summary_index
from ray_tune_memguard.adapter.location import Experiment
from ray_tune_memguard.adapter.restore.locate import StateFile, StoreRef
from ray_tune_memguard.adapter.restore.parts import UploadedParts, uploaded_parts
from ray_tune_memguard.adapter.restore.verify import (
    BUILT_FROM,
    Damage,
    DamagedStoreError,
    VerifiedStore,
    load_snapshot,
    verify,
)
from ray_tune_memguard.adapter.serialization.state_record import reported_in_record, row_of_record
from ray_tune_memguard.lazy.interfaces import FINISHED
from ray_tune_memguard.lazy.summaries import TrialSummaryIndex
from ray_tune_memguard.notices import logger
from ray_tune_memguard.store.errors import StoreError, damage_as_store_error
from ray_tune_memguard.store.files import remove, set_aside
from ray_tune_memguard.store.snapshot import Snapshot
from ray_tune_memguard.store.state_reader import StateReader
from ray_tune_memguard.store.trial_store import TrialRow, TrialStore
from ray_tune_memguard.system.progress_bar import progress_bar

_ROWS_AT_ONCE = 256


def verify_or_rebuild(ref: StoreRef) -> VerifiedStore | None:
    """Open the newest run's trial store; rebuild it if it is damaged or if Ray ran alone.

    Returns:
        The store; None if there is no experiment.

    Raises:
        OSError, sqlite3.Error: a file cannot be read now, or no store can be written.
        StoreError: the store is damaged and there is no state file to rebuild it with, or another
            version of this package wrote it.
        ValueError: the experiment state file is not valid.
    """
    try:
        found = verify(ref)
    except DamagedStoreError as error:
        if ref.state_file is None:
            raise
        return rebuild(ref, ref.state_file, error.damaged, error.intact)
    if found is None and ref.state_file is not None:
        return rebuild(ref, ref.state_file)
    return found


def rebuild(
    ref: StoreRef,
    state_file: StateFile,
    damaged: Sequence[Damage] = (),
    intact: Path | None = None,
    parts: UploadedParts | None = None,
) -> VerifiedStore:
    """Build a trial store.

    Damaged stores are renamed only when the new one is complete. If no store can be written beside
    them, a temporary one is built and they keep their names.

    Args:
        ref: the experiment.
        state_file: its newest state file.
        damaged: the stores whose intact rows are copied, the newest run's first.
        intact: an intact store of an earlier run, which may have trials that they have lost.
        parts: the later checkpoint in parts, if it was read already.

    Raises: see :func:`verify_or_rebuild`.
    """
    with _new_store(ref.directory, state_file.run) as store:
        content = _StateFileContent()
        parts = parts or uploaded_parts(ref.experiment, state_file)
        content.read(ref.experiment, state_file, store, parts)
        if parts is not None:
            content.update_from(parts.snapshot)
        if damaged:
            _add_intact_rows(damaged, intact, content, state_file, store)
        content.snapshot().save(store)
        store.set_metadata(experiment=ref.experiment.path, **{BUILT_FROM: state_file.version})
        store.finalize()
        store.close()
        built = TrialStore.open(store.path)
    is_permanent = store.path.parent == ref.directory
    for damage in damaged if is_permanent else ():
        # The file is kept for an investigation, under a name that the next search does not find.
        with suppress(OSError):
            set_aside(damage.path)
    return VerifiedStore(ref.experiment, built, load_snapshot(built))


@contextmanager
def _new_store(directory: Path | None, session: str) -> Iterator[TrialStore]:
    name = paths.store_name(session)
    with ExitStack() as stack:
        try:
            if directory is None:
                raise OSError("not a local directory")
            store = TrialStore.create(directory, name)
        except (OSError, sqlite3.OperationalError) as error:
            # For example, a read-only archive. A temporary store then serves this process only.
            elsewhere = Path(tempfile.mkdtemp(prefix="memguard-"))
            stack.callback(shutil.rmtree, elsewhere, ignore_errors=True)
            logger.debug("The store is written to %s: %s", elsewhere, error)
            store = TrialStore.create(elsewhere, name)
        try:
            yield store
        except BaseException:
            with suppress(sqlite3.Error):
                store.close()
            remove(store.path)
            raise


@dataclass
class _StateFileContent:
    """The content of a state file without its finished trials, which are rows of the new store."""

    #: The status of each trial, by id, in the order of the file.
    statuses: dict[str, str] = field(default_factory=dict)
    unfinished: list[list[str]] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    summaries: TrialSummaryIndex = field(default_factory=new_summary_index)
    #: The file without its trials.
    rest: str = ""
    creation_count: int = 0
    files: dict[str, bytes] | None = None
    unsent: list[str] = field(default_factory=list)

    def read(
        self,
        experiment: Experiment,
        state_file: StateFile,
        store: TrialStore,
        parts: UploadedParts | None,
    ) -> None:
        rows: list[tuple[int, TrialRow]] = []
        with (
            experiment.filesystem.open_input_file(state_file.path) as file,
            progress_bar(
                what=f"Reading {state_file.name}",
                unit="B",
                size=file.size() if parts is None else parts.manifest.end,
            ) as bar,
        ):
            read = file.read if parts is None else parts.read_whole(experiment, state_file)
            reader = StateReader(read, bar.update)
            for position, (record, text) in enumerate(reader.records()):
                row = row_of_record(record[0], record[1], text)
                if row.trial_id in self.statuses or row.status not in FINISHED:
                    self.unfinished.append(record)
                    self.positions.append(position)
                else:
                    rows.append((position, row))
                    self.summaries.note(position, row.trial_id, *reported_in_record(record[1]))
                    if len(rows) >= _ROWS_AT_ONCE:
                        _put(store, rows)
                self.statuses[row.trial_id] = row.status
            _put(store, rows)
            self.rest = reader.rest()

    def update_from(self, later: Snapshot) -> None:
        """Replace the unfinished trials by those of a snapshot that is as new as the file or newer.

        The searcher's state and the trials that the searcher has created must be of one moment.
        """
        known = dict(zip(self.statuses, range(len(self.statuses)), strict=True))
        state = json.loads(later.state)
        unfinished = [
            (trial_id, record)
            for record in state["trial_data"]
            if self.statuses.get(trial_id := json.loads(record[0])["trial_id"]) not in FINISHED
        ]
        for trial_id, record in unfinished:
            known.setdefault(trial_id, len(known))
            self.statuses.setdefault(trial_id, json.loads(record[0])["status"])
        self.unfinished = [record for _, record in unfinished]
        self.positions = [known[trial_id] for trial_id, _ in unfinished]
        self.rest = json.dumps({**state, "trial_data": []})
        self.creation_count = later.creation_count
        self.files = later.files
        self.unsent = later.unsent

    def snapshot(self) -> Snapshot:
        return Snapshot(
            state=json.dumps({**json.loads(self.rest), "trial_data": self.unfinished}),
            positions=self.positions,
            creation_count=self.creation_count,
            summaries=self.summaries.dump(),
            files=self.files,
            unsent=self.unsent,
        )


def _put(store: TrialStore, rows: list[tuple[int, TrialRow]]) -> None:
    with store.transaction():
        for position, row in rows:
            store.put(position, row)
    rows.clear()


def _add_intact_rows(
    damaged: Sequence[Damage],
    intact: Path | None,
    content: _StateFileContent,
    state_file: StateFile,
    store: TrialStore,
) -> None:
    """Add the rows that these stores have and the state file lacks, and log how many there are."""
    in_state_file = {id_ for id_, status in content.statuses.items() if status in FINISHED}
    newest, staging = _snapshot_and_staging_in(damaged[0].path)
    if newest is not None:
        content.update_from(newest)
    if staging is not None:
        # Files of trials may be there and nowhere else.
        store.set_metadata(staging=staging)
    read: set[str] = set()
    position = len(content.statuses)
    later = 0
    for path in [*(damage.path for damage in damaged), *([intact] if intact else [])]:
        try:
            source = TrialStore.open(path)
        except StoreError:
            continue
        for row in source.salvage():
            if row.trial_id in read:
                continue
            read.add(row.trial_id)
            if row.trial_id in in_state_file:
                continue
            if path != damaged[0].path:
                row = replace(row, creation_index=-1)  # A run before the newest one created it.
            elif newest is None:
                # Without a snapshot only the order of trials that the state file lacks is known.
                is_known = row.trial_id in content.statuses
                row = replace(row, creation_index=-1 if is_known else later)
            with store.transaction():
                store.put(position, row)
            position += 1
            later += 1
        source.close()
    logger.warning(
        "The trial store %s is damaged (%s). %d of its trials could be read. The experiment state "
        "file %s has %d finished trials; %d that finished after it was written were taken from "
        "the store. Trials that are in neither run again.",
        damaged[0].path,
        damaged[0].reason,
        len(read),
        state_file.name,
        len(in_state_file),
        later,
    )


def _snapshot_and_staging_in(damaged: Path) -> tuple[Snapshot | None, str | None]:
    """What is intact in a damaged store of its last snapshot and its run's staging directory."""
    try:
        store = TrialStore.open(damaged)
    except StoreError:
        return None, None
    snapshot = staging = None
    try:
        with suppress(StoreError):
            snapshot = load_snapshot(store)
        with suppress(StoreError), damage_as_store_error():
            staging = store.get_metadata("staging")
    finally:
        store.close()
    return snapshot, staging
