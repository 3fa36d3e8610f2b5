"""Series of many quantities over a run: bounded in memory, complete on disk."""

from __future__ import annotations

import math
import os
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ray_tune_memguard.diagnostics.trend import MIN_POINTS, Trend, trend
from ray_tune_memguard.report.line import Line, fit_line
from ray_tune_memguard.report.series import (
    MIN_SLOPE_TRIALS,
    RESULTS_PER_TRIAL,
    WARM_UP_TRIALS,
)
from ray_tune_memguard.report.series_file import read_series

if TYPE_CHECKING:
    import pandas as pd

#: Points of each series in memory. If there are more, every second of the older half is dropped.
MAX_POINTS = 40
#: Series in memory. Further series are on disk only.
MAX_SERIES = 500
#: The share of a run that is warm-up; at least `WARM_UP_TRIALS` are.
WARM_UP = 0.2
#: The minimal number of trials in which growth can be distinguished from variation.
MIN_SPAN = 200
#: Samples that the trend of a type needs; few, because numbers of objects have no noise.
MIN_COUNTS = 4
_IN_A_TRIAL = {"trial": 1, "result": RESULTS_PER_TRIAL}
#: Trials with at least this number of results each are long.
_MIN_RESULTS_OF_A_LONG_TRIAL = 200
FILE_PATTERN = "growth-*.csv"
#: The kind of a retention site that there was no time to measure.
UNMEASURED = "unmeasured"
# Sites may be many, one for each global of the user's code; other kinds are few.
_OF_SITES = ("holder", "entries", UNMEASURED)


@dataclass(frozen=True)
class GrowthRow:
    """One quantity at one moment.

    Attributes:
        time: seconds since the epoch.
        trials: number of finished trials.
        results: number of results.
        kind: ``part`` (a category of the driver's RSS), ``holder`` (a retention site),
            ``unmeasured`` (a retention site that there was no time to measure), ``process``
            (another process of Ray's) or ``type``.
        name: the name of the quantity.
        value: bytes; for a type, the number of its objects; of what was not measured, the bytes
            that it had before, or 0.
    """

    time: float
    trials: int
    results: int
    kind: str
    name: str
    value: float


