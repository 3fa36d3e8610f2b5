"""The record of a run, and the figures that are read from it."""

from __future__ import annotations

import itertools
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.rivals import RAY

FINISHED, RESULTS, RSS, SECONDS, STORE = range(5)


def samples_path(record: Path) -> Path:
    """Return where the samples of a record are written while its sweep runs."""
    return record.with_suffix(".samples.jsonl")


@dataclass(frozen=True)
class Run:
    """What one rival did once: of a sweep, the record that ``benchmarks.sweep`` wrote.

    ``restore`` and ``overhead`` have records of their own.
    """

    record: dict[str, Any]

    @property
    def samples(self) -> list[list[float]]:
        """Return the samples: finished trials, results, RSS, seconds, object-store bytes."""
        return self.record["samples"]

    @property
    def fit_seconds(self) -> float:
        """Return how long ``fit()`` took."""
        return self.record["fit_s"]

    @property
    def loop_seconds(self) -> float:
        """Return how long the tuning loop took: callbacks' setup to the last trial's end."""
        return self.samples[-1][SECONDS]

    @property
    def fit_growth(self) -> float:
        """Return how much RSS rose from the loop's last step to the return of ``fit()``."""
        return self.record["rss_after_fit"] - self.samples[-1][RSS]

    def highest(self, column: int) -> float:
        """Return the highest value that was sampled of a column."""
        return max(sample[column] for sample in self.samples)

    def slope(self, y: int, x: int, last: float) -> float:
        """Return the least-squares slope of column ``y`` over ``x``, in the ``last`` part of it."""
        start = self.samples[-1][x] * (1.0 - last)
        points = [(s[x], s[y]) for s in self.samples if s[x] >= start]
        return statistics.linear_regression(*zip(*points, strict=True)).slope

    def trials_per_second(self, start: float, end: float) -> float:
        """Return the rate between two points of the sweep, given as parts of its trials."""
        total = self.samples[-1][FINISHED]
        inside = [s for s in self.samples if start * total <= s[FINISHED] <= end * total]
        first, last = inside[0], inside[-1]
        return (last[FINISHED] - first[FINISHED]) / (last[SECONDS] - first[SECONDS])

    def trial_seconds(self, parts: int = 60) -> list[tuple[float, float]]:
        """Return points of (finished trials, seconds per trial), means over parts of the sweep."""
        step = max(1, (len(self.samples) - 1) // parts)
        marks = self.samples[::step]
        pairs = itertools.pairwise(marks)
        return [
            (b[FINISHED], (b[SECONDS] - a[SECONDS]) / (b[FINISHED] - a[FINISHED]))
            for a, b in pairs
            if b[FINISHED] > a[FINISHED]
        ]

    def late_checkpoints(self, column: str) -> list[float]:
        """Return a column of the experiment checkpoints of the last tenth, the final one included.

        The final one is forced and is written when every trial has finished.
        """
        total = self.samples[-1][FINISHED]
        return [c[column] for c in self.record["checkpoints"] if c["finished"] >= 0.9 * total]

    def periodic_checkpoint(self, start: float, end: float) -> float:
        """Return the median seconds of one experiment checkpoint that came in its turn.

        Between two numbers of finished trials; if the sweep was too short for any, of the forced
        one at its end, which finds less that is new.
        """
        found = [c for c in self.record["checkpoints"] if start <= c["finished"] <= end]
        in_turn = [c["save_s"] for c in found if not c["forced"]]
        return statistics.median(in_turn or [self.record["checkpoints"][-1]["save_s"]])


@dataclass(frozen=True)
class Round:
    """The rivals' runs of the same sweep with the same seed, one after the other."""

    runs: dict[str, Run]

    def differences(self, rival: str) -> list[str]:
        """Return the names of the parts in which a rival's results differ from Ray's."""
        ray, other = (self.runs[name].record["outcome"] for name in (RAY, rival))
        return [name for name in ray if ray[name] != other[name]]
