"""Series of the memory of several processes, and which of them grow steadily."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ray_tune_memguard.diagnostics.trend import MIN_POINTS, Trend, trend
from ray_tune_memguard.report.series import MIN_SLOPE_TRIALS, WARM_UP_TRIALS

#: Points in memory. If there are more, every second of the older half is dropped.
MAX_POINTS = 40
#: The share of a run that is warm-up; at least ``WARM_UP_TRIALS`` are.
_WARM_UP = 0.2
#: Trials, or hours, after warm-up from which growth is judged.
_MIN_TRIALS = 200
_MIN_HOURS = 0.5
#: Bytes below which growth is not named.
_MIN_PER_TRIAL = 4096.0
_MIN_PER_HOUR = 16.0 * 2**20
_MIN_GROWTH = 2**20
_MAX_UNCERTAINTY = 0.5


@dataclass(frozen=True)
class ProcessGrowth:
    """One process after the latest measurement. Amounts are in bytes.

    Attributes:
        name: the process.
        rss: its resident memory.
        anonymous: of that, what belongs to it alone.
        per_trial: by how much its RSS grows for each trial; None if that is not known.
        per_hour: by how much it grows in an hour; None if that is not known.
        is_growing: whether it grows steadily, and by an amount that matters.
    """

    name: str
    rss: int
    anonymous: int
    per_trial: float | None
    per_hour: float | None
    is_growing: bool


class ProcessSeries:
    """The memory of processes over a run, bounded in memory.

    Args:
        before: number of trials that had finished before the run.
        began: when the run began, in seconds.
    """

    def __init__(self, before: int, began: float) -> None:
        self._before = before
        self._began = began
        #: Trials of this run, hours since it began, and RSS by name.
        self._points: list[tuple[int, float, dict[str, int]]] = []
        self._last: dict[str, tuple[int, int]] = {}

    def add(self, trials: int, time: float, memory: Mapping[str, tuple[int, int]]) -> None:
        """Append a measurement.

        Args:
            trials: number of finished trials.
            time: in seconds.
            memory: RSS and anonymous memory by process.
        """
        self._last = dict(memory)
        hours = (time - self._began) / 3600
        if not self._is_wanted(trials - self._before, hours):
            return
        if len(self._points) >= MAX_POINTS:
            half = MAX_POINTS // 2
            self._points = [*self._points[:half:2], *self._points[half:]]
        rss = {name: values[0] for name, values in memory.items()}
        self._points.append((trials - self._before, hours, rss))

    def _is_wanted(self, trials: int, hours: float) -> bool:
        """Whether a point is due, so that those that are kept are spread over the run."""
        if not self._points:
            return True
        last_trials, last_hours, _ = self._points[-1]
        return (
            trials - last_trials >= max(1, trials / MAX_POINTS)
            or hours - last_hours >= hours / MAX_POINTS
        )

    def growth(self) -> list[ProcessGrowth]:
        """All processes of the latest measurement, the one that grows most first."""
        points = self._since_warm_up()
        found = [self._growth_of(name, points) for name in self._last]
        return sorted(found, key=lambda one: -(one.per_hour or 0.0))

    def growing(self) -> list[ProcessGrowth]:
        """Those that grow steadily. It fits no line to a process that has grown by little."""
        points = self._since_warm_up()
        if not points:
            return []
        first, last = points[0][2], points[-1][2]
        names = (name for name in last if last[name] - first.get(name, 0) >= _MIN_GROWTH / 2)
        found = (self._growth_of(name, points) for name in names if name in self._last)
        return [process for process in found if process.is_growing]

    def _growth_of(
        self, name: str, points: list[tuple[int, float, dict[str, int]]]
    ) -> ProcessGrowth:
        trials = [float(point[0]) for point in points]
        hours = [point[1] for point in points]
        values = [float(point[2].get(name, math.nan)) for point in points]
        is_long = bool(trials) and trials[-1] - trials[0] >= MIN_SLOPE_TRIALS
        by_trial = trend(trials, values) if is_long else None
        by_hour = trend(hours, values)
        rss, anonymous = self._last[name]
        return ProcessGrowth(
            name,
            rss,
            anonymous,
            None if by_trial is None else by_trial.slope,
            None if by_hour is None else by_hour.slope,
            _is_growing(by_trial, trials, _MIN_TRIALS, _MIN_PER_TRIAL)
            or _is_growing(by_hour, hours, _MIN_HOURS, _MIN_PER_HOUR),
        )

    def _since_warm_up(self) -> list[tuple[int, float, dict[str, int]]]:
        if not self._points:
            return []
        trials, hours, _ = self._points[-1]
        # A run of few, long trials warms up by time.
        least = WARM_UP_TRIALS if trials >= 2 * WARM_UP_TRIALS else 0
        warm = [
            point
            for point in self._points
            if point[0] >= max(least, _WARM_UP * trials) and point[1] >= _WARM_UP * hours
        ]
        return warm if len(warm) >= MIN_POINTS else self._points[-MIN_POINTS:]


def _is_growing(found: Trend | None, x: list[float], span: float, least: float) -> bool:
    if found is None or not found.steady or x[-1] - x[0] < span:
        return False
    grown = found.slope * (x[-1] - x[0])
    return (
        found.slope >= least
        and grown >= _MIN_GROWTH
        and found.uncertainty <= _MAX_UNCERTAINTY * found.slope
    )
