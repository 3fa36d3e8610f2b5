"""One adopted sweep: which of its trials are settled, and how one is spilled."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler
from ray.tune.utils import unflattened_lookup

from ray_tune_memguard.adapter import paths
from ray_tune_memguard.adapter.run import releasers as retainers
from ray_tune_memguard.adapter.run.controller import Adoption, adopt, adoption_of
from ray_tune_memguard.adapter.run.trainables import cache_trainables
from ray_tune_memguard.adapter.run.tuner_copy import save_copy
from ray_tune_memguard.adapter.run.uploads import is_uploading, upload_incrementally
from ray_tune_memguard.adapter.serialization.trial_pickle import TrialStateCodec, is_ready_to_spill
from ray_tune_memguard.lazy.cache import TrialCache
from ray_tune_memguard.lazy.summaries import TrialSummaryIndex
from ray_tune_memguard.lazy.trial_list import SpilledTrials
from ray_tune_memguard.notices import Notices
from ray_tune_memguard.store.files import remove
from ray_tune_memguard.store.snapshot import Snapshot
from ray_tune_memguard.store.state_file import ExperimentStateFile
from ray_tune_memguard.store.trial_store import TrialRow, TrialStore

#: These schedulers never look at the set that errored trials stay in.
BLIND_TO_LIVE_TRIALS = (FIFOScheduler, AsyncHyperBandScheduler)


def make_files(controller: Any, directory: Path) -> tuple[TrialStore, ExperimentStateFile]:
    """New, empty files for a run of a sweep.

    Raises:
        OSError, sqlite3.OperationalError: they cannot be made. None of them is there.
    """
    paths.name_after_earlier_runs(controller)
    session = paths.session_name(controller)
    store = TrialStore.create(directory, paths.store_name(session))
    try:
        storage = controller._storage
        store.set_metadata(
            experiment=str(storage.experiment_fs_path),
            staging=str(storage.experiment_driver_staging_path),
        )
        save_copy(storage, store)
        state_file = ExperimentStateFile(*paths.state_file_and_work_directory(controller))
    except BaseException:
        store.close()
        remove(store.path)
        raise
    return store, state_file


def new_summary_index() -> TrialSummaryIndex:
    return TrialSummaryIndex(
        lambda metric, result: unflattened_lookup(metric, result, default=None)
    )


@dataclass
class Spilled:
    """What one :meth:`Sweep.spill_settled` did."""

    count: int = 0
    #: Trials whose state could not be written down, with the reason.
    refused: list[tuple[Any, Exception]] = field(default_factory=list)


class Sweep:
    """Spills the settled trials of ``controller`` to ``store``, of which it is the only writer.

    ``trials``: the controller's, as a list that spills; it takes the place of Ray's.
    """

    def __init__(
        self,
        controller: Any,
        store: TrialStore,
        state_file: ExperimentStateFile,
        codec: TrialStateCodec,
        trials: SpilledTrials[Trial],
        notices: Notices,
    ) -> None:
        self._controller = controller
        self._store = store
        self._state_file = state_file
        self._codec = codec
        self._trials = trials
        self._notices = notices
        # Of objects that stay in memory, so their identities stay theirs.
        self._refused: set[int] = set()
        self._exit_hooks = retainers.tensorboard_exit_hooks()
        self._retainers: list[tuple[retainers.Retainer, Any]] | None = None
        #: Whether the store tells the whole sweep. Until then, no trial is let go of.
        self.has_snapshot = False
        #: The store of the run before this one, all of which is in this one.
        self.replaces: Path | None = None
        self._staging = paths.StagingListing(controller, store.known_directories)
        self._adoption = Adoption(
            trials, codec, state_file, self._save_snapshot, store.path, notices
        )
        adopt(controller, self._adoption)
        self._syncer = upload_incrementally(controller, trials, store.directories, self._staging)
        self._forget_trainables = cache_trainables(self)

    @classmethod
    def begin(cls, controller: Any, store_directory: Path, notices: Notices) -> Sweep:
        """Adopt a sweep with all the trials that Ray has in memory.

        Raises:
            OSError, sqlite3.OperationalError: no store can be made there. Nothing was changed.
        """
        if is_uploading(controller):
            # When this sweep could not be adopted at once. It would be written over ours.
            raise OSError("Ray is just uploading the experiment")
        store, state_file = make_files(controller, store_directory)
        codec = TrialStateCodec(controller._storage)
        trials = SpilledTrials(controller._trials, TrialCache(store, codec), new_summary_index())
        return cls(controller, store, state_file, codec, trials, notices)

    @staticmethod
    def of(controller: Any) -> Sweep | None:
        """The sweep that a resumed controller was already adopted for."""
        adoption = adoption_of(controller)
        return None if adoption is None else adoption.resumed_as

    def offer(self) -> None:
        """Let :meth:`of` find this sweep."""
        self._adoption.resumed_as = self

    def report_to(self, notices: Notices) -> None:
        """Say what is to be said as one with a callback's own notices."""
        self._notices = self._adoption.notices = notices

    @property
    def store_path(self) -> Path:
        return self._store.path

    def finished(self) -> list[Any]:
        """The finished trials that were not spilled."""
        controller = self._controller
        return [*controller._stopped_trials, *controller._failed_trials]

    def spill_settled(self, finished: list[Any]) -> Spilled:
        """Write down those that are settled, then let go of them.

        Raises:
            OSError, sqlite3.OperationalError: the disk did not take them. None was let go of.
        """
        outcome = Spilled()
        settled = [trial for trial in finished if self._is_settled(trial)]
        if not settled:
            return outcome
        self._ensure_snapshot()
        # Made before the transaction: pickling may run code that reads the store.
        written = [down for trial in settled if (down := self._serialize(trial, outcome))]
        mark = self._state_file.mark()
        try:
            with self._store.transaction():
                kept = [down for down in written if self._put(*down, outcome)]
                self._state_file.add(row.state_record for _, row in kept)
        except BaseException:
            self._state_file.rewind(mark)
            raise
        self._release([trial for trial, _ in kept])
        outcome.count = len(kept)
        return outcome

    def has_unfinished(self) -> bool:
        """Whether there are trials in memory that are not to be spilled yet."""
        return self._trials.has_unfinished()

    def _ensure_snapshot(self) -> None:
        """A store without one is not whole; one that was made late has missed Ray's checkpoint."""
        if not self.has_snapshot:
            self._controller.save_to_dir()
        if not self.has_snapshot:
            raise OSError("the experiment state does not get into it")

    def _serialize(self, trial: Any, outcome: Spilled) -> tuple[Any, TrialRow] | None:
        try:
            return trial, self._codec.row(
                trial, self._unchanged(trial), self._trials.creation_index(trial)
            )
        except Exception as error:
            self._refuse(trial, error, outcome)
            return None

    def _unchanged(self, trial: Any) -> tuple[str, str] | None:
        """What Ray has written of the trial, if it would not write it anew.

        That it does when the trial was marked; one that was paused and is then ended by the end of
        the experiment is not, and stays paused for a restore.
        """
        controller = self._controller
        known: tuple[str, str] | None = controller._trial_metadata.get(trial.trial_id)
        return None if trial in controller._trials_to_cache else known

    def _refuse(self, trial: Any, error: Exception, outcome: Spilled) -> None:
        self._refused.add(id(trial))
        outcome.refused.append((trial, error))

    def release_consumed_results(self, trial: Any) -> None:
        """Let go of results of a running trial that Ray has read."""
        retainers.release_consumed_futures(self._controller, trial)

    def to_upload(self, directory: str) -> None:
        """The files of this finished trial may not be in the experiment's storage yet."""
        self._syncer.settled(directory)

    def release_shared(self) -> None:
        """Let go of what piles up without being keyed by trial."""
        retainers.release_log_once_keys()
        retainers.release_orphaned_tasks(self._controller)
        if self._exit_hooks is not None:
            self._exit_hooks.release_closed()

    def _save_snapshot(self, state: str) -> None:
        """Keep what Ray just wrote of the sweep, ``state``, in the store as well."""
        controller = self._controller
        places = (self._trials.position_of(trial_id) for trial_id in controller._trial_metadata)
        Snapshot(
            state=state,
            # A trial that was taken out again has no place any more.
            positions=[-1 if place is None else place for place in places],
            creation_count=self._trials.creation_count,
            summaries=self._trials.summaries.dump(),
            files=self._staging.session_files(),
            unsent=self._syncer.unsent(),
        ).save(self._store)
        self.has_snapshot = True

    def close(self) -> None:
        """The sweep is over: leave the store readable for everybody. Its trials live on."""
        self._forget_trainables()
        try:
            self.release_shared()
            self._trials.cache.deactivate_all()
            self._store.finalize()
            # The files of this run are complete, in the experiment's storage as well.
            if self.replaces is not None and self.has_snapshot:
                remove(self.replaces)
        finally:
            self._state_file.close()

    def _is_settled(self, trial: Any) -> bool:
        """Whether nothing in the controller will touch the trial again.

        Being staged or resetting does not count: Ray leaves a trial whose actor refused to be
        reused in these sets, where without an actor nothing will happen to it.
        """
        controller = self._controller
        return (
            id(trial) not in self._refused
            and trial not in controller._trial_to_actor
            and trial not in controller._stop_queue
            and not trial.is_saving
            and not trial.is_restoring
            and is_ready_to_spill(trial)
        )

    def _put(self, trial: Any, row: TrialRow, outcome: Spilled) -> bool:
        try:
            self._store.put(self._trials.position(trial), row)
        except sqlite3.IntegrityError as error:  # Another trial has the same random id.
            self._refuse(trial, error, outcome)
            return False
        return True

    def _release(self, spilled: list[Any]) -> None:
        """Take spilled trials out of all retainers; a stubborn one must not stop the others."""
        for trial in spilled:
            self._syncer.settled(trial.relative_logdir)
            self._note(trial)
        for retainer, owner in self._all_retainers():
            try:
                retainer.release(owner, spilled)
            except Exception as error:
                self._notices.warn(
                    retainer.name, f"{retainer.name} keeps finished trials in memory: {error!r}"
                )
        for trial in spilled:
            try:
                self._trials.release(trial)
            except Exception as error:
                self._notices.warn("trials", f"A finished trial stays in memory: {error!r}")

    def _note(self, trial: Any) -> None:
        """Remember what reports and results need to know without reading all trials."""
        summaries = self._trials.summaries
        try:
            summaries.note(
                self._trials.position(trial),
                trial.trial_id,
                trial.last_result,
                trial.metric_analysis,
            )
        except Exception as error:
            summaries.best_trials.forget_all()
            self._notices.warn("summaries", f"Progress reports may leave a trial out: {error!r}")

    def _all_retainers(self) -> list[tuple[retainers.Retainer, Any]]:
        # Made at the first spill: until then Ray adds its own callbacks to those of the user.
        if self._retainers is None:
            controller = self._controller
            of_controller = list(retainers.CONTROLLER)
            if type(controller._scheduler_alg) in BLIND_TO_LIVE_TRIALS:
                of_controller.append(retainers.LIVE_TRIALS)
            self._retainers = [
                *((retainer, controller) for retainer in of_controller),
                *retainers.of_callbacks(controller._callbacks._callbacks),
            ]
        return self._retainers
