"""Resuming an experiment from its trial store: finished trials stay on disk.

Ray reads all trials of the experiment state file into memory and adds each to the controller. Here
that happens to those which will run again; the others become rows of the new run's store. Each step
that Ray's ``TuneController.resume`` takes is taken, in its order and by its own methods.

The store has what finished after the last experiment checkpoint as well. Such trials are not run
again; the searcher, whose state is that of the checkpoint, is told of them (``catch_up``).
"""

from __future__ import annotations

import json
import math
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import ray
from ray.tune import ResumeConfig
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler

from ray_tune_memguard.adapter import paths
from ray_tune_memguard.adapter.contract import emptied_by_rollback
from ray_tune_memguard.adapter.restore.experiments import (
    Experiment,
    current_store,
    unfinished_entries,
    unsnapshotted_trials,
)
from ray_tune_memguard.adapter.restore.searcher import UnsnapshottedTrial, catch_up
from ray_tune_memguard.adapter.run.controller import give_back
from ray_tune_memguard.adapter.run.spiller import (
    BLIND_TO_LIVE_TRIALS,
    Sweep,
    make_files,
    new_summary_index,
)
from ray_tune_memguard.adapter.serialization.json_text import decode
from ray_tune_memguard.adapter.serialization.state_record import reported_in_record
from ray_tune_memguard.adapter.serialization.trial_pickle import TrialStateCodec
from ray_tune_memguard.lazy.cache import TrialCache
from ray_tune_memguard.lazy.interfaces import FINISHED
from ray_tune_memguard.lazy.summaries import TrialSummaryIndex
from ray_tune_memguard.lazy.trial_list import SpilledTrials
from ray_tune_memguard.notices import Notices, logger, show_lines
from ray_tune_memguard.store.errors import StoreError
from ray_tune_memguard.store.files import remove
from ray_tune_memguard.store.snapshot import Snapshot
from ray_tune_memguard.store.state_file import ExperimentStateFile
from ray_tune_memguard.store.trial_store import SpilledRow, TrialStore

_ENTRIES_AT_ONCE = 256


@dataclass(frozen=True)
class RestoreEntry:
    """A trial in the order in which Ray resumes them: those that reported last come first."""

    reported_at: float
    #: Its place in the run before this one.
    position: float
    trial_id: str
    status: str
    #: Of one that comes back to memory: what the state file holds of it.
    entry: list[str] | None = None

    def rank(self) -> tuple[float, float]:
        return -self.reported_at, self.position


@dataclass(frozen=True)
class RestorePlan:
    """What the run before this one left: its store, and what is to become of its trials."""

    store: TrialStore
    snapshot: Snapshot
    #: What the snapshot has of the controller.
    runner_data: dict[str, Any]
    order: list[RestoreEntry]
    #: Trials that finished after the snapshot.
    late: list[UnsnapshottedTrial]
    #: Statuses of finished trials that are to run again.
    rerun: frozenset[str]

    @classmethod
    def read(cls, store: TrialStore, resume_config: ResumeConfig) -> RestorePlan:
        snapshot = Snapshot.load(store)
        state = decode(snapshot.state)
        trial_data = state["trial_data"]
        treatments: dict[str, Any] = {
            Trial.ERROR: resume_config.errored,
            Trial.TERMINATED: resume_config.finished,
        }
        rerun = frozenset(
            status
            for status, treatment in treatments.items()
            if treatment != ResumeConfig.ResumeType.SKIP
        )
        unfinished = unfinished_entries(store, snapshot, trial_data, rerun)
        order = [_place(*found) for found in unfinished]
        again = {place.trial_id for place in order}
        order += [
            RestoreEntry(reported_at, position, trial_id, status)
            for reported_at, position, trial_id, status in store.report_times()
            if trial_id not in again
        ]
        order.sort(key=RestoreEntry.rank)
        # The searcher has made those that run again, and saw them end, as well. Only what was to be
        # resumed when the run ended has not ended for it.
        resuming = {row.trial_id for row in store.to_resume()}
        late = [
            trial
            for trial in unsnapshotted_trials(store, snapshot, trial_data)
            if trial.trial_id not in resuming
        ]
        return cls(store, snapshot, state["runner_data"], order, late, rerun)

    def restored(self) -> list[list[str]]:
        """The entries of trials that come back to memory, in order."""
        return [place.entry for place in self.order if place.entry is not None]

    def finished_unspilled(self) -> list[str]:
        """The states of trials that had finished by the snapshot, but were not spilled yet."""
        return [
            place.entry[0]
            for place in self.order
            if place.entry is not None
            and place.status in FINISHED
            and place.status not in self.rerun
        ]

    def kept(self) -> list[tuple[int, RestoreEntry]]:
        """The trials that stay on disk, with their new places."""
        return [
            (position, place) for position, place in enumerate(self.order) if place.entry is None
        ]


