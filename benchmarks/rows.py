"""The rows of a benchmark's table: a figure of both rivals with its bar, or a plain yes or no."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.record import Pair, Run

Format = Callable[[float], str]


def plain_bytes(value: float) -> str:
    """Format a number of bytes that is compared with a bar in bytes."""
    return f"{value:,.0f} B"


def mebibytes(value: float) -> str:
    """Format a number of bytes as MiB."""
    return f"{value / 2**20:,.1f} MiB"


def seconds(value: float) -> str:
    """Format a duration."""
    return f"{value * 1e3:,.0f} ms" if value < 1.0 else f"{value:,.1f} s"


def per_second(value: float) -> str:
    """Format a rate."""
    return f"{value:,.1f}/s"


def factor(value: float) -> str:
    """Format a ratio."""
    return f"{value:.3f}"


@dataclass(frozen=True)
class Bar:
    """What the benchmark promises: of MemGuard's median, or of the median ratio of the pairs."""

    limit: float
    at_least: bool = False
    of_ratio: bool = False

    def met(self, figure: Figure) -> bool:
        """Return whether the figure keeps the promise."""
        ratio = figure.ratio
        value = ratio if self.of_ratio else statistics.median(figure.memguard)
        if value is None:
            return False
        return value >= self.limit if self.at_least else value <= self.limit

    def describe(self, show: Format) -> str:
        """Return the promise in words."""
        bound = "at least" if self.at_least else "at most"
        return f"ratio {bound} {self.limit:g}" if self.of_ratio else f"{bound} {show(self.limit)}"


@dataclass(frozen=True)
class Figure:
    """One figure per run and rival."""

    label: str
    show: Format
    ray: list[float]
    memguard: list[float]
    bar: Bar | None = None

    @property
    def ratio(self) -> float | None:
        """Return the median of the pairs' ratios, MemGuard by Ray; None if a figure is not > 0."""
        if min(*self.ray, *self.memguard) <= 0:
            return None
        return statistics.median(m / r for r, m in zip(self.ray, self.memguard, strict=True))

    @property
    def bar_text(self) -> str:
        """Return the bar in words."""
        return self.bar.describe(self.show) if self.bar else ""

    @property
    def passed(self) -> bool | None:
        """Return whether the bar is met, None without one."""
        return self.bar.met(self) if self.bar else None


@dataclass(frozen=True)
class Check:
    """A claim that is true or not in each run. Without ``is_bar`` it is for information."""

    label: str
    ray: list[str]
    memguard: list[str]
    holds: bool
    is_bar: bool = True

    @property
    def bar_text(self) -> str:
        """Return the bar in words."""
        return "yes" if self.is_bar else ""

    @property
    def passed(self) -> bool | None:
        """Return whether the claim holds, None where it is for information."""
        return self.holds if self.is_bar else None


Row = Figure | Check


def figure(
    label: str,
    show: Format,
    pairs: list[Pair],
    read: Callable[[Run], float],
    bar: Bar | None = None,
) -> Figure:
    """Read the same figure from both rivals' runs."""
    return Figure(label, show, [read(p.ray) for p in pairs], [read(p.memguard) for p in pairs], bar)


def same_results(pairs: list[Pair]) -> Check:
    """Claim that both rivals returned the same: count, errors, best, DataFrame, single results."""
    different = sorted({name for pair in pairs for name in pair.differences()})

    def counts(runs: list[Run]) -> list[str]:
        return [f"{run.record['outcome']['len']:,} results" for run in runs]

    verdict = f"differ: {', '.join(different)}" if different else "equal"
    return Check(
        f"results of the two ({verdict})",
        counts([pair.ray for pair in pairs]),
        counts([pair.memguard for pair in pairs]),
        holds=not different,
    )


def as_json(row: Row) -> dict[str, Any]:
    """Return the row for the results file."""
    common = {"label": row.label, "ray": row.ray, "memguard": row.memguard}
    common |= {"bar": row.bar_text, "passed": row.passed}
    return common | {"ratio": row.ratio} if isinstance(row, Figure) else common
