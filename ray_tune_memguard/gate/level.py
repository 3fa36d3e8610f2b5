"""Finds out which trials have reached their size."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

#: A trial is level if its peak has not grown by this share for so long.
LEVEL_S, LEVEL_SHARE = 60.0, 0.02


@dataclass
class _Level:
    peak: float
    since: float


class LevelWatch:
    """Remembers when each running trial last grew.

    Args:
        clock: tells the time in seconds. Tests pass their own.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._levels: dict[str, _Level] = {}

    def update(self, peaks: Mapping[str, int]) -> frozenset[str]:
        """Take the peaks of all running trials.

        Args:
            peaks: bytes by trial id. A trial that is missing has ended.

        Returns:
            The trials whose memory is level.
        """
        now = self._clock()
        self._levels = {
            trial_id: self._levels.get(trial_id) or _Level(0.0, now) for trial_id in peaks
        }
        for trial_id, peak in peaks.items():
            level = self._levels[trial_id]
            if peak > level.peak * (1 + LEVEL_SHARE):
                level.peak, level.since = peak, now
        return frozenset(
            trial_id for trial_id, level in self._levels.items() if now - level.since >= LEVEL_S
        )
