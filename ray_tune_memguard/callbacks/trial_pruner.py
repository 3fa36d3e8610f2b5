"""Keeps the driver's memory flat: spills finished trials to disk and frees their memory."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ray_tune_memguard import options as opt
from ray_tune_memguard.adapter import boundary
from ray_tune_memguard.adapter.claims import SPILLING
from ray_tune_memguard.adapter.handle import disk_errors
from ray_tune_memguard.callbacks.base import GuardCallback, guarded
from ray_tune_memguard.system import allocator

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

    from ray_tune_memguard.adapter.run.spiller import Spiller

#: A trim takes milliseconds, and a trial leaves some tens of KB of slack.
TRIM_EVERY_TRIALS = 50
#: Less slack is not trimmed: the allocator would soon need it again.
TRIM_SLACK_MIB = 4.0
# Results also lead to a trim, because a long trial may report often before any trial finishes.
_RESULTS_PER_TRIAL_OF_TRIM = 2
#: Trials that finish sooner than this after a spill are spilled together, which takes half the
#: time. After a kill in the meantime they run again.
SPILL_EVERY_S = 0.08
_FIRST_RETRY_S = 1.0
_MAX_RETRY_S = 30.0


@dataclass
class _PrunerState:
    """The state of one run."""

    spiller: Spiller | None = None
    #: Trials that had finished by the end of the last step, if it did not spill them.
    waiting: list[Trial] = field(default_factory=list)
    since_trim: int = 0
    results_since_trim: int = 0
    #: The earliest times, by ``time.monotonic()``, of the next spill and of the next retry.
    spill_at: float = 0.0
    retry_at: float = 0.0
    retry_after: float = field(default_factory=lambda: _FIRST_RETRY_S)


class TrialPruner(GuardCallback):
    """Writes each finished trial to disk when Ray no longer uses it, then frees its memory.

    No trial is lost: results, resume and analysis read a spilled trial from disk on access, and
    code that holds the ``Trial`` object can continue to use it. ``docs/changes.md`` lists what
    changes in a run.

    If the disk cannot be written, finished trials stay in memory, the pruner logs one warning, and
    retries until it succeeds. A trial that cannot be serialized stays in memory.

    Args:
        spill_dir: directory for the trial stores, one file a run. Default None: ``.memguard/`` in
            the experiment's directory or, for remote storage, beside Ray's local staging directory.
            Or ``TUNE_MEMGUARD_SPILL_DIR``.
        trim_every_trials: number of spilled trials between two checks of the allocator's slack;
            None for no checks. Default 50, or ``TUNE_MEMGUARD_TRIM_EVERY_TRIALS``.
        trim_slack_mib: MiB of slack above which a check returns it to the system; None for never.
            Default 4, or ``TUNE_MEMGUARD_TRIM_SLACK_MIB``. It has no effect without glibc.

    Raises:
        ValueError, TypeError: an argument, or its environment variable, is not allowed.

    Examples:
        >>> from ray import tune
        >>> from ray_tune_memguard import TrialPruner
        >>> config = tune.RunConfig(callbacks=[TrialPruner(trim_slack_mib=16)])
    """

    _state: _PrunerState
    #: Commits results that wait, and says whether none does; a spilled trial must have all of its.
    commit_results: Callable[[bool], bool] = staticmethod(lambda _now: True)

    def __init__(
        self,
        spill_dir: str | os.PathLike[str] | opt.Unset | None = opt.UNSET,
        trim_every_trials: int | opt.Unset | None = opt.UNSET,
        trim_slack_mib: float | opt.Unset | None = opt.UNSET,
    ) -> None:
        self.spill_dir: Path | None = opt.resolve(
            "spill_dir", spill_dir, None, opt.directory_or_none
        )
        self.trim_every_trials = opt.resolve(
            "trim_every_trials", trim_every_trials, TRIM_EVERY_TRIALS, opt.count_or_none
        )
        self.trim_slack_mib = opt.resolve(
            "trim_slack_mib", trim_slack_mib, TRIM_SLACK_MIB, opt.mebibytes_or_none
        )
        self.options = {
            "spill_dir": self.spill_dir,
            "trim_every_trials": self.trim_every_trials,
            "trim_slack_mib": self.trim_slack_mib,
        }

    @property
    def prunes(self) -> TrialPruner:
        return self

    def begin(self) -> None:
        self._state = _PrunerState()
        if not self.claim(SPILLING):
            return
        missing = self.run.warning()
        if missing is not None:
            self.notices.warn("missing", missing)
        if self.run.can_spill:
            self._try_to(self._open)
        else:
            self.active = False

    @guarded
    def on_trial_result(
        self,
        iteration: int,
        trials: list[Trial],
        trial: Trial,
        result: dict[str, object],
        **info: object,
    ) -> None:
        if self._state.spiller is not None:
            self._state.spiller.release_consumed_results(trial)
        self._state.results_since_trim += 1

    @guarded
    def on_step_end(self, iteration: int, trials: list[Trial], **info: object) -> None:
        state = self._state
        if state.spiller is not None:
            if not state.spiller.is_in_place:
                self._stop()
                return
            state.waiting = state.spiller.finished()
        # In most steps no trial finishes.
        if (state.spiller is None or state.waiting) and self._is_time_to_spill():
            self._try_to(self._spill)
        self._maybe_trim()

    @guarded
    def before_checkpoint(self) -> None:
        """Spill the trials that have finished, because writing a checkpoint takes time."""
        spiller = self._state.spiller
        # The first spill compares the checkpoint before it with Ray's.
        if (
            spiller is None
            or not spiller.is_checked
            or time.monotonic() < self._state.retry_at
            or not (finished := spiller.finished())
            or not self.commit_results(True)
        ):
            return
        self._state.waiting = finished
        self._try_to(self._spill)

    def _stop(self) -> None:
        """End this callback's part in the run."""
        self.active = False
        self._state = _PrunerState()

    def may_spill(self) -> bool:
        """Whether the end of this step may spill trials."""
        return self.active and self._is_time_to_spill()

    def _is_time_to_spill(self) -> bool:
        now = time.monotonic()
        if now < self._state.retry_at:
            return False
        # The last trials of a run need not wait for others.
        return (
            now >= self._state.spill_at
            or self._state.spiller is None
            or not self._state.spiller.has_unfinished()
        )

    @guarded
    def on_experiment_end(self, trials: list[Trial], **info: object) -> None:
        # Trials that end with the experiment stay in memory: Ray's restore counts them as
        # unfinished, and so must the store.
        if self._state.spiller is not None:
            self._try_to(self._spill_waiting)
            self._try_to(self._state.spiller.close)
        self._stop()
        if self.trim_slack_mib is not None:
            allocator.trim()

    def _try_to(self, act: Callable[[], None]) -> None:
        """Call a function that writes to disk; after an error warn once, and retry later."""
        try:
            act()
        except disk_errors() as error:
            boundary.raise_if_of_signal(error)
            where = self._state.spiller.store_path if self._state.spiller else self._directory()
            self.notices.warn(
                "disk",
                f"TrialPruner cannot write to {where} ({error}). Finished trials stay in memory; "
                "spilling is retried until it succeeds.",
            )
            self._state.retry_at = time.monotonic() + self._state.retry_after
            self._state.retry_after = min(2 * self._state.retry_after, _MAX_RETRY_S)
        else:
            self._state.retry_after = _FIRST_RETRY_S

    def disable(self, error: Exception) -> None:
        super().disable(error)
        self._stop()
        if hasattr(self, "run"):
            self.run.take_out()

    def _directory(self) -> Path:
        return self.spill_dir or self.run.store_directory()

    def _open(self) -> None:
        self._state.spiller = self.run.open_spiller(self._directory(), self.notices)
        self._state.spiller.before_checkpoints(self.before_checkpoint)
        self.notices.remark(
            "open", f"MemGuard keeps finished trials in {self._state.spiller.store_path}."
        )

    def _spill(self) -> None:
        if self._state.spiller is None:
            self._open()
            assert self._state.spiller is not None
            self._state.waiting = self._state.spiller.finished()
        spilled = self._state.spiller.spill(self._state.waiting)
        self._state.waiting = []
        if spilled.count:
            self._state.spill_at = time.monotonic() + SPILL_EVERY_S
            self._state.since_trim += spilled.count
            self.notices.again("disk")
        for trial, reason in spilled.refused:
            self.notices.warn(
                "refused",
                f"TrialPruner keeps trial {trial} in memory, because {reason}. Further "
                "occurrences are not logged.",
            )

    def _spill_waiting(self) -> None:
        """Spill the trials that an error, which ends the run, has kept in memory."""
        if (
            self._state.waiting
            and self._state.spiller is not None
            and self._state.spiller.has_written
        ):
            self._state.spiller.spill(self._state.waiting)

    def _maybe_trim(self) -> None:
        every = self.trim_every_trials
        if every is None or (
            self._state.since_trim < every
            and self._state.results_since_trim < every * _RESULTS_PER_TRIAL_OF_TRIM
        ):
            return
        self._state.since_trim = self._state.results_since_trim = 0
        if self._state.spiller is not None:
            self._state.spiller.release_shared()
        if self.trim_slack_mib is not None:
            slack = allocator.slack_bytes()
            if slack is None or slack > self.trim_slack_mib * 2**20:
                allocator.trim()
