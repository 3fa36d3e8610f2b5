"""Writes durations and series of experiments for people."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ray_tune_memguard.report.texts import UNKNOWN

_BARS = "▁▂▃▄▅▆▇█"


def duration(seconds: float) -> str:
    """Seconds as ``1 h 02 min``, ``3 min 20 s`` or ``4.2 s``.

    Examples:
        >>> duration(3720), duration(200), duration(4.21)
        ('1 h 02 min', '3 min 20 s', '4.2 s')
    """
    if not math.isfinite(seconds) or seconds < 0:
        return UNKNOWN
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def sparkline(values: Sequence[float]) -> str:
    """A line of bars from zero to the largest value.

    Examples:
        >>> sparkline([0, 4, 8])
        '▁▅█'
    """
    highest = max(values, default=0)
    if highest <= 0:
        return _BARS[0] * len(values)
    return "".join(_BARS[round(value / highest * (len(_BARS) - 1))] for value in values)


def spread(count: int, wanted: int) -> list[int]:
    """At most ``wanted`` of the numbers from 0 below ``count``, evenly, the last one included.

    Examples:
        >>> spread(9, 3), spread(2, 3)
        ([0, 4, 8], [0, 1])
    """
    if count <= wanted:
        return list(range(count))
    return [round(index * (count - 1) / (wanted - 1)) for index in range(wanted)]
