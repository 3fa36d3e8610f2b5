"""Measures what holds the driver's memory: by retention site, by type, by category of RSS."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ray_tune_memguard import options as opt
from ray_tune_memguard.adapter.claims import GROWTH
from ray_tune_memguard.callbacks.base import guarded
from ray_tune_memguard.callbacks.counting import CountingCallback
from ray_tune_memguard.notices import logger
from ray_tune_memguard.report.series import RESULTS_PER_TRIAL, WARM_UP_TRIALS
from ray_tune_memguard.report.series_file import SeriesFile

# The diagnostics are imported with the first sample, because most processes that import this
# package take none.
if TYPE_CHECKING:
    from ray.tune.experiment import Trial

    from ray_tune_memguard.diagnostics.diagnosis import Diagnosis
    from ray_tune_memguard.diagnostics.growth import GrowthRow
    from ray_tune_memguard.diagnostics.sampler import Sample
    from ray_tune_memguard.diagnostics.tracking import GrowthTracking

#: As often as a budget of 1 % allows in a fast sweep, and enough points for a trend by trial 500.
SAMPLE_EVERY_TRIALS = 25
_ALLOWANCE_TRIALS = 500
# A slow or busy machine takes longer for the few samples without which nothing can be told; a fast
# one has them long before. Spread, so that they are not over before they span enough trials.
_ALLOWANCE_UNJUDGED_S, _ALLOWANCE_TRIALS_UNJUDGED = 1.6, 400
# The first sample comes after so many sampling intervals, or at the end of warm-up if that is
# sooner.
_WARM_UP_INTERVALS = 3
GROWTH_BUDGET = 0.01
# The last sample is at most this share of the run old, so that the diagnosis is of the run's end.
_MAX_AGE_AT_END = 0.2
#: CPU seconds that are always allowed; otherwise a short run would end before there is a trend.
ALLOWANCE_S = 0.6
#: The next sample is expected to cost at least this share of the largest recent one.
_DECAY = 0.8


class _Spent:
    """The seconds that samples took, and that the next one is expected to take."""

    def __init__(self) -> None:
        self._total = self._largest = 0.0

    def add(self, cost: float) -> None:
        self._total += cost
        self._largest = max(cost, _DECAY * self._largest)

    def with_next(self) -> float:
        """The expected seconds of all samples, including the next one."""
        return self._total + self._largest


@dataclass
class _TrackerState:
    """The state of one run.

    Attributes:
        last_trials, last_results: numbers of finished trials and of results at the last sample.
        before: the number of trials that had finished before the run.
        wall, cpu: the cost of samples in wall-clock time and in CPU time. On a busy machine the
            wall-clock time of a sample grows, and so does that of everything else.
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
        """The number of trials that this run has finished; at least results / 20."""
        return max(trials - self.before, self.results / RESULTS_PER_TRIAL)


