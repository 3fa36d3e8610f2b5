"""When a callback looks again: not too often, and not for too long."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

#: Seconds after which a look is due although too few trials have finished.
_MAX_SECONDS = 60.0
#: Share of the wall-clock time that looks may take, and seconds that are always allowed.
_BUDGET = 0.001
_ALLOWANCE_S = 0.1


class Pace:
    """How often a callback looks in one run.

    Args:
        every_seconds: seconds between two looks, at least; None for no looks.

    Attributes:
        began: when the run began, by the monotonic clock.
        before: number of trials that had finished before the run.
        looks: number of looks.
        spent_s: seconds that they took.
        first_s: seconds of the first one, which imports what it needs and finds the processes.
    """

    def __init__(self, every_seconds: float | None) -> None:
        self._every_seconds = every_seconds
        self.began = self._looked_at = time.monotonic()
        self.before = self._looked_trials = 0
        self.looks = 0
        self.spent_s = self.first_s = 0.0

    @property
    def seconds_per_look(self) -> float:
        """What a look takes on average, without the first one; 0 before the second."""
        return (self.spent_s - self.first_s) / (self.looks - 1) if self.looks > 1 else 0.0

    def count_from(self, finished: int) -> None:
        """Begin with the trials that had finished before the run."""
        self.before = self._looked_trials = finished

    def is_due(self, finished: int, every_trials: int) -> bool:
        """Whether to look now.

        Args:
            finished: number of finished trials.
            every_trials: that finish between two looks, unless a minute passes.
        """
        if self._every_seconds is None:
            return False
        now = time.monotonic()
        waited = now - self._looked_at
        if waited < self._every_seconds:
            return False
        if finished - self._looked_trials < every_trials and waited < _MAX_SECONDS:
            return False
        return self.spent_s <= _ALLOWANCE_S + _BUDGET * (now - self.began)

    def count_look(self, finished: int) -> None:
        """Count a look that begins now."""
        if self.looks == 1:
            self.first_s = self.spent_s
        self._looked_at = time.monotonic()
        self._looked_trials = finished
        self.looks += 1

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Count the time of what is done meanwhile."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.spent_s += time.perf_counter() - began
