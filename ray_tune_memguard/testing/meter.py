"""Measures how the memory of a driver grows with the trials of a sweep, without Ray's own growth.

What counts is what Python keeps: all small objects (CPython's own allocator counts them), and the
larger blocks and NumPy buffers that retention sites keep. RSS is not used, because it varies by
more than 2 KB for each of 300 trials; nor is what ``malloc`` has in use, because Ray's core, in
C++, takes some 2 KB of it per trial in a sweep without a leak. ``python -m benchmarks
pytest-plugin`` prints all three.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ray_tune_memguard.adapter.claims import GROWTH, SPILLING
from ray_tune_memguard.callbacks.base import guarded
from ray_tune_memguard.callbacks.counting import CountingCallback
from ray_tune_memguard.callbacks.trial_pruner import TrialPruner
from ray_tune_memguard.diagnostics.growth import GrowthSeries
from ray_tune_memguard.diagnostics.tracking import GrowthTracking
from ray_tune_memguard.memguard import MemGuard
from ray_tune_memguard.testing.verdict import Limit, Measurement, exceeds

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

#: Of a sweep; enough for a narrow interval, few enough to take seconds.
_SAMPLES = 25
#: A busy machine takes long for a sample, which must be complete.
_MAX_SAMPLE_S = 10.0
#: Trials after warm-up; half of what a tracker needs, whose samples contain garbage.
_MIN_SPAN = 100
_NOT_IN_PLACE = "MemGuard does not spill finished trials in this sweep; its warning says why"
_KEPT, _UNFINISHED = ("part", "kept"), ("trials", "unfinished")


@dataclass
class _State:
    """The state of one run.

    Attributes:
        sample_at: number of finished trials from which on the next sample is due.
        series: what Python keeps, and the number of unfinished trials.
    """

    tracking: GrowthTracking
    series: GrowthSeries
    sample_at: int
    results: int = 0
    absent: dict[str, str] = field(default_factory=dict)


class GrowthMeter(CountingCallback):
    """Measures the sweeps of a test. A ``MemGuard`` is part of it, so that Ray itself keeps little.

    Ray must call it after the callbacks that are tested: it comes last in the list. If a
    ``MemGuard`` comes before it, that one is used.

    Args:
        limit: how much memory may grow; None for the default.

    Attributes:
        measurements: one for each sweep that has begun, complete when the sweep has ended.
    """

    _state: _State | None = None

    def __init__(self, limit: Limit | None = None) -> None:
        self._limit = limit or Limit.of()
        self._guard = MemGuard(growth_budget=0)
        self.measurements: list[Measurement] = []
        # It opens as one that reports to no test.
        self.options = {}

    @property
    def prunes(self) -> TrialPruner:
        return self._guard.prunes

    def begin(self) -> None:
        super().begin()
        self._state = None
        self.measurements.append(Measurement(0))
        self._guard.active = False
        if self.run.owner_of(SPILLING) is None:
            self._guard.begin_run(self.run)

    def on_first_step(self) -> None:
        before, every = self._finished.total, self._every
        self._state = _State(
            GrowthTracking(self.run, before, _MAX_SAMPLE_S, _MIN_SPAN),
            GrowthSeries(before, _MIN_SPAN),
            sample_at=before + every,
        )

    def disable(self, error: Exception) -> None:
        super().disable(error)
        if self.measurements:
            self.measurements[-1] = Measurement(0, error=f"an unexpected error ({error!r})")
        if getattr(self._guard, "active", False):
            # Nobody calls it from now on.
            self._guard.disable(error)

    @guarded
    def on_step_begin(self, iteration: int, trials: list[Trial], **info: object) -> None:
        super().on_step_begin(iteration, trials, **info)
        self._guard.on_step_begin(iteration=iteration, trials=trials, **info)

    @guarded
    def on_step_end(self, iteration: int, trials: list[Trial], **info: object) -> None:
        self._guard.on_step_end(iteration=iteration, trials=trials, **info)
        self._finished.count_step()
        state = self._state
        if state is not None and self._finished.total >= state.sample_at:
            state.sample_at = self._finished.total + self._every
            self._sample(state, len(trials))

    @guarded
    def on_trial_start(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: object
    ) -> None:
        self._guard.on_trial_start(iteration, trials, trial, **info)

    @guarded
    def on_trial_result(
        self,
        iteration: int,
        trials: list[Trial],
        trial: Trial,
        result: dict[str, object],
        **info: object,
    ) -> None:
        self._guard.on_trial_result(iteration, trials, trial, result, **info)
        if self._state is not None:
            self._state.results += 1

    @guarded
    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: object
    ) -> None:
        super().on_trial_complete(iteration, trials, trial, **info)
        self._guard.on_trial_complete(iteration, trials, trial, **info)

    @guarded
    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: object
    ) -> None:
        super().on_trial_error(iteration, trials, trial, **info)
        self._guard.on_trial_error(iteration, trials, trial, **info)

    @guarded
    def on_experiment_end(self, trials: list[Trial], **info: object) -> None:
        super().on_experiment_end(trials, **info)
        self._guard.on_experiment_end(trials=trials, **info)

    def on_run_end(self, trials: list[Trial]) -> None:
        state, self._state = self._state, None
        if state is not None:
            self.measurements[-1] = self._measured(state)

    @property
    def _every(self) -> int:
        return self._limit.trials // _SAMPLES

    def _sample(self, state: _State, trials: int) -> None:
        # Cycles that a collection frees are no leak.
        gc.collect()
        finished = self._finished.total
        found = state.tracking.sample(finished, state.results)
        if found.kept is None:
            state.absent = found.absent
        else:
            kept = found.kept - self._measuring(state)
            state.series.add(finished, 0, {_KEPT: kept, _UNFINISHED: float(trials - finished)})

    def _measuring(self, state: _State) -> float:
        """The size of what measures, which grows until it has a full series of each quantity."""
        sizer = state.tracking.sizer()
        measures = state.tracking, self.run.owner_of(GROWTH)
        return sum(sizer.measure(one).total for one in measures if one is not None)

    def _measured(self, state: _State) -> Measurement:
        finished, series = self._finished.total, state.series
        if not self.run.is_spilling():
            # What Ray keeps would count.
            return Measurement(finished - series.before, error=_NOT_IN_PLACE)
        growth = series.trend(*_KEPT) if series.is_long_enough else None
        least, most = series.extent(*_UNFINISHED) if growth else (0.0, 0.0)
        found = None
        if exceeds(growth, self._limit):
            found = state.tracking.diagnose(finished, state.results, on_demand=True)
        return Measurement(
            finished - series.before,
            growth,
            series.span,
            (int(least), int(most)),
            found,
            state.absent,
        )
