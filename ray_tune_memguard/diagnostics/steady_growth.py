"""Series of several amounts over a run, bounded in memory, and which of them grow steadily."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ray_tune_memguard.diagnostics.trend import MIN_POINTS, Trend, trend
from ray_tune_memguard.report.series import MIN_SLOPE_TRIALS

#: Points in memory. If there are more, every second of the older half is dropped.
MAX_POINTS = 40
#: The share of a run that is warm-up.
_WARM_UP = 0.2
_MAX_UNCERTAINTY = 0.5


@dataclass(frozen=True)
class Rule:
    """From when on growth counts. Amounts are in bytes.

    Attributes:
        warm_up_trials: that do not count, if twice as many have finished.
        min_trials, min_per_trial: so many trials, and so much for each.
        min_hours, min_per_hour: or so many hours, and so much in each.
        min_growth: and so much in all.
    """

    warm_up_trials: int
    min_trials: float
    min_per_trial: float
    min_hours: float
    min_per_hour: float
    min_growth: float


@dataclass(frozen=True)
class Growth:
    """How one amount grows.

    Attributes:
        per_trial, per_hour: slopes after warm-up; None if they are not known.
        is_steady: whether it grows steadily, and by as much as the rule wants.
    """

    per_trial: float | None
    per_hour: float | None
    is_steady: bool


class GrowthSeries:
    """Amounts by name over a run.

    Args:
        before: number of trials that had finished before the run.
        began: when the run began, in seconds.

    Examples:
        >>> series = GrowthSeries(before=0, began=0.0)
        >>> for trials in range(0, 100, 10):
        ...     series.add(trials, trials, {"store": 200_000.0 * trials})
        >>> rule = Rule(0, 50, 16_384, math.inf, 0, 2**20)
        >>> series.growth_of("store", rule).per_trial
        200000.0
    """

    def __init__(self, before: int, began: float) -> None:
        self._before = before
        self._began = began
        #: Trials of this run, hours since it began, and amounts by name.
        self._points: list[tuple[int, float, dict[str, float]]] = []

    def add(self, trials: int, time: float, amounts: Mapping[str, float]) -> None:
        """Append a measurement, unless it comes too soon after the one before.

        Args:
            trials: number of finished trials.
            time: in seconds.
            amounts: in bytes, by name.
        """
        trials -= self._before
        hours = (time - self._began) / 3600
        if not self._is_wanted(trials, hours):
            return
        if len(self._points) >= MAX_POINTS:
            half = MAX_POINTS // 2
            self._points = [*self._points[:half:2], *self._points[half:]]
        self._points.append((trials, hours, dict(amounts)))

    def _is_wanted(self, trials: int, hours: float) -> bool:
        """Whether a point is due, so that those that are kept are spread over the run."""
        if not self._points:
            return True
        last_trials, last_hours, _ = self._points[-1]
        return (
            trials - last_trials >= max(1, trials / MAX_POINTS)
            or hours - last_hours >= hours / MAX_POINTS
        )

    def grown(self, rule: Rule) -> dict[str, float]:
        """By how many bytes each amount of the latest point has grown since warm-up."""
        points = self._since_warm_up(rule)
        if not points:
            return {}
        first, last = points[0][2], points[-1][2]
        return {name: amount - first.get(name, 0) for name, amount in last.items()}

    def growth_of(self, name: str, rule: Rule) -> Growth:
        """How an amount grows since warm-up."""
        points = self._since_warm_up(rule)
        trials = [float(point[0]) for point in points]
        hours = [point[1] for point in points]
        amounts = [point[2].get(name, math.nan) for point in points]
        span = min(MIN_SLOPE_TRIALS, rule.min_trials)
        is_long = bool(trials) and trials[-1] - trials[0] >= span
        by_trial = trend(trials, amounts) if is_long else None
        by_hour = trend(hours, amounts)
        return Growth(
            None if by_trial is None else by_trial.slope,
            None if by_hour is None else by_hour.slope,
            _is_steady(by_trial, trials, rule.min_trials, rule.min_per_trial, rule.min_growth)
            or _is_steady(by_hour, hours, rule.min_hours, rule.min_per_hour, rule.min_growth),
        )

    def _since_warm_up(self, rule: Rule) -> list[tuple[int, float, dict[str, float]]]:
        if not self._points:
            return []
        trials, hours, _ = self._points[-1]
        # A run of few, long trials warms up by time.
        least = rule.warm_up_trials if trials >= 2 * rule.warm_up_trials else 0
        warm = [
            point
            for point in self._points
            if point[0] >= max(least, _WARM_UP * trials) and point[1] >= _WARM_UP * hours
        ]
        return warm if len(warm) >= MIN_POINTS else self._points[-MIN_POINTS:]


def _is_steady(
    found: Trend | None, x: list[float], span: float, least: float, least_growth: float
) -> bool:
    if found is None or not found.steady or x[-1] - x[0] < span:
        return False
    return (
        found.slope >= least
        and found.slope * (x[-1] - x[0]) >= least_growth
        and found.uncertainty <= _MAX_UNCERTAINTY * found.slope
    )
