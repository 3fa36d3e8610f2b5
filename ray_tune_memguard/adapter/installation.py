"""Installs spilling in a run, completely or not at all, and removes it again.

A run that spills has replacements for these parts of Ray: the controller's list of trials, a few of
its methods, its syncer, the registry of trainables, and the exit hooks of tensorboardX. If one
cannot be installed, all are undone. :meth:`Installation.take_out` undoes them in the middle of a
run; Ray then continues alone with all trials, including the spilled ones.
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
from ray_tune_memguard.adapter.location import RunLocation
from ray_tune_memguard.adapter.run import releasers
from ray_tune_memguard.adapter.run.checkpoint import CheckpointWriter
from ray_tune_memguard.adapter.run.controller import override_methods, run_of
from ray_tune_memguard.adapter.run.last_checkpoint import LastCheckpoint
from ray_tune_memguard.adapter.run.tuner_copy import save_copy
from ray_tune_memguard.adapter.serialization.trial_pickle import TrialStateCodec
from ray_tune_memguard.lazy.cache import TrialCache
from ray_tune_memguard.lazy.summaries import TrialSummaryIndex
from ray_tune_memguard.lazy.trial_list import SpilledTrials
from ray_tune_memguard.notices import Notices
from ray_tune_memguard.store.files import remove
from ray_tune_memguard.store.snapshot import save_unsent
from ray_tune_memguard.store.state_file import ExperimentStateFile
from ray_tune_memguard.store.trial_store import TrialStore

if TYPE_CHECKING:
    from ray_tune_memguard.adapter.run.uploads import IncrementalSyncer
    from ray_tune_memguard.adapter.seam import Controller


def new_summary_index() -> TrialSummaryIndex:
    """An empty index of the facts about spilled trials that reports and results need."""
    return TrialSummaryIndex(
        lambda metric, result: unflattened_lookup(metric, result, default=None)
    )


@dataclass(frozen=True)
class RunFiles:
    """The files of a run: the trial store, and the experiment state file that it extends."""

    location: RunLocation
    store: TrialStore
    state_file: ExperimentStateFile

    @classmethod
    def create(cls, location: RunLocation, directory: Path) -> RunFiles:
        """Create empty files.

        Args:
            location: where the run's files go.
            directory: the directory for the trial store.

        Raises:
            OSError, sqlite3.OperationalError: a file cannot be created. None is left behind.
        """
        store = TrialStore.create(directory, paths.store_name(location.session))
        try:
            store.set_metadata(experiment=location.experiment.path, staging=str(location.staging))
            save_copy(location.experiment, store)
            state_file = ExperimentStateFile(*location.state_file_and_work_directory())
        except BaseException:
            store.close()
            remove(store.path)
            raise
        return cls(location, store, state_file)

    def discard(self) -> None:
        """Remove the store and the unpublished parts of the state file."""
        self.state_file.close()
        self.store.close()
        remove(self.store.path)


class Installation:
    """What is installed in one run. The controller holds it; it does not hold the controller.

    Attributes:
        trials: the controller's list of trials, which reads spilled ones from disk.
        replaces: the store of the previous run; this run's store has all of its rows.
        before_checkpoint: what is called before each checkpoint is written.
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
        self.before_checkpoint: Callable[[], object] = lambda: None
        self.syncer: IncrementalSyncer | None = None
        self.exit_hooks: releasers.TensorboardExitHooks | None = None
        self._forget_trainables: Callable[[], object] = lambda: None
        self._staging = files.location.listing(files.store.known_directories)
        with ExitStack() as undo:
            self._put_in_place(controller, undo)
            last = LastCheckpoint()
            self.writer = CheckpointWriter(
                self.store, self.state_file, trials, self._staging, self.syncer, last
            )
            self._upload_in_parts(files.location, last)
            # Last, so that no method of ours runs before everything is installed.
            _undone_weakly(undo, controller, override_methods(controller, self))
            self._undo: ExitStack | None = undo.pop_all()

    def _put_in_place(self, controller: Controller, undo: ExitStack) -> None:
        trials = self.trials
        controller._trials = trials
        _undone_weakly(undo, controller, lambda of: setattr(of, "_trials", list(trials)))
        if contract.UPLOADS in self.capabilities:
            from ray_tune_memguard.adapter.run.uploads import upload_incrementally

            self.syncer, restore_syncer = upload_incrementally(
                controller, self.trials, self.store.directories, self._staging
            )
            _undone_weakly(undo, controller, restore_syncer)
        if contract.TRAINABLES in self.capabilities:
            from ray_tune_memguard.adapter.run.trainables import cache_trainables

            self._forget_trainables = cache_trainables(self)
            undo.callback(self._forget_trainables)
        if contract.RELEASE_TENSORBOARD in self.capabilities:
            self.exit_hooks = releasers.tensorboard_exit_hooks()
            if self.exit_hooks is not None:
                undo.callback(self.exit_hooks.take_out)

    def _upload_in_parts(self, location: RunLocation, last: LastCheckpoint) -> None:
        """Let uploads to a remote storage not grow with the number of finished trials."""
        self._experiment = location.experiment.path
        if self.syncer is None or location.experiment.is_local:
            return
        from ray_tune_memguard.adapter.run.part_uploads import PartUploads

        self.syncer.part_uploads = PartUploads(
            location.experiment.filesystem,
            self._experiment,
            location.session,
            self.store,
            self.state_file,
            last,
            location.work_directory,
        )

    @property
    def is_in_place(self) -> bool:
        return self._undo is not None

    def mark_for_upload(self, directory: str | None) -> None:
        """Upload this finished trial's directory with the next experiment checkpoint."""
        if self.syncer is not None:
            self.syncer.mark_for_upload(directory)

    def take_out(self, controller: Controller) -> None:
        """Undo everything in the middle of a run, which then continues with Ray alone.

        Spilled trials return to the controller's list and sets, where they load when they are
        used. Ray writes their records at its next experiment checkpoint.

        Raises:
            sqlite3.Error: the store cannot be read. Everything stays installed.
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
            # Nothing writes to the store any more. Ray's next state file does not point to it.
            with suppress(sqlite3.Error, OSError):
                self.store.finalize()

    def discard(self) -> None:
        """Undo everything and remove the files of a run that has not begun."""
        undo, self._undo = self._undo, None
        if undo is not None:
            undo.close()
        self.state_file.close()
        self.store.close()
        remove(self.store.path)

    def end(self) -> None:
        """End the run: make the store readable for other processes. Its trials stay usable."""
        self._forget_trainables()
        if not self.is_in_place:
            return
        try:
            self.trials.cache.deactivate_all()
            self._save_unsent()
            self.store.finalize()
            self._complete_upload()
            # The files of this run are complete, in the experiment's storage as well.
            if self.replaces is not None and self.writer.has_written:
                remove(self.replaces)
        finally:
            self.state_file.close()

    def _save_unsent(self) -> None:
        """Save what the last upload has left, so that a restore does not upload all of it again."""
        if self.syncer is not None and self.writer.has_written:
            with suppress(sqlite3.Error):  # The list of the last checkpoint stays.
                save_unsent(self.store, self.syncer.unsent())

    def _complete_upload(self) -> None:
        """Upload the whole experiment state, if the run has ended without a last upload."""
        if self.syncer is None:
            return
        try:
            self.syncer.complete(self._experiment)
        except Exception as error:
            self.notices.warn(
                "last upload",
                f"The experiment state in {self._experiment} is complete for MemGuard, but not for "
                f"Ray alone, because its last upload has failed ({error}).",
            )


def install(
    controller: Controller, directory: Path, capabilities: Capabilities, notices: Notices
) -> Installation:
    """Install everything in a run, with all trials that Ray has in memory.

    Args:
        controller: the run's controller.
        directory: the directory for the trial store.
        capabilities: what this Ray allows.
        notices: the log of the run's warnings.

    Raises:
        OSError, sqlite3.OperationalError: no store can be created there. Nothing was changed.
    """
    process = getattr(controller._storage.syncer, "_sync_process", None)
    if process is not None and process.is_running:
        # The store could not be created at once, and Ray's upload would overwrite our files.
        raise OSError("Ray is uploading the experiment at the moment")
    location = RunLocation.of(controller)
    location = location.after_earlier_runs(location.experiment.newest_state_file())
    controller._session_str = location.session
    files = RunFiles.create(location, directory)
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
    """Register ``act`` to undo something on the controller, if the controller still exists."""
    reference = weakref.ref(controller)

    def act_on_it() -> None:
        there = reference()
        if there is not None:
            act(there)

    undo.callback(act_on_it)


def _add_to_its_sets(controller: Controller, trial: Trial) -> None:
    """Add a finished trial to the controller's sets that Ray keeps it in."""
    if trial.status == Trial.ERROR:
        controller._failed_trials.add(trial)
        controller._live_trials.add(trial)
    else:
        controller._stopped_trials.add(trial)


def installation_of(controller: Controller) -> Installation | None:
    """The installation in the controller's run; None if there is none."""
    found = run_of(controller)
    return found if isinstance(found, Installation) else None
