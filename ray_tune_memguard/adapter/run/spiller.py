"""Spills the finished trials of one run.

For each finished trial the spiller serializes it, commits its record to the store, removes it from
every retention site, and makes it a lazy trial in the controller's list, in this order.
"""

from __future__ import annotations

import sqlite3
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ray.tune.experiment import Trial

from ray_tune_memguard.adapter import boundary, contract
from ray_tune_memguard.adapter.installation import Installation
from ray_tune_memguard.adapter.run import releasers
from ray_tune_memguard.adapter.run.self_check import difference
from ray_tune_memguard.adapter.serialization.trial_pickle import is_ready_to_spill
from ray_tune_memguard.notices import Notices
from ray_tune_memguard.private_names import PrivateName
from ray_tune_memguard.store.trial_store import TrialRow

if TYPE_CHECKING:
    from ray_tune_memguard.adapter.seam import Controller


@dataclass
class Spilled:
    """The outcome of one :meth:`Spiller.spill`."""

    count: int = 0
    #: Trials that stay in memory for the rest of the run, with the reason.
    refused: list[tuple[Trial, str]] = field(default_factory=list)


class Spiller:
    """Spills finished trials of a run to its store. No other object writes rows to the store.

    It refers to the controller weakly: the controller refers to the callback that has the spiller.
    """

    def __init__(
        self, controller: Controller, installation: Installation, notices: Notices
    ) -> None:
        self._run = weakref.ref(controller)
        self._installation = installation
        self._trials = installation.trials
        self._notices = installation.notices = notices
        # Identities of trials that stay in memory, so that no other object gets the same one.
        self._refused: set[int] = set()
        self._sites: list[tuple[PrivateName, object]] | None = None
        #: Whether the run's first checkpoint was compared with Ray's; the first spill does it.
        self.is_checked = False

    @property
    def _controller(self) -> Controller:
        controller = self._run()
        assert controller is not None, "the run is over"
        return controller

    @property
    def is_in_place(self) -> bool:
        """Whether trials are spilled; False once the run continues with Ray alone."""
        return self._installation.is_in_place

    @property
    def store_path(self) -> Path:
        return self._installation.store.path

    @property
    def has_written(self) -> bool:
        """Whether a checkpoint was written; until then no trial is released."""
        return self._installation.writer.has_written

    def before_checkpoints(self, act: Callable[[], None]) -> None:
        """Call this method before each checkpoint is written; its object is not kept alive."""
        method = weakref.WeakMethod(act)

        def call() -> None:
            found = method()
            if found is not None:
                found()

        self._installation.before_checkpoint = call

    def finished(self) -> list[Trial]:
        """The finished trials that are not spilled yet."""
        controller = self._controller
        return [*controller._stopped_trials, *controller._failed_trials]

    def has_unfinished(self) -> bool:
        """Whether any trial in memory is unfinished."""
        return self._trials.has_unfinished()

    def spill(self, finished: Sequence[Trial]) -> Spilled:
        """Write the trials that Ray no longer uses to the store, then release them.

        Args:
            finished: candidates; those that Ray still uses are skipped.

        Returns:
            How many trials were spilled, and which stay in memory, and why.

        Raises:
            OSError, sqlite3.OperationalError: the disk cannot be written. No trial was released.
        """
        outcome = Spilled()
        done = [trial for trial in finished if self._is_releasable(trial)]
        if not done or not self._may_release():
            return outcome
        store, state_file = self._installation.store, self._installation.state_file
        # Before the transaction, because pickling may run code that reads the store.
        written = [pair for trial in done if (pair := self._serialize(trial, outcome))]
        mark = state_file.mark()
        try:
            with store.transaction():
                kept = [pair for pair in written if self._put(*pair, outcome)]
                state_file.add(row.state_record for _, row in kept)
        except BaseException:
            state_file.rewind(mark)
            raise
        self._release([trial for trial, _ in kept])
        outcome.count = len(kept)
        return outcome

    def _is_releasable(self, trial: Trial) -> bool:
        """Whether the controller will not use the trial again.

        The sets of staged and of resetting trials are not checked: Ray leaves a trial there if its
        actor refused to be reused, and never uses it again without an actor.
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

    def _may_release(self) -> bool:
        """Whether the files are complete enough for trials to be released.

        They are once a checkpoint was written, which this method does if none was. The first
        checkpoint is compared with what Ray would write.

        Raises:
            OSError: the checkpoint cannot be written.
        """
        if not self.has_written:
            self._controller.save_to_dir()
            if not self.is_in_place:
                return False
            if not self.has_written:
                raise OSError("the experiment state cannot be written")
        if not self.is_checked:
            found = difference(self._controller, self._installation)
            self.is_checked = True
            if found is not None:
                self._notices.warn(
                    "self-check",
                    f"Spilling is off in this run: {found}, so a restore might differ from Ray's "
                    "own. Finished trials stay in memory, as without MemGuard.",
                )
                self._installation.take_out(self._controller)
                return False
        return True

    def _serialize(self, trial: Trial, outcome: Spilled) -> tuple[Trial, TrialRow] | None:
        try:
            creation_index = self._trials.creation_index(trial)
            return trial, self._installation.codec.row(
                trial, self._unchanged(trial), creation_index
            )
        except Exception as error:
            boundary.raise_if_of_signal(error)
            self._refuse(trial, f"its state cannot be serialized ({error!r})", outcome)
            return None

    def _unchanged(self, trial: Trial) -> tuple[str, str] | None:
        """The trial's last record, if Ray would not write a new one; otherwise None.

        Ray writes a new record only of trials that it has marked. It does not mark a paused trial
        that ends with the experiment, so a restore finds that trial paused. Nor does it mark one
        whose process has died, which would be running for ever; this one gets its record here.
        """
        controller = self._controller
        known: tuple[str, str] | None = controller._trial_metadata.get(trial.trial_id)
        is_marked = trial in controller._trials_to_cache or trial.status == Trial.ERROR
        return None if is_marked else known

    def _refuse(self, trial: Trial, reason: str, outcome: Spilled) -> None:
        self._refused.add(id(trial))
        outcome.refused.append((trial, reason))

    def _put(self, trial: Trial, row: TrialRow, outcome: Spilled) -> bool:
        try:
            self._installation.store.put(self._trials.position(trial), row)
        except sqlite3.IntegrityError as error:
            # Ids of eight random digits can occur twice.
            reason = f"the store has another trial with its id or position ({error})"
            self._refuse(trial, reason, outcome)
            return False
        except (sqlite3.DataError, UnicodeError, OverflowError) as error:
            # A directory whose name is not text, or a state of more than a GB.
            self._refuse(trial, f"its row cannot be written ({error!r})", outcome)
            return False
        return True

    def _release(self, spilled: list[Trial]) -> None:
        """Remove spilled trials from all retention sites; if one fails, the others still follow."""
        for trial in spilled:
            self._installation.mark_for_upload(trial.relative_logdir)
            self._summarize(trial)
        for site, owner in self._all_sites():
            try:
                releasers.release(site, owner, spilled)
            except Exception as error:
                boundary.raise_if_of_signal(error)
                self._notices.warn(str(site), f"{site} keeps finished trials: {error!r}")
        for trial in spilled:
            try:
                self._trials.release(trial)
            except Exception as error:
                boundary.raise_if_of_signal(error)
                self._notices.warn("trials", f"A finished trial stays in memory: {error!r}")

    def _summarize(self, trial: Trial) -> None:
        """Note the facts that reports and results need, so that they need not read all trials."""
        summaries = self._trials.summaries
        try:
            summaries.note(
                self._trials.position(trial),
                trial.trial_id,
                trial.last_result,
                trial.metric_analysis,
            )
        except Exception as error:
            boundary.raise_if_of_signal(error)
            summaries.best_trials.forget_all()
            self._notices.warn("summaries", f"Progress reports may omit a trial: {error!r}")

    def _all_sites(self) -> list[tuple[PrivateName, object]]:
        # Not before the first spill, because Ray adds its own callbacks to the user's until then.
        if self._sites is None:
            self._sites = releasers.sites_of(self._controller, self._installation.capabilities)
        return self._sites

    def release_consumed_results(self, trial: Trial) -> None:
        """Release the results of a running trial that Ray has read."""
        if contract.RELEASE_FUTURES in self._installation.capabilities:
            releasers.release_consumed_futures(self._controller, trial)

    def release_shared(self) -> None:
        """Release what accumulates without being keyed by trial."""
        capabilities = self._installation.capabilities
        if contract.RELEASE_LOG_KEYS in capabilities:
            releasers.release_log_once_keys()
        if contract.RELEASE_ORPHANED_TASKS in capabilities:
            releasers.release_orphaned_tasks(self._controller)
        if self._installation.exit_hooks is not None:
            self._installation.exit_hooks.release_closed()

    def close(self) -> None:
        """End the run: make the store readable for other processes. Its trials stay usable."""
        try:
            if self.is_in_place:
                self.release_shared()
        finally:
            self._installation.end()