class ObjectGrowthTracker(CountingCallback):
    """Finds out what holds the driver's memory during a run, and gives advice about it.

    It measures how RSS divides into live Python objects, native memory, allocator slack and mapped
    files; the deep size of every known retention site (the collections of Ray's controller,
    schedulers, searchers, loggers, callbacks, module globals); and the number of objects by type.
    It logs each site that grows steadily once, and a table of all of them at the end of the run.
    See :meth:`diagnosis`, :func:`ray_tune_memguard.read_diagnosis` and
    :func:`ray_tune_memguard.read_growth`.

    A site grows *steadily* if its Theil-Sen slope over the samples after the first fifth of the run
    has a 95 % interval above zero, and both halves of the series grow.

    The tracker keeps names and numbers only, in bounded memory, and no reference to any object that
    it has measured.

    Args:
        sample_every_trials: number of finished trials between two samples, as far as the budget
            allows. Default 25, or ``TUNE_MEMGUARD_SAMPLE_EVERY_TRIALS``.
        growth_budget: share of the run's wall-clock time that samples may take, from 0 to 1. In
            addition, 0.6 s of CPU time are always allowed, up to 1.6 s until there are enough
            samples to judge growth, and 2 s at the end to find the paths to sites that grow. With
            0 only :meth:`sample` measures. Default 0.01, or ``TUNE_MEMGUARD_GROWTH_BUDGET``.

    Raises:
        ValueError, TypeError: an argument, or its environment variable, is not allowed.

    Examples:
        >>> from ray_tune_memguard import ObjectGrowthTracker
        >>> tracker = ObjectGrowthTracker(sample_every_trials=50)
        >>> tracker.growth_budget
        0.01
        >>> ObjectGrowthTracker(growth_budget=2)
        Traceback (most recent call last):
        ValueError: growth_budget must be a number from 0 to 1; got 2
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
        self.claim(GROWTH)

    # Called by the user.

    def sample(self) -> None:
        """Measure now, regardless of the budget. Does nothing outside a run.

        Examples:
            >>> from ray_tune_memguard import ObjectGrowthTracker
            >>> ObjectGrowthTracker().sample()  # No run has begun.
        """
        state = self._state
        if state is not None and self.active:
            try:
                self._sample(state, on_demand=True)
            except Exception as error:
                self.disable(error)

    def diagnosis(self) -> Diagnosis:
        """Diagnose what holds the driver's memory. May be called from any thread.

        Returns:
            During a run, the diagnosis after one more sample; afterwards, the run's last diagnosis.

        Raises:
            RuntimeError: there is no sample, because no run has begun or this instance is disabled.

        Examples:
            >>> from ray_tune_memguard import ObjectGrowthTracker
            >>> ObjectGrowthTracker().diagnosis()
            Traceback (most recent call last):
            RuntimeError: This ObjectGrowthTracker has not measured anything yet.
        """
        state = self._state
        if state is not None and self.active:
            # The run may end in its own thread meanwhile.
            with state.lock:
                tracking = state.tracking
                if tracking is not None:
                    if self._finished.total > state.last_trials:
                        self.sample()
                    return tracking.diagnose(self._finished.total, state.results, on_demand=True)
        if state is None or state.diagnosis is None:
            raise RuntimeError("This ObjectGrowthTracker has not measured anything yet.")
        return state.diagnosis

    def categories(self) -> dict[str, float]:
        """What the driver's RSS consists of at the last sample of a run that goes on, in bytes.

        Examples:
            >>> from ray_tune_memguard import ObjectGrowthTracker
            >>> ObjectGrowthTracker().categories()  # No run has begun.
            {}
        """
        tracking = None if self._state is None else self._state.tracking
        return {} if tracking is None else tracking.categories()

    def show_backrefs(self, type_name: str, filename: str | os.PathLike[str]) -> None:
        """Draw the references to a typical object of a type, with ``objgraph.show_backrefs``.

        objgraph collects garbage first. It shows the ``repr`` of objects, which may run their code.

        Args:
            type_name: the qualified name of the type, as in :attr:`Diagnosis.types`.
            filename: the file to write: ``.dot``, or an image format if Graphviz is installed.

        Raises:
            ValueError: there is no object of this type.

        Examples:
            >>> from ray_tune_memguard import ObjectGrowthTracker
            >>> ObjectGrowthTracker().show_backrefs("no.such.Type", "backrefs.dot")
            Traceback (most recent call last):
            ValueError: type_name is 'no.such.Type'; there is no object of such a type
        """
        from ray_tune_memguard.diagnostics import references

        references.draw_referrers(type_name, os.fspath(filename))

    # Called by Ray.

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

    def on_run_end(self, trials: list[Trial]) -> None:
        state = self._state
        if state is None:
            return
        self._choose_files(state, trials)
        finished = self._finished.total
        can_judge = state.tracking is not None and state.tracking.can_judge
        is_old = finished - state.last_trials > _MAX_AGE_AT_END * (finished - state.before)
        if (
            self.growth_budget
            and (not can_judge or is_old)
            and state.progress(finished) >= self.sample_every_trials
        ):
            self._sample(state, on_demand=True)
        self.active = False
        with state.lock:
            tracking, state.tracking = state.tracking, None
            if tracking is None or not tracking.has_samples:
                return
            found = state.diagnosis = tracking.diagnose(self._finished.total, state.results)
        path = state.diagnosis_path
        if path is not None:
            self._write(path, lambda: found.save(path))
        if found.holders:
            logger.info("%s", found)
        elif line := found.unexplained():
            logger.info("%s", line)

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
        tracking = state.tracking
        can_judge = tracking is not None and tracking.can_judge
        # The allowance is spread over the trials until growth can be judged.
        seconds, spread = (
            (ALLOWANCE_S, _ALLOWANCE_TRIALS)
            if can_judge
            else (_ALLOWANCE_UNJUDGED_S, _ALLOWANCE_TRIALS_UNJUDGED)
        )
        budget = self.growth_budget * (time.monotonic() - state.began)
        allowance = seconds * min(1.0, state.progress(trials) / spread)
        is_affordable = state.wall.with_next() <= budget or state.cpu.with_next() <= allowance
        return is_affordable and (tracking is None or tracking.wants(trials, results))

    def _sample(self, state: _TrackerState, on_demand: bool = False) -> None:
        # A thread that diagnoses may hold the lock for seconds; the run does not wait for it.
        if not state.lock.acquire(blocking=on_demand):
            return
        try:
            began, cpu_began = time.perf_counter(), time.thread_time()
            if state.tracking is None:
                from ray_tune_memguard.diagnostics.tracking import GrowthTracking

                state.tracking = GrowthTracking(self.run, state.before)
            trials, results = self._finished.total, state.results
            found = state.tracking.sample(trials, results, thoroughly=on_demand)
            self._keep(state, found, trials, results)
            state.last_trials, state.last_results = trials, results
            for line in state.tracking.news(trials):
                logger.info("%s", line)
            if not on_demand:
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
                f"ObjectGrowthTracker cannot write {path} ({error}). It continues to measure; "
                "samples are missing from the file until it can be written again.",
            )
