"""Decides whether a series grows steadily, and estimates its slope with an interval.

The slope is Theil and Sen's: the median of the slopes between all pairs of points, which one step
or one outlier does not move. Its interval is Sen's, from the variance of Kendall's rank statistic
(P. K. Sen, "Estimates of the regression coefficient based on Kendall's tau", JASA 63, 1968).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ray_tune_memguard.report.line import Z_95

#: The number of points that a trend needs.
MIN_POINTS = 5
#: Each half must have this share of the slope of the whole series; otherwise it was a step.
_MIN_SHARE_OF_EACH_HALF = 0.3


@dataclass(frozen=True)
class Trend:
    """Slope in units of y per unit of x; ``low`` and ``high`` are its 95 % interval."""

    slope: float
    low: float
    high: float
    #: Whether it grows: the interval is above zero, and so is the slope of each half.
    steady: bool

    @property
    def uncertainty(self) -> float:
        """Half the width of the interval."""
        return (self.high - self.low) / 2


def trend(x: Sequence[float], y: Sequence[float], fewest: int = MIN_POINTS) -> Trend | None:
    """The trend of ``y`` over ``x``; points that are NaN are ignored.

    None with fewer than ``fewest`` points, or if x does not vary. For four increasing points the
    interval is a 92 % interval; for fewer it means little.
    """
    xs, ys = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    known = np.isfinite(xs) & np.isfinite(ys)
    xs, ys = xs[known], ys[known]
    count = len(xs)
    if count < fewest or np.ptp(xs) == 0:
        return None
    slopes = _pair_slopes(xs, ys)
    spread = Z_95 * math.sqrt(count * (count - 1) * (2 * count + 5) / 18)
    last = len(slopes) - 1
    low = slopes[max(0, math.floor((last - spread) / 2))]
    high = slopes[min(last, math.ceil((last + spread) / 2))]
    slope = float(np.median(slopes))
    halves = (slice(0, (count + 1) // 2), slice(count // 2, count))
    grows = all(
        len(found := _pair_slopes(xs[half], ys[half])) > 0
        and np.median(found) >= _MIN_SHARE_OF_EACH_HALF * slope
        for half in halves
    )
    return Trend(slope, float(low), float(high), bool(low > 0 and grows))


def _pair_slopes(xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
    first, second = np.triu_indices(len(xs), k=1)
    run = xs[second] - xs[first]
    apart = run != 0
    slopes = (ys[second] - ys[first])[apart] / run[apart]
    slopes.sort()
    return slopes
