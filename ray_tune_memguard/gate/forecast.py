"""Estimates how much memory running trials will still take, and how much the next ones will.

A trial will grow to its peak. Its peak is one of those of the finished trials, but not below what
the trial has used already. So the growth that is still to come is the mean of these peaks less what
the trial uses now, and its uncertainty is their variance. Variances of independent trials add up:
of many trials only a few are unusually large at the same time, so reserving the largest peak for
each would leave memory unused. :class:`Forecast` reserves the means and two standard deviations of
the sum, which 98 % of such sums stay below.

Two cases know less, and reserve the largest peak seen for each trial: fewer than
:data:`MIN_PEAKS` trials have finished (the running ones count as well then), or the user has given
the memory of a trial, which is the least that is reserved.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence

from ray_tune_memguard.gate.interfaces import TrialUsage

#: With fewer peaks than this the largest one counts.
MIN_PEAKS = 8
#: Standard deviations that are reserved: 98 % of sums of many peaks are below.
DEVIATIONS = 2.0


class Forecast:
    """The memory that running trials and further ones will take beyond what is used now.

    Args:
        running: the running trials, measured or not.
        finished_peaks: the peaks of finished trials in bytes.
        memory_per_trial: the memory of a trial in bytes that the user has given, if so.

    Examples:
        Three trials have finished at 300 MiB; one runs and uses 100 MiB:

        >>> from ray_tune_memguard.gate.interfaces import TrialUsage
        >>> running = [TrialUsage(bytes=100, peak_bytes=100)]
        >>> forecast = Forecast(running, [300, 300, 300])
        >>> forecast.growth(), forecast.growth(more=1), forecast.next_peak
        (200, 500, 300)
    """

    def __init__(
        self,
        running: Sequence[TrialUsage],
        finished_peaks: Sequence[int],
        memory_per_trial: int | None = None,
    ) -> None:
        floor = memory_per_trial or 0
        peaks = [max(peak, floor) for peak in finished_peaks]
        self._mean = self._variance = 0.0
        if len(peaks) < MIN_PEAKS:
            peaks += [max(trial.peak_bytes, floor) for trial in running if trial.peak_bytes]
            largest = max(peaks, default=floor)
            for trial in running:
                self._mean += max(largest, trial.peak_bytes) - trial.bytes
            self._of_one = (float(largest), 0.0)
        else:
            tails = _Tails(sorted(peaks))
            for trial in running:
                mean, variance = tails.above(trial.peak_bytes)
                self._mean += mean - trial.bytes
                self._variance += variance
            self._of_one = tails.above(0)

    @property
    def next_peak(self) -> int:
        """The peak that is expected of the next trial, alone."""
        mean, variance = self._of_one
        return int(mean + DEVIATIONS * math.sqrt(variance))

    @property
    def is_blind(self) -> bool:
        """Whether nothing is known about the size of a trial."""
        return not self._of_one[0]

    def growth(self, more: int = 0) -> int:
        """Bytes that the running trials and further ones will take beyond what is used now.

        Args:
            more: further trials.
        """
        mean, variance = self._of_one
        spread = math.sqrt(self._variance + more * variance)
        return max(0, int(self._mean + more * mean + DEVIATIONS * spread))


class _Tails:
    """Mean and variance of the peaks above a size."""

    def __init__(self, peaks: list[int]) -> None:
        self._peaks = peaks
        self._sums = [0, *itertools.accumulate(peaks)]
        self._squares = [0, *itertools.accumulate(peak * peak for peak in peaks)]

    def above(self, size: int) -> tuple[float, float]:
        """Of the peaks that are at least ``size``; of ``size`` itself if there are none."""
        start = bisect.bisect_left(self._peaks, size)
        count = len(self._peaks) - start
        if not count:
            return float(size), 0.0
        mean = (self._sums[-1] - self._sums[start]) / count
        square = (self._squares[-1] - self._squares[start]) / count
        return mean, max(0.0, square - mean * mean)
