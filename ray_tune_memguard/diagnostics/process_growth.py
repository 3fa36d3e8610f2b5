"""Series of the memory of several processes, and which of them grow steadily."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ray_tune_memguard.diagnostics.steady_growth import GrowthSeries, Rule
from ray_tune_memguard.report.series import WARM_UP_TRIALS

_RULE = Rule(
    warm_up_trials=WARM_UP_TRIALS,
    min_trials=200,
    min_per_trial=4096.0,
    min_hours=0.5,
    min_per_hour=16.0 * 2**20,
    min_growth=2**20,
)


@dataclass(frozen=True)
class ProcessGrowth:
    """One process after the latest measurement. Amounts are in bytes.

    Attributes:
        name: the process.
        rss: its resident memory.
        anonymous: of that, what belongs to it alone.
        per_trial: by how much its anonymous memory grows for each trial; None if that is not known.
        per_hour: by how much that grows in an hour; None if that is not known.
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
        self._series = GrowthSeries(before, began)
        self._last: dict[str, tuple[int, int]] = {}

    def add(self, trials: int, time: float, memory: Mapping[str, tuple[int, int]]) -> None:
        """Append a measurement.

        Args:
            trials: number of finished trials.
            time: in seconds.
            memory: RSS and anonymous memory by process.
        """
        self._last = dict(memory)
        # RSS has the pages of the object store that a raylet has written.
        self._series.add(trials, time, {name: own for name, (_, own) in memory.items()})

    def latest(self) -> dict[str, tuple[int, int]]:
        """RSS and anonymous memory in bytes by process, at the latest measurement."""
        return dict(self._last)

    def growth(self) -> list[ProcessGrowth]:
        """All processes of the latest measurement, the one that grows most first."""
        return sorted(map(self._growth_of, self._last), key=lambda one: -(one.per_hour or 0.0))

    def growing(self) -> list[ProcessGrowth]:
        """Those that grow steadily. It fits no line to a process that has grown by little."""
        grown = self._series.grown(_RULE)
        names = (name for name, by in grown.items() if by >= _RULE.min_growth / 2)
        found = (self._growth_of(name) for name in names if name in self._last)
        return [process for process in found if process.is_growing]

    def _growth_of(self, name: str) -> ProcessGrowth:
        rss, anonymous = self._last[name]
        growth = self._series.growth_of(name, _RULE)
        return ProcessGrowth(
            name, rss, anonymous, growth.per_trial, growth.per_hour, growth.is_steady
        )
