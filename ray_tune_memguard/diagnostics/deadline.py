"""A limit of time for a part of a measurement."""

from __future__ import annotations

import time

#: On a busy machine the same work takes longer, and so does everything else. At most so many times.
MAX_SLOWDOWN = 5.0


class Deadline:
    """Is over after so much CPU time of this thread, or five times as much wall-clock time.

    Args:
        seconds: of CPU time.
    """

    def __init__(self, seconds: float = float("inf")) -> None:
        self._cpu = time.thread_time() + seconds
        self._wall = time.perf_counter() + MAX_SLOWDOWN * seconds

    def left(self) -> float:
        """Seconds of CPU time that are left; negative once it is over."""
        wall = (self._wall - time.perf_counter()) / MAX_SLOWDOWN
        return min(self._cpu - time.thread_time(), wall)

    def is_over(self) -> bool:
        return self.left() < 0
