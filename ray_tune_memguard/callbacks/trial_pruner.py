"""Keeps the driver's memory flat: spills finished trials to disk and lets go of them in memory."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ray_tune_memguard import options as opt
from ray_tune_memguard.adapter import handle as entry
from ray_tune_memguard.callbacks.base import GuardCallback, guarded
from ray_tune_memguard.system import allocator

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

    from ray_tune_memguard.adapter.run.spiller import Spiller

#: How often slack is looked at: trims cost milliseconds, trials a few tens of KB of slack.
TRIM_EVERY_TRIALS = 50
#: Slack that is left alone: the allocator will want it back at once.
TRIM_SLACK_MIB = 4.0
# A running trial that reports often is to be looked at, too, though no trial finishes.
_RESULTS_PER_TRIAL_OF_TRIM = 2
#: Trials that finish sooner than this after a spill wait for each other: together they cost half. A
#: kill meanwhile lets them run again.
SPILL_EVERY_S = 0.08
_FIRST_RETRY_S = 1.0
_LONGEST_RETRY_S = 30.0


class TrialPruner(GuardCallback):
    """Writes each finished trial to disk once Ray is done with it, then frees its memory.

    Nothing is lost by it: results, resume and analysis read a spilled trial back when asked for it,
    and whoever still holds the ``Trial`` object can go on using it. What changes in a sweep is
    listed in ``docs/changes.md``.

    If the disk does not take a trial, the trial stays in memory, a warning says so once, and the
    spill is tried again until it succeeds. A trial that cannot be serialized stays in memory.

    Args:
        spill_dir: directory for the trial stores, one file a sweep. Default None: ``.memguard/`` in
            the experiment's directory; for remote storage beside Ray's local staging directory.
            Or ``TUNE_MEMGUARD_SPILL_DIR``.
        trim_every_trials: look at the allocator's slack after so many spilled trials, or None for
            never. Default 50, or ``TUNE_MEMGUARD_TRIM_EVERY_TRIALS``.
        trim_slack_mib: give slack back to the system when it exceeds so many MiB; None for never.
            Default 4, or ``TUNE_MEMGUARD_TRIM_SLACK_MIB``. Without glibc nothing is trimmed.

    Raises:
        ValueError, TypeError: an argument, or its environment variable, is not allowed.
    """

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
        self._spiller: Spiller | None = None
        # Trials that had finished by the end of the last step, if it did not spill them.
        self._waiting: list[Trial] = []
        self._since_trim = 0
        self._results_since_trim = 0
        self._spill_at = self._retry_at = 0.0
        self._retry_after = _FIRST_RETRY_S
        if not self.run.claim("spilling", self):
            self.active = False
            self.notices.remark(
                "second", "Another TrialPruner is already active; this instance is disabled."
            )
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
        if self._spiller is not None:
            self._spiller.release_consumed_results(trial)
        self._results_since_trim += 1

    @guarded
    def on_step_end(self, iteration: int, trials: list[Trial], **info: object) -> None:
        if self._spiller is not None:
            if not self._spiller.is_in_place:
                self._stop()
                return
            self._waiting = self._spiller.finished()
        # In most steps no trial finishes.
        if (self._spiller is None or self._waiting) and self._is_time_to_spill():
            self._try_to(self._spill)
        self._maybe_trim()

    def _stop(self) -> None:
        """The run goes on as Ray alone."""
        self.active = False
        self._spiller = None
        self._waiting = []

    def _is_time_to_spill(self) -> bool:
        now = time.monotonic()
        if now < self._retry_at:
            return False
        # The last trials of a sweep wait for no others.
        return now >= self._spill_at or self._spiller is None or not self._spiller.has_unfinished()

    @guarded
    def on_experiment_end(self, trials: list[Trial], **info: object) -> None:
        # Trials that were ended with the experiment stay in memory: for Ray's restore they are
        # unfinished, and the store must not say otherwise.
        if self._spiller is not None:
            self._try_to(self._spill_waiting)
            self._try_to(self._spiller.close)
        self._stop()
        if self.trim_slack_mib is not None:
            allocator.trim()

    def _try_to(self, act: Callable[[], None]) -> None:
        """Do what needs the disk; if the disk refuses, say so once and set a time to try again."""
        try:
            act()
        except entry.disk_errors() as error:
            where = self._spiller.store_path if self._spiller else self._directory()
            self.notices.warn(
                "disk",
                f"TrialPruner cannot write to {where} ({error}). Finished trials stay in memory "
                "until it can; it goes on trying.",
            )
            self._retry_at = time.monotonic() + self._retry_after
            self._retry_after = min(2 * self._retry_after, _LONGEST_RETRY_S)
        else:
            self._retry_after = _FIRST_RETRY_S

    def disable(self, error: Exception) -> None:
        super().disable(error)
        self._stop()
        self.run.take_out()

    def _directory(self) -> Path:
        return self.spill_dir or self.run.store_directory()

    def _open(self) -> None:
        self._spiller = self.run.open_spiller(self._directory(), self.notices)

    def _spill(self) -> None:
        if self._spiller is None:
            self._open()
            assert self._spiller is not None
            self._waiting = self._spiller.finished()
        spilled = self._spiller.spill(self._waiting)
        self._waiting = []
        if spilled.count:
            self._spill_at = time.monotonic() + SPILL_EVERY_S
            self._since_trim += spilled.count
            self.notices.again("disk")
        for trial, error in spilled.refused:
            self.notices.warn(
                "refused",
                f"TrialPruner keeps trial {trial} in memory, because its state cannot be "
                f"serialized ({error!r}). Further occurrences are not logged.",
            )

    def _spill_waiting(self) -> None:
        """What an error that ends the sweep has kept from being spilled."""
        if self._waiting and self._spiller is not None and self._spiller.has_written:
            self._spiller.spill(self._waiting)

    def _maybe_trim(self) -> None:
        every = self.trim_every_trials
        if every is None or (
            self._since_trim < every
            and self._results_since_trim < every * _RESULTS_PER_TRIAL_OF_TRIM
        ):
            return
        self._since_trim = self._results_since_trim = 0
        if self._spiller is not None:
            self._spiller.release_shared()
        if self.trim_slack_mib is not None:
            slack = allocator.slack_bytes()
            if slack is None or slack > self.trim_slack_mib * 2**20:
                allocator.trim()
