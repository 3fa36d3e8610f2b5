"""One adopted sweep: which of its trials are settled, and how one is spilled."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler
from ray.tune.utils import unflattened_lookup

from ray_tune_memguard.notices import Notices
from ray_tune_memguard.spill.ghost import Residency
from ray_tune_memguard.spill.ledger import ProgressLedger
from ray_tune_memguard.spill.state_file import ExperimentStateFile
from ray_tune_memguard.spill.store import TrialStore
from ray_tune_memguard.spill.trials import SpilledTrials
from ray_tune_memguard.tune_internals import patches, paths, retainers
from ray_tune_memguard.tune_internals.adoption import Adoption, adopt
from ray_tune_memguard.tune_internals.trial_state import TrialStateCodec, is_ready_to_spill
from ray_tune_memguard.tune_internals.uploads import upload_incrementally

# These schedulers never look at the set that errored trials stay in.
_BLIND_TO_LIVE_TRIALS = (FIFOScheduler, AsyncHyperBandScheduler)


@dataclass
class Spilled:
    """What one :meth:`Sweep.spill_settled` did."""

    count: int = 0
    #: Trials whose state could not be written down, with the reason.
    refused: list[tuple[Any, Exception]] = field(default_factory=list)


@dataclass
class _WrittenDown:
    """A trial in both its forms: for the store, and for the state file."""

    trial: Any
    raw: bytes
    entry: str


class Sweep:
    """Spills the settled trials of ``controller`` to ``store_directory``.

    Raises, on construction:
        OSError, sqlite3.OperationalError: no store can be made there. Nothing was changed.
    """

    def __init__(self, controller: Any, store_directory: Path, notices: Notices) -> None:
        self._controller = controller
        self._notices = notices
        self._store = TrialStore.create(store_directory, f"trials-{paths.session_name(controller)}")
        try:
            self._state_file = ExperimentStateFile(
                Path(controller.experiment_state_path), paths.work_directory(controller)
            )
        except OSError:
            self._store.close()
            self._store.path.unlink(missing_ok=True)
            raise
        self._codec = TrialStateCodec(controller._storage)
        self._trials = SpilledTrials(
            controller._trials,
            Residency(self._store, self._codec),
            ProgressLedger(lambda metric, result: unflattened_lookup(metric, result, default=None)),
        )
        # Of objects that stay in memory, so their identities stay theirs.
        self._refused: set[int] = set()
        self._exit_hooks = retainers.tensorboard_exit_hooks()
        self._retainers: list[tuple[retainers.Retainer, Any]] | None = None
        patches.install()
        adopt(controller, Adoption(self._trials, self._codec, self._state_file, notices))
        self._syncer = upload_incrementally(controller, self._trials)

    @property
    def store_path(self) -> Path:
        return self._store.path

    def spill_settled(self) -> Spilled:
        """Write all settled trials down, then let go of them.

        Raises:
            OSError, sqlite3.OperationalError: the disk did not take them. None was let go of.
        """
        outcome = Spilled()
        settled = [trial for trial in self._finished() if self._is_settled(trial)]
        if not settled:
            return outcome
        # Made before the transaction: pickling may run code that reads the store.
        written = [down for trial in settled if (down := self._written_down(trial, outcome))]
        mark = self._state_file.mark()
        try:
            with self._store.transaction():
                kept = [down for down in written if self._put(down, outcome)]
                self._state_file.add(down.entry for down in kept)
        except BaseException:
            self._state_file.rewind(mark)
            raise
        for down in kept:
            self._release(down.trial)
        outcome.count = len(kept)
        return outcome

    def _written_down(self, trial: Any, outcome: Spilled) -> _WrittenDown | None:
        try:
            return _WrittenDown(trial, self._codec.dump(trial), self._entry(trial))
        except Exception as error:
            self._refuse(trial, error, outcome)
            return None

    def _entry(self, trial: Any) -> str:
        """What Ray would write of the trial from now on.

        Ray writes a trial anew only when it was marked; one that was paused and is then ended by
        the end of the experiment is not, and stays paused for a restore.
        """
        controller = self._controller
        known = controller._trial_metadata.get(trial.trial_id)
        if known is not None and trial not in controller._trials_to_cache:
            return json.dumps(known)
        return self._codec.state_entry(trial)

    def _refuse(self, trial: Any, error: Exception, outcome: Spilled) -> None:
        self._refused.add(id(trial))
        outcome.refused.append((trial, error))

    def release_consumed_results(self, trial: Any) -> None:
        """Let go of results of a running trial that Ray has read."""
        retainers.release_consumed_futures(self._controller, trial)

    def release_shared(self) -> None:
        """Let go of what piles up without being keyed by trial."""
        retainers.release_log_once_keys()
        retainers.release_orphaned_tasks(self._controller)
        if self._exit_hooks is not None:
            self._exit_hooks.release_closed()

    def close(self) -> None:
        """The sweep is over: leave the store readable for everybody. Its trials live on."""
        try:
            self.release_shared()
            self._trials.residency.settle()
            self._store.settle()
        finally:
            self._state_file.close()

    def _finished(self) -> list[Any]:
        # Spilled trials have left both sets, so they hold only what is still to be done.
        controller = self._controller
        return [*controller._stopped_trials, *controller._failed_trials]

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

    def _put(self, down: _WrittenDown, outcome: Spilled) -> bool:
        trial = down.trial
        try:
            self._store.put(
                self._trials.seq(trial),
                trial.trial_id,
                trial.status,
                self._codec.has_error(trial),
                down.raw,
                trial.relative_logdir,
            )
        except sqlite3.IntegrityError as error:  # Another trial has the same random id.
            self._refuse(trial, error, outcome)
            return False
        return True

    def _release(self, trial: Any) -> None:
        """Take a spilled trial out of all retainers; a stubborn one must not stop the others."""
        self._syncer.settled(trial.relative_logdir)
        try:
            self._trials.ledger.note(self._trials.seq(trial), trial)
        except Exception as error:
            self._notices.warn("ledger", f"Progress reports may leave a trial out: {error!r}")
        for retainer, owner in self._all_retainers():
            try:
                retainer.release(owner, trial)
            except Exception as error:
                self._notices.warn(
                    retainer.name, f"{retainer.name} keeps finished trials in memory: {error!r}"
                )
        self._trials.release(trial)

    def _all_retainers(self) -> list[tuple[retainers.Retainer, Any]]:
        # Made at the first spill: until then Ray adds its own callbacks to those of the user.
        if self._retainers is None:
            controller = self._controller
            of_controller = list(retainers.CONTROLLER)
            if type(controller._scheduler_alg) in _BLIND_TO_LIVE_TRIALS:
                of_controller.append(retainers.LIVE_TRIALS)
            self._retainers = [
                *((retainer, controller) for retainer in of_controller),
                *retainers.of_callbacks(controller._callbacks._callbacks),
            ]
        return self._retainers