def _place(position: int, entry: list[str]) -> RestoreEntry:
    state, metadata = json.loads(entry[0]), json.loads(entry[1])
    return RestoreEntry(
        metadata["last_result_time"],
        math.inf if position < 0 else position,
        state["trial_id"],
        state["status"],
        entry,
    )


def resume(
    controller: Any,
    resume_config: ResumeConfig,
    spill_dir: Path | None,
    notices: Notices,
) -> Sweep | None:
    """What ``TuneController.resume`` does, with finished trials left on disk.

    ``spill_dir``: where stores go, if the user wants them elsewhere. None is returned if this
    experiment cannot be resumed so. Then Ray's own way is to be taken, which also says if there is
    nothing to resume.
    """
    experiment = Experiment.of(controller)
    try:
        store = current_store(experiment, spill_dir, make=True, salvage=True)
        if store is None:
            return None
        past = RestorePlan.read(store, resume_config)
        # The callbacks that do so are set up only when the run is resumed.
        show_lines()
        logger.info("Restoring the run from the trial store %s", store.path)
        sweep = _Resumption(controller, resume_config, past).carry_out(spill_dir, notices)
        if experiment.owns(store):
            sweep.replaces = store.path
        store.close()
        return sweep
    except Exception as error:
        # Ray's own answer to an error here is to begin the experiment anew.
        _take_back(controller)
        logger.warning(
            "This experiment cannot be resumed from its trial store (%r). It is resumed from the "
            "experiment state alone, as Ray does it: trials that finished after the last "
            "experiment checkpoint run again.",
            error,
            exc_info=not isinstance(error, (OSError, sqlite3.Error, StoreError)),
        )
        return None


def _take_back(controller: Any) -> None:
    """Forget the trials that were added so far."""
    give_back(controller)
    controller._trials = []
    for name in emptied_by_rollback():
        getattr(controller, name).clear()


