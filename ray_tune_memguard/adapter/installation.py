"""What is put in place in a run: as a whole or not at all, and with a way to take it out.

In a run that spills there are, instead of Ray's own: the controller's list of trials, a few of its
methods, its syncer, the registry of trainables, and the exit hooks of tensorboardX. If one cannot
be put in place, all are undone. :meth:`Installation.take_out` undoes them in the middle of a run,
after which Ray goes on alone with all trials, spilled ones included.
"""

from __future__ import annotations

import json
import sqlite3
import weakref
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ray.tune.experiment import Trial
from ray.tune.utils import unflattened_lookup

from ray_tune_memguard.adapter import contract, paths
from ray_tune_memguard.adapter.contract import Capabilities
from ray_tune_memguard.adapter.run import releasers
from ray_tune_memguard.adapter.run.checkpoint import CheckpointWriter
from ray_tune_memguard.adapter.run.controller import override_methods, run_of
from ray_tune_memguard.adapter.run.tuner_copy import save_copy
from ray_tune_memguard.adapter.serialization.trial_pickle import TrialStateCodec
from ray_tune_memguard.lazy.cache import TrialCache
from ray_tune_memguard.lazy.summaries import TrialSummaryIndex
from ray_tune_memguard.lazy.trial_list import SpilledTrials
from ray_tune_memguard.notices import Notices
from ray_tune_memguard.store.files import remove
from ray_tune_memguard.store.state_file import ExperimentStateFile
from ray_tune_memguard.store.trial_store import TrialStore

if TYPE_CHECKING:
    from ray_tune_memguard.adapter.run.uploads import IncrementalSyncer
    from ray_tune_memguard.adapter.seam import Controller


def new_summary_index() -> TrialSummaryIndex:
    """An empty index of what reports and results need to know of spilled trials."""
    return TrialSummaryIndex(
        lambda metric, result: unflattened_lookup(metric, result, default=None)
    )


@dataclass(frozen=True)
class RunFiles:
    """The files of a run: the trial store, and the experiment state file that it extends."""

    store: TrialStore
    state_file: ExperimentStateFile

    @classmethod
    def create(cls, controller: Controller, directory: Path) -> RunFiles:
        """New, empty files.

        Args:
            controller: of the run.
            directory: where the trial store is created.

        Raises:
            OSError, sqlite3.OperationalError: they cannot be created. None of them is there.
        """
        paths.name_after_earlier_runs(controller)
        store = TrialStore.create(directory, paths.store_name(paths.session_name(controller)))
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
        return cls(store, state_file)

    def discard(self) -> None:
        """Remove the store, and what of the state file is not published."""
        self.state_file.close()
        self.store.close()
        remove(self.store.path)


