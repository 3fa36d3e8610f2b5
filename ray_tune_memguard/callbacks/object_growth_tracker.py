"""Says what holds the driver's memory: by retention site, by type, by category of RSS."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ray_tune_memguard import options as opt
from ray_tune_memguard.callbacks.base import guarded
from ray_tune_memguard.callbacks.counting import CountingCallback
from ray_tune_memguard.notices import logger
from ray_tune_memguard.report.series import RESULTS_PER_TRIAL, WARM_UP_TRIALS
from ray_tune_memguard.report.series_file import SeriesFile

# The diagnostics are imported when the first sample is taken: most of what imports this package
# never takes one.
if TYPE_CHECKING:
    from ray.tune.experiment import Trial

    from ray_tune_memguard.diagnostics.diagnosis import Diagnosis
    from ray_tune_memguard.diagnostics.growth import GrowthRow
    from ray_tune_memguard.diagnostics.sampler import Sample
    from ray_tune_memguard.diagnostics.tracking import GrowthTracking

#: As often as a budget of 1 % allows in a fast sweep, and enough points for a trend by trial 500.
SAMPLE_EVERY_TRIALS = 25
_ALLOWANCE_TRIALS = 500
# Until then, or until the end of warm-up, there is nothing to compare with; intervals of samples.
_WARM_UP_INTERVALS = 3
GROWTH_BUDGET = 0.01
#: What a short sweep may take, seconds: otherwise it would be over before there is a trend.
ALLOWANCE_S = 0.6
#: Of the cost of a sample, what the next one is expected to take at least.
_DECAY = 0.8


class _Spent:
    """Seconds that samples took, and that the next one is expected to take."""

    def __init__(self) -> None:
        self._total = self._largest = 0.0

    def add(self, cost: float) -> None:
        self._total += cost
        self._largest = max(cost, _DECAY * self._largest)

    def with_next(self) -> float:
        """What all will have taken after the next one, if it costs as much as recent ones."""
        return self._total + self._largest


@dataclass
class _TrackerState:
    """The state of one run.

    ``before``: trials that had finished before it. ``last_trials`` and ``last_results``: at the
    last sample. ``wall`` and ``cpu``: by the clock, and by the CPU; on a busy machine a sample
    takes longer, and so does the rest.
    """

    last_trials: int
    before: int = 0
    results: int = 0
    last_results: int = 0
    began: float = field(default_factory=time.monotonic)
    wall: _Spent = field(default_factory=_Spent)
    cpu: _Spent = field(default_factory=_Spent)
    tracking: GrowthTracking | None = None
    rows: SeriesFile[GrowthRow] | None = None
    diagnosis_path: Path | None = None
    diagnosis: Diagnosis | None = None
    # A user's thread may ask for a diagnosis while the run takes a sample.
    lock: threading.RLock = field(default_factory=threading.RLock)

    def progress(self, trials: int) -> float:
        """Trials that this run has finished; results stand for them where trials are few."""
        return max(trials - self.before, self.results / RESULTS_PER_TRIAL)


class ObjectGrowthTracker(CountingCallback):
    """Finds out what holds the driver's memory while a sweep runs, and what to do about it.

    It measures how RSS divides into live Python objects, native memory, allocator slack and mapped
    files; the deep size of every known retention site (the collections of Ray's controller,
    schedulers, searchers, loggers, callbacks, module globals); and the number of objects by type.
    A site that grows steadily is named once in the log; a table at the end of the sweep has all of
    them. See :meth:`diagnosis`, :func:`ray_tune_memguard.read_diagnosis` and
    :func:`ray_tune_memguard.read_growth`.

    *Steadily* means: the slope by Theil and Sen over the samples after the first fifth of the sweep
    has a 95 % interval above zero, and both halves of the series grow.

    It keeps names and numbers only, in bounded memory, and never a reference to what it measured.

    Args:
        sample_every_trials: measure after so many finished trials, as far as the budget allows.
            Default 25, or ``TUNE_MEMGUARD_SAMPLE_EVERY_TRIALS``.
        growth_budget: the share of the sweep's wall time that measuring may take while it runs,
            from 0 to 1; 0.6 seconds of CPU time are always allowed, and two more at the end to find
            paths if something grows. With 0 it measures only when :meth:`sample` is called. Default
            0.01, or ``TUNE_MEMGUARD_GROWTH_BUDGET``.

    Raises:
        ValueError, TypeError: an argument, or its environment variable, is not allowed.
    """

    _state: _TrackerState | None = None

    def __init__(
        self,
        sample_every_trials: int | opt.Unset = opt.UNSET,
        growth_budget: float | opt.Unset = opt.UNSET,
    ) -> None:
        self.sample_every_trials: int = opt.resolve(
            "sample_every_trials", sample_every_trials, SAMPLE_EVERY_TRIALS, opt.count
        )
        self.growth_budget: float = opt.resolve(
            "growth_budget", growth_budget, GROWTH_BUDGET, opt.share
        )
        self.options = {
            "sample_every_trials": self.sample_every_trials,
            "growth_budget": self.growth_budget,
        }

    def begin(self) -> None:
        super().begin()
        warm_up = min(
            WARM_UP_TRIALS - self.sample_every_trials,
            _WARM_UP_INTERVALS * self.sample_every_trials,
        )
        self._state = _TrackerState(last_trials=warm_up)
        if not self.run.claim("growth", self):
            self.active = False
            self.notices.remark(
                "second",
                "Another ObjectGrowthTracker is already active; this instance is disabled.",
            )

    # What a user calls.

    def sample(self) -> None:
        """Measure now, whatever the budget. Does nothing outside a sweep."""
        state = self._state
        if state is not None and self.active:
            try:
                self._sample(state, asked=True)
            except Exception as error:
                self.disable(error)

    def diagnosis(self) -> Diagnosis:
        """Say what holds the driver's memory, from any thread.

        Returns:
            In a sweep, what is known after one more measurement; afterwards, what the sweep ended
            with.

        Raises:
            RuntimeError: nothing was measured: no sweep has begun, or this instance is disabled.
        """
        state = self._state
        if state is not None and self.active and state.tracking is not None:
            with state.lock:
                if self._finished.total > state.last_trials:
                    self.sample()
                return state.tracking.diagnose(self._finished.total, state.results, on_demand=True)
        if state is None or state.diagnosis is None:
            raise RuntimeError("This ObjectGrowthTracker has not measured anything yet.")
        return state.diagnosis

    def show_backrefs(self, type_name: str, filename: str | os.PathLike[str]) -> None:
        """Draw what refers to a typical object of a type, with ``objgraph.show_backrefs``.

        objgraph collects garbage first, and shows the ``repr`` of objects, which may run their
        code.

        Args:
            type_name: as in :attr:`Diagnosis.types`.
            filename: a ``.dot`` file, or an image if Graphviz is installed.

        Raises:
            ValueError: there is no such object.
        """
        from ray_tune_memguard.diagnostics import references

        references.draw_referrers(type_name, os.fspath(filename))

    # What Ray calls.

    def on_first_step(self) -> None:
        if self._state is not None:
            self._state.before = self._finished.total
            self._state.last_trials += self._finished.total

    @guarded
    def on_trial_result(
        self,
        iteration: int,
        trials: list[Trial],
        trial: Trial,
        result: dict[str, object],
        **info: object,
    ) -> None:
        if self._state is not None:
            self._state.results += 1

    @guarded
    def on_step_end(self, iteration: int, trials: list[Trial], **info: object) -> None:
        self._finished.count_step()
        state = self._state
        if state is not None:
            self._choose_files(state, trials)
            if self._is_due(state):
                self._sample(state)

    @guarded
    def on_experiment_end(self, trials: list[Trial], **info: object) -> None:
        state = self._state
        if state is None:
            return
        self._choose_files(state, trials)
        if (
            self.growth_budget
            and (state.tracking is None or not state.tracking.has_trend)
            and state.progress(self._finished.total) >= self.sample_every_trials
        ):
            self._sample(state, asked=True)
        self.active = False
        tracking, state.tracking = state.tracking, None
        if tracking is None or not tracking.has_samples:
            return
        with state.lock:
            found = state.diagnosis = tracking.diagnose(self._finished.total, state.results)
        path = state.diagnosis_path
        if path is not None:
            self._write(path, lambda: found.save(path))
        if found.holders:
            logger.info("%s", found)

    def _is_due(self, state: _TrackerState) -> bool:
        if not self.growth_budget:
            return False
        every = self.sample_every_trials
        trials, results = self._finished.total, state.results
        if (
            trials - state.last_trials < every
            and results - state.last_results < every * RESULTS_PER_TRIAL
        ):
            return False
        # The allowance is spread over the trials until there is a trend to see.
        budget = self.growth_budget * (time.monotonic() - state.began)
        allowance = ALLOWANCE_S * min(1.0, state.progress(trials) / _ALLOWANCE_TRIALS)
        is_affordable = state.wall.with_next() <= budget or state.cpu.with_next() <= allowance
        tracking = state.tracking
        return is_affordable and (tracking is None or tracking.wants(trials, results))

    def _sample(self, state: _TrackerState, asked: bool = False) -> None:
        # A thread that asks for a diagnosis may have the lock for seconds; the run does not wait.
        if not state.lock.acquire(blocking=asked):
            return
        try:
            began, cpu_began = time.perf_counter(), time.thread_time()
            if state.tracking is None:
                from ray_tune_memguard.diagnostics.tracking import GrowthTracking

                state.tracking = GrowthTracking(self.run, state.before)
            trials, results = self._finished.total, state.results
            found = state.tracking.sample(trials, results, thoroughly=asked)
            self._keep(state, found, trials, results)
            state.last_trials, state.last_results = trials, results
            for line in state.tracking.news(trials):
                logger.info("%s", line)
            if not asked:
                state.wall.add(time.perf_counter() - began)
                state.cpu.add(time.thread_time() - cpu_began)
        finally:
            state.lock.release()

    def _choose_files(self, state: _TrackerState, trials: list[Trial]) -> None:
        if state.diagnosis_path is None:
            state.diagnosis_path = self.run.report_path(trials, "diagnosis", ".json")

    def _keep(self, state: _TrackerState, found: Sample, trials: int, results: int) -> None:
        if state.rows is None and state.diagnosis_path is not None:
            from ray_tune_memguard.diagnostics.growth import GrowthRow

            name = state.diagnosis_path.stem.replace("diagnosis", "growth", 1)
            path = state.diagnosis_path.with_name(f"{name}.csv")
            state.rows = SeriesFile(path, GrowthRow)
        rows = state.rows
        if rows is not None:
            self._write(rows.path, lambda: rows.add(found.rows(trials, results)))

    def _write(self, path: Path, write: Callable[[], None]) -> None:
        try:
            write()
            self.notices.again("growth")
        except OSError as error:
            self.notices.warn(
                "growth",
                f"ObjectGrowthTracker cannot write {path} ({error}). It goes on measuring; what it "
                "measures until the file can be written again will be missing from it.",
            )
