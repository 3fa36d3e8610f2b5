"""Logs the driver's memory during a run, and writes the series to the experiment."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ray_tune_memguard import options as opt
from ray_tune_memguard.callbacks.base import guarded
from ray_tune_memguard.callbacks.counting import CountingCallback
from ray_tune_memguard.notices import progress
from ray_tune_memguard.report.series import RssPoint, RssSeries
from ray_tune_memguard.system.process import rss_bytes

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

#: Often enough to see a slope within minutes, at a negligible cost.
EVERY_TRIALS = 100
#: For runs of long trials: a line every ten minutes.
EVERY_SECONDS = 600.0


@dataclass
class _ReporterState:
    """The state of one run.

    Attributes:
        last_trials: the number of finished trials at the last report.
        last_time: the time of the last report, by ``time.monotonic()``.
        series: the points of the run.
    """

    last_trials: int = 0
    last_time: float = field(default_factory=time.monotonic)
    series: RssSeries | None = None


class RssReporter(CountingCallback):
    """Logs a line with the driver's resident memory (RSS) at intervals::

        trial#400  RSS 231 MiB  (+0.1 KiB/trial over the last 300)

    Where a :class:`TrialMemoryReporter` measures, the line names the running trials that use most.
    The number counts completed and errored trials, also those of earlier runs of the experiment.
    The slope is the least-squares slope over the latest points. The experiment's directory keeps
    the whole series; :func:`ray_tune_memguard.read_rss_series` reads it. In a notebook, a line
    replaces the one before.

    Args:
        every_trials: number of finished trials between two lines; None for no such lines. Default
            100, or ``TUNE_MEMGUARD_EVERY_TRIALS``.
        every_seconds: seconds without a line after which one is logged; None for no such lines.
            Default 600, or ``TUNE_MEMGUARD_EVERY_SECONDS``.

    Raises:
        ValueError, TypeError: an argument, or its environment variable, is not allowed.

    Examples:
        >>> from ray import tune
        >>> from ray_tune_memguard import RssReporter
        >>> config = tune.RunConfig(callbacks=[RssReporter(every_trials=500)])
    """

    _state: _ReporterState | None = None

    def __init__(
        self,
        every_trials: int | opt.Unset | None = opt.UNSET,
        every_seconds: float | opt.Unset | None = opt.UNSET,
    ) -> None:
        self.every_trials = opt.resolve(
            "every_trials", every_trials, EVERY_TRIALS, opt.count_or_none
        )
        self.every_seconds = opt.resolve(
            "every_seconds", every_seconds, EVERY_SECONDS, opt.seconds_or_none
        )
        self.options = {"every_trials": self.every_trials, "every_seconds": self.every_seconds}

    def begin(self) -> None:
        super().begin()
        self._state = _ReporterState()
        self.claim("RSS reports")

    def on_first_step(self) -> None:
        if self._state is not None:
            self._state.last_trials = self._finished.total

    @guarded
    def on_step_end(self, iteration: int, trials: list[Trial], **info: object) -> None:
        self._finished.count_step()
        if self._state is not None and self._is_due(self._state):
            self._report(self._state, trials)

    def on_run_end(self, trials: list[Trial]) -> None:
        state = self._state
        if state is not None and (
            state.series is None or self._finished.total != state.last_trials
        ):
            self._report(state, trials)

    def _is_due(self, state: _ReporterState) -> bool:
        more = self._finished.total - state.last_trials
        if self.every_trials is not None and more >= self.every_trials:
            return True
        waited = time.monotonic() - state.last_time
        return self.every_seconds is not None and waited >= self.every_seconds

    def _report(self, state: _ReporterState, trials: list[Trial]) -> None:
        done = self._finished
        point = RssPoint(time.time(), done.total, done.completed, done.errored, rss_bytes())
        state.last_trials = done.total
        state.last_time = time.monotonic()
        if state.series is None:
            state.series = RssSeries(self.run.report_path(trials, "rss", ".csv"))
        try:
            state.series.add(point)
            self.notices.again("series")
        except OSError as error:
            self.notices.warn(
                "series",
                f"RssReporter cannot write {state.series.path} ({error}). It continues to log; "
                "points are missing from the file until it can be written again.",
            )
        users = self.run.trial_memory().running_text()
        progress(f"{state.series.line()}  {users}" if users else state.series.line())