class Installation:
    """What is in place in one run. It does not hold the controller, which holds it.

    Attributes:
        trials: the controller's list of trials, which spills.
        replaces: the store of the run before this one, all of which is in this run's store.
    """

    def __init__(
        self,
        controller: Controller,
        files: RunFiles,
        codec: TrialStateCodec,
        trials: SpilledTrials[Trial],
        capabilities: Capabilities,
        notices: Notices,
    ) -> None:
        self.store = files.store
        self.state_file = files.state_file
        self.codec = codec
        self.trials = trials
        self.capabilities = capabilities
        self.notices = notices
        self.replaces: Path | None = None
        self.syncer: IncrementalSyncer | None = None
        self.exit_hooks: releasers.TensorboardExitHooks | None = None
        self._forget_trainables: Callable[[], object] = lambda: None
        self._staging = paths.StagingListing(controller, files.store.known_directories)
        with ExitStack() as undo:
            self._put_in_place(controller, undo)
            self.writer = CheckpointWriter(
                self.store, self.state_file, trials, self._staging, self.syncer
            )
            # Last, so that no method of ours runs before everything is there.
            _undone_weakly(undo, controller, override_methods(controller, self))
            self._undo: ExitStack | None = undo.pop_all()

    def _put_in_place(self, controller: Controller, undo: ExitStack) -> None:
        trials = self.trials
        controller._trials = trials
        _undone_weakly(undo, controller, lambda of: setattr(of, "_trials", list(trials)))
        if contract.UPLOADS in self.capabilities:
            from ray_tune_memguard.adapter.run.uploads import upload_incrementally

            self.syncer, own_syncer_back = upload_incrementally(
                controller, self.trials, self.store.directories, self._staging
            )
            _undone_weakly(undo, controller, own_syncer_back)
        if contract.TRAINABLES in self.capabilities:
            from ray_tune_memguard.adapter.run.trainables import cache_trainables

            self._forget_trainables = cache_trainables(self)
            undo.callback(self._forget_trainables)
        if contract.RELEASE_TENSORBOARD in self.capabilities:
            self.exit_hooks = releasers.tensorboard_exit_hooks()
            if self.exit_hooks is not None:
                undo.callback(self.exit_hooks.take_out)

    @property
    def is_in_place(self) -> bool:
        return self._undo is not None

    def to_upload(self, directory: str | None) -> None:
        """The files of this finished trial may not be in the experiment's storage yet."""
        if self.syncer is not None:
            self.syncer.settled(directory)

    def take_out(self, controller: Controller) -> None:
        """Undo everything in the middle of a run, so that Ray goes on alone.

        Spilled trials are back in the controller's list and sets, where they load when they are
        used; their records are among those that Ray writes at the next checkpoint.

        Raises:
            sqlite3.Error: the store cannot be read. Then everything stays in place.
        """
        if self._undo is None:
            return
        residents = {id(trial) for trial in self.trials.resident()}
        trials = list(self.trials)
        spilled = [trial for trial in trials if id(trial) not in residents]
        records = {
            trial.trial_id: tuple(json.loads(self.store.state_record(trial.trial_id)))
            for trial in spilled
        }
        undo, self._undo = self._undo, None
        try:
            undo.close()
        finally:
            controller._trials = trials
            controller._trial_metadata = {**records, **controller._trial_metadata}
            for trial in spilled:
                _add_to_its_sets(controller, trial)
            self.state_file.close()
            # It is not written to any more. Ray's next state file does not point to it.
            with suppress(sqlite3.Error, OSError):
                self.store.finalize()

    def discard(self) -> None:
        """Undo everything, and remove what was written: the run has not begun."""
        undo, self._undo = self._undo, None
        if undo is not None:
            undo.close()
        self.state_file.close()
        self.store.close()
        remove(self.store.path)

    def end(self) -> None:
        """The run is over: leave the store readable for everybody. Its trials live on."""
        self._forget_trainables()
        if not self.is_in_place:
            return
        try:
            self.trials.cache.deactivate_all()
            self.store.finalize()
            # The files of this run are complete, in the experiment's storage as well.
            if self.replaces is not None and self.writer.has_written:
                remove(self.replaces)
        finally:
            self.state_file.close()


def install(
    controller: Controller, directory: Path, capabilities: Capabilities, notices: Notices
) -> Installation:
    """Put everything in place in a run, with all the trials that Ray has in memory.

    Args:
        controller: of the run.
        directory: where the trial store is created.
        capabilities: what this Ray allows.
        notices: where warnings go.

    Raises:
        OSError, sqlite3.OperationalError: no store can be created there. Nothing was changed.
    """
    process = getattr(controller._storage.syncer, "_sync_process", None)
    if process is not None and process.is_running:
        # Where nothing could be put in place at once. Ray's files would be written over ours.
        raise OSError("Ray is just uploading the experiment")
    files = RunFiles.create(controller, directory)
    try:
        codec = TrialStateCodec(controller._storage)
        cache = TrialCache(files.store, codec)
        trials = SpilledTrials(controller._trials, cache, new_summary_index())
        return Installation(controller, files, codec, trials, capabilities, notices)
    except BaseException:
        files.discard()
        raise


def _undone_weakly(
    undo: ExitStack, controller: Controller, act: Callable[[Controller], object]
) -> None:
    """Let ``act`` undo something on the controller, if it is still there."""
    reference = weakref.ref(controller)

    def act_on_it() -> None:
        there = reference()
        if there is not None:
            act(there)

    undo.callback(act_on_it)


def _add_to_its_sets(controller: Controller, trial: Trial) -> None:
    """Put a finished trial where Ray keeps it."""
    if trial.status == Trial.ERROR:
        controller._failed_trials.add(trial)
        controller._live_trials.add(trial)
    else:
        controller._stopped_trials.add(trial)


def installation_of(controller: Controller) -> Installation | None:
    """What is in place in the controller's run."""
    found = run_of(controller)
    return found if isinstance(found, Installation) else None