class GrowthSeries:
    """Quantities by kind and name, one value a sample, over finished trials and results.

    Args:
        before: number of trials that had finished before this run.
        min_span: trials after warm-up from which on growth can be judged.
    """

    def __init__(self, before: int = 0, min_span: int = MIN_SPAN) -> None:
        self.before = before
        self._min_span = min_span
        self.trials = array("q")
        self.results = array("q")
        self._values: dict[tuple[str, str], array[float]] = {}
        # Whether the last sample was taken early, so that the next one replaces it.
        self._is_provisional = False

    def wants(self, trials: int, results: int) -> bool:
        """Whether a sample is due, so that the kept samples are spread evenly over the run."""
        if not self.trials:
            return True
        last = len(self.trials) - 1 - self._is_provisional
        if last < 0:
            return True
        done = self.progress(trials, results)
        since = done - self.progress(self.trials[last], self.results[last])
        return since > 0 and since >= done / MAX_POINTS

    def progress(self, trials: int, results: int) -> float:
        """The number of trials that this run has finished; at least results / 20."""
        return max(trials - self.before, results / RESULTS_PER_TRIAL)

    def add(self, trials: int, results: int, values: Mapping[tuple[str, str], float]) -> None:
        """Append a sample. Quantities that it lacks, or that are NaN, are unknown."""
        is_wanted = self.wants(trials, results)
        if self._is_provisional:
            self._drop_last()
        self._is_provisional = not is_wanted
        if len(self.trials) >= MAX_POINTS:
            self._thin()
        count = len(self.trials)
        self.trials.append(trials)
        self.results.append(results)
        if len(self._values) >= MAX_SERIES and values.keys() - self._values.keys():
            self._make_room()
        for key, value in values.items():
            column = self._values.get(key)
            if column is None:
                if key[0] in _OF_SITES and len(self._values) >= MAX_SERIES:
                    continue
                # Allocated completely, so that the series itself does not grow.
                column = self._values[key] = array("d", [math.nan]) * MAX_POINTS
            column[count] = value

    def _make_room(self) -> None:
        for key, column in list(self._values.items()):
            known = [value for value in column if not math.isnan(value)]
            if key[0] in ("holder", "entries") and len(known) > 1 and max(known) <= known[0]:
                del self._values[key]  # It does not grow.

    def _drop_last(self) -> None:
        self.trials.pop()
        self.results.pop()
        for column in self._values.values():
            column[len(self.trials)] = math.nan

    def complete(self, kind: str, name: str, at: tuple[int, int], value: float) -> None:
        """Set the unknown value of a quantity at an earlier sample, if that is still kept.

        Args:
            kind, name: the quantity.
            at: trials and results of the sample.
            value: the value.
        """
        column = self._values.get((kind, name))
        if column is None:
            return
        for place, then in enumerate(zip(self.trials, self.results, strict=True)):
            if then == at and math.isnan(column[place]):
                column[place] = value

    def drop(self, kind: str, name: str) -> None:
        """Forget a series."""
        self._values.pop((kind, name), None)

    def _thin(self) -> None:
        """Drop every second sample of the older half."""
        kept = [*range(0, MAX_POINTS // 2, 2), *range(MAX_POINTS // 2, MAX_POINTS)]
        self.trials = array("q", (self.trials[i] for i in kept))
        self.results = array("q", (self.results[i] for i in kept))
        unknown = array("d", [math.nan]) * (MAX_POINTS - len(kept))
        for key, column in list(self._values.items()):
            thinned = array("d", (column[i] for i in kept))
            if all(map(math.isnan, thinned)):  # It no longer exists.
                del self._values[key]
            column[:] = thinned + unknown

    def names(self, kind: str) -> list[str]:
        return [name for of, name in self._values if of == kind]

    def last(self, kind: str, name: str) -> float:
        """The latest known value; NaN if there is none."""
        column = self._values.get((kind, name), ())
        return next((value for value in reversed(column) if not math.isnan(value)), math.nan)

    def is_in_last(self, kind: str, name: str) -> bool:
        """Whether the last sample has this quantity."""
        column = self._values.get((kind, name))
        return column is not None and not math.isnan(column[len(self.trials) - 1])

    def count(self, kind: str, name: str) -> int:
        """The number of samples since warm-up that have this quantity."""
        column = self._values.get((kind, name))
        if column is None:
            return 0
        return sum(not math.isnan(value) for value in self._since_warm_up(column, self.unit)[1])

    @property
    def unit(self) -> str:
        """The unit of growth: ``trial``, or ``result`` in a run of few, long trials."""
        if self._is_long("trial") or not self._is_long("result"):
            return "trial"
        # Otherwise the run is only young.
        is_long_trials = self._span("result") >= _MIN_RESULTS_OF_A_LONG_TRIAL * self._span("trial")
        return "result" if is_long_trials else "trial"

    @property
    def span(self) -> int:
        """Trials (or results, by :attr:`unit`) from the first sample after warm-up to the last."""
        return self._span(self.unit)

    @property
    def is_long_enough(self) -> bool:
        """Whether growth can be distinguished from variation."""
        return self.samples >= MIN_POINTS and self._is_long(self.unit)

    @property
    def samples(self) -> int:
        """The number of samples since warm-up."""
        return len(self.trials) - self._begin(self.unit) if self.trials else 0

    def grown(self, kind: str, name: str) -> tuple[float, float]:
        """By how much a quantity grew from its first sample since warm-up to its last one.

        Returns:
            The difference, and the slope per :attr:`unit`; zeros if it has not two samples.
        """
        column = self._values.get((kind, name))
        if column is None:
            return 0.0, 0.0
        along, values = self._since_warm_up(column, self.unit)
        known = [(at, value) for at, value in zip(along, values, strict=True) if value == value]
        if len(known) < 2 or known[-1][0] == known[0][0]:
            return 0.0, 0.0
        grown = known[-1][1] - known[0][1]
        return grown, grown / (known[-1][0] - known[0][0])

    def trend(self, kind: str, name: str) -> Trend | None:
        """The trend since warm-up, per :attr:`unit`."""
        column = self._values.get((kind, name))
        if column is None:
            return None
        # Types are counted in some samples only.
        fewest = MIN_COUNTS if kind == "type" else MIN_POINTS
        return trend(*self._since_warm_up(column, self.unit), fewest)

    def extent(self, kind: str, name: str) -> tuple[float, float]:
        """The minimum and the maximum of a quantity since warm-up; zeros if unknown."""
        column = self._values.get((kind, name), ())
        known = [value for value in column[self._begin(self.unit) :] if not math.isnan(value)]
        return (min(known), max(known)) if known else (0.0, 0.0)

    def line(self, kind: str, name: str, unit: str | None = None) -> Line | None:
        """The least-squares line. The slopes of parts add up to the slope of the whole.

        None if there are so few trials (or results) that it would be noise.
        """
        unit = unit or self.unit
        column = self._values.get((kind, name))
        if column is None or self._span(unit) < MIN_SLOPE_TRIALS:
            return None
        along, values = self._since_warm_up(column, unit)
        if sum(not math.isnan(value) for value in values) < MIN_POINTS:
            return None
        return fit_line(along, values)

    def _since_warm_up(
        self, column: array[float], unit: str
    ) -> tuple[Sequence[int], Sequence[float]]:
        begin = self._begin(unit)
        return self._along(unit)[begin:], column[begin : len(self.trials)]

    def _along(self, unit: str) -> array[int]:
        return self.trials if unit == "trial" else self.results

    def _begin(self, unit: str) -> int:
        """The first sample after warm-up, or an earlier one if there are few later ones."""
        along = self._along(unit)
        before = self.before if unit == "trial" else 0
        run = along[-1] - before
        least = WARM_UP_TRIALS * _IN_A_TRIAL[unit]
        least = least if run >= 3 * least else 0

        def first(after: float) -> int:
            return next((i for i, at in enumerate(along) if at - before >= after), 0)

        warm = first(max(least, WARM_UP * run))
        return max(first(least), min(warm, len(along) - MIN_POINTS))

    def _is_long(self, unit: str) -> bool:
        return self._span(unit) >= self._min_span * _IN_A_TRIAL[unit]

    def _span(self, unit: str) -> int:
        along = self._along(unit)
        return along[-1] - along[self._begin(unit)] if along else 0


def read_growth(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Read all samples of :class:`ray_tune_memguard.ObjectGrowthTracker` in an experiment.

    Args:
        path: the experiment's directory (``ResultGrid.experiment_path``, on a local disk), the
            ``.memguard`` directory in it, or one ``growth-*.csv`` file.

    Returns:
        A DataFrame with a row for each quantity of each sample, in order of time. The columns are
        the fields of :class:`GrowthRow`: ``time`` (seconds since the epoch), ``trials`` and
        ``results`` (finished and received so far), ``kind``, ``name`` and ``value`` (bytes, or
        number of objects of a type).

    Raises:
        FileNotFoundError: there are no samples.

    Examples:
        >>> from ray_tune_memguard import read_growth
        >>> growth = read_growth(experiment)
        >>> growth.loc[growth["name"] == "MyCallback.history", "value"].tolist()
        [1024000.0, 2048000.0]
    """
    return read_series(path, FILE_PATTERN, GrowthRow, "growth series")