class _Resumption:
    """One resume under way."""

    def __init__(self, controller: Any, resume_config: ResumeConfig, past: RestorePlan) -> None:
        self._controller = controller
        self._resume_config = resume_config
        self._past = past
        self._codec = TrialStateCodec(
            controller._storage, prepare=_preparation(controller._placeholder_resolvers)
        )

    def carry_out(self, spill_dir: Path | None, notices: Notices) -> Sweep:
        controller, past = self._controller, self._past
        controller.__setstate__(past.runner_data)
        restored = self._restored_trials()
        self._restore_algorithms()
        fetched = self._fetch_files()
        directory = spill_dir or paths.store_directory(controller)
        store, state_file = make_files(controller, directory)
        try:
            with store.transaction():
                store.copy_rows(
                    past.store, ((int(old.position), position) for position, old in past.kept())
                )
            self._begin_state_file(state_file, store)
            cache = TrialCache(store, self._codec)
            residents = self._requeue(restored, cache)
            trials = SpilledTrials.reopened(residents, cache, self._summaries())
            sweep = Sweep(controller, store, state_file, self._codec, trials, notices)
        except BaseException:
            state_file.close()
            store.close()
            remove(store.path)
            raise
        for name in fetched:
            sweep.to_upload(name)
        catch_up(controller, past.late, past.snapshot.creation_count)
        return sweep

    def _restored_trials(self) -> list[Trial]:
        controller, past = self._controller, self._past
        entries = past.restored()
        if entries:
            restored: list[Trial] = controller._restore_trials({"trial_data": entries})
            return restored
        # Ray would do this with the first of all trials.
        first: Any = self._codec.trial_of(
            *json.loads(past.store.state_record(past.order[0].trial_id))
        )
        controller._storage._timestamp = first.storage._timestamp
        return []

    def _restore_algorithms(self) -> None:
        controller, past = self._controller, self._past
        files = past.snapshot.files
        staging = Path(controller._storage.experiment_driver_staging_path)
        controller._checkpoint_manager.sync_down_experiment_state()
        if files is not None:
            # These are as old as the snapshot; those in the storage may be older.
            staging.mkdir(parents=True, exist_ok=True)
            paths.forget_later_runs(staging, paths.run_of_store(past.store.path)[0])
            for name, content in files.items():
                (staging / name).write_bytes(content)
        if controller._search_alg.has_checkpoint(str(staging)):
            controller._search_alg.restore_from_dir(str(staging))
        if controller._callbacks.can_restore(str(staging)):
            controller._callbacks.restore_from_dir(str(staging))

    def _fetch_files(self) -> list[str]:
        """Take the files of finished trials that were not uploaded from where they are.

        A killed driver leaves them in its staging directory. What is there goes into the one of
        this run, from where Ray uploads it; on another machine, or after a clean-up of temporary
        files, these trials have their last result, and no history. The names of the directories
        that are to be uploaded are returned: this run may be killed before they are.
        """
        staged = Path(self._past.store.get_metadata("staging") or "")
        staging = Path(self._controller._storage.experiment_driver_staging_path)
        entries = [trial.state_json for trial in self._past.late]
        entries += self._past.finished_unspilled()
        of_trials = {json.loads(entry).get("relative_logdir") for entry in entries}
        fetched = []
        for directory in {*self._past.snapshot.unsent, *of_trials}:
            if not directory or not staged.is_absolute() or not (staged / directory).is_dir():
                continue
            try:
                if staged != staging:
                    shutil.copytree(staged / directory, staging / directory, dirs_exist_ok=True)
            except OSError as error:
                logger.warning("Files in %s are missing: %s", staged / directory, error)
            else:
                fetched.append(directory)
        return fetched

    def _begin_state_file(self, state_file: ExperimentStateFile, store: TrialStore) -> None:
        entries = store.state_records()
        while batch := list(islice(entries, _ENTRIES_AT_ONCE)):
            state_file.add(batch)

    def _requeue(self, restored: list[Trial], cache: TrialCache[Trial]) -> dict[int, Trial]:
        """Add the trials to the controller as Ray does; those in memory, by their new places."""
        controller, scheduler = self._controller, self._controller._scheduler_alg
        residents = {}
        waiting = iter(restored)
        # The default scheduler's method does nothing; a finished trial need not be made for it.
        indifferent = type(scheduler).on_trial_add is FIFOScheduler.on_trial_add
        for position, place in enumerate(self._past.order):
            if place.entry is not None:
                controller._requeue_restored_trials([next(waiting)], self._resume_config)
                residents[position] = controller._trials[-1]
            elif not indifferent:
                trial = cache.ghost(SpilledRow(position, place.trial_id, place.status))
                if place.status == Trial.ERROR and type(scheduler) not in BLIND_TO_LIVE_TRIALS:
                    controller._live_trials.add(trial)
                scheduler.on_trial_add(controller._wrapped(), trial)
        return residents

    def _summaries(self) -> TrialSummaryIndex:
        summaries = new_summary_index()
        positions = {place.trial_id: position for position, place in self._past.kept()}
        summaries.load(self._past.snapshot.summaries, positions)
        for trial in self._past.late:
            if trial.trial_id not in positions:
                continue  # It runs again.
            reported = reported_in_record(trial.metadata_json)
            summaries.note(positions[trial.trial_id], trial.trial_id, *reported)
        return summaries


def _preparation(resolvers: Any) -> Callable[[Trial], None]:
    """What Ray does with each trial that it resumes, finished ones included."""

    def prepare(trial: Trial) -> None:
        if not ray.util.client.ray.is_connected():
            trial.init_local_path()
        if resolvers:
            trial.resolve_config_placeholders(resolvers)
        trial.create_placement_group_factory()

    return prepare
