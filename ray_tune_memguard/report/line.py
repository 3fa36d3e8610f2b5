"""Fits a straight line to points by least squares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

#: Two-sided 95 % of a normal distribution.
Z_95 = 1.96


@dataclass(frozen=True)
class Line:
    """A slope, with half the width of its 95 % interval (normal errors)."""

    slope: float
    uncertainty: float


def fit_line(x: Sequence[float], y: Sequence[float]) -> Line | None:
    """The line with the least squared error in ``y``; None if ``x`` does not vary.

    Points that are NaN are ignored. With two points the uncertainty is infinite.
    """
    points = [(a, b) for a, b in zip(x, y, strict=True) if math.isfinite(a) and math.isfinite(b)]
    count = len(points)
    mean_x = sum(a for a, _ in points) / max(1, count)
    mean_y = sum(b for _, b in points) / max(1, count)
    spread = sum((a - mean_x) ** 2 for a, _ in points)
    if spread == 0:
        return None
    slope = sum((a - mean_x) * (b - mean_y) for a, b in points) / spread
    if count < 3:
        return Line(slope, math.inf)
    rest = sum((b - mean_y - slope * (a - mean_x)) ** 2 for a, b in points)
    return Line(slope, Z_95 * math.sqrt(rest / (count - 2) / spread))
