"""The rows of a benchmark's table: a figure of both rivals with its bar, or a plain yes or no."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.record import Round, Run
from benchmarks.rivals import MEMGUARD, RAY

Format = Callable[[float], str]


def plain_bytes(value: float) -> str:
    """Format a number of bytes that is compared with a bar in bytes."""
    return f"{value:,.0f} B"


def mebibytes(value: float) -> str:
    """Format a number of bytes as MiB."""
    return f"{value / 2**20:,.1f} MiB"


def megabytes(value: float) -> str:
    """Format a number of bytes as MB."""
    return f"{value / 1e6:,.1f} MB"


def seconds(value: float) -> str:
    """Format a duration."""
    return f"{value * 1e3:,.0f} ms" if value < 1.0 else f"{value:,.1f} s"


def per_second(value: float) -> str:
    """Format a rate."""
    return f"{value:,.1f}/s"


def factor(value: float) -> str:
    """Format a ratio."""
    return f"{value:.3f}"


def milliseconds(value: float) -> str:
    """Format a duration that is short."""
    return f"{value * 1e3:,.2f} ms"


def microseconds(value: float) -> str:
    """Format a duration that is very short."""
    return f"{value * 1e6:,.0f} µs"


@dataclass(frozen=True)
class Bar:
    """What the benchmark promises of MemGuard's median."""

    limit: float
    at_least: bool = False

    def met(self, figure: Figure) -> bool:
        """Return whether the figure keeps the promise."""
        value = statistics.median(figure.values[MEMGUARD])
        return value >= self.limit if self.at_least else value <= self.limit

    def describe(self, show: Format) -> str:
        """Return the promise in words."""
        bound = "at least" if self.at_least else "at most"
        return f"{bound} {show(self.limit)}"


@dataclass(frozen=True)
class Figure:
    """One figure per run, by rival."""

    label: str
    show: Format
    values: dict[str, list[float]]
    bar: Bar | None = None

    @property
    def ratio(self) -> float | None:
        """Return the median of the rounds' ratios, MemGuard by Ray; None if one is not > 0."""
        ray, memguard = self.values.get(RAY, []), self.values[MEMGUARD]
        if not ray or min(*ray, *memguard) <= 0:
            return None
        return statistics.median(m / r for r, m in zip(ray, memguard, strict=True))

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
    values: dict[str, list[str]]
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


def by_rival(rounds: list[Round], read: Callable[[Run], Any]) -> dict[str, list[Any]]:
    """Read the same from all rivals' runs."""
    return {name: [read(one.runs[name]) for one in rounds] for name in rounds[0].runs}


def figure(
    label: str,
    show: Format,
    rounds: list[Round],
    read: Callable[[Run], float],
    bar: Bar | None = None,
) -> Figure:
    """Read the same figure from all rivals' runs."""
    return Figure(label, show, by_rival(rounds, read), bar)


def memguards(
    label: str,
    show: Format,
    rounds: list[Round],
    read: Callable[[Run], float],
    bar: Bar | None = None,
) -> Figure:
    """Read a figure from MemGuard's runs that the others do not have."""
    return Figure(label, show, {MEMGUARD: [read(one.runs[MEMGUARD]) for one in rounds]}, bar)


def same_results(rounds: list[Round]) -> Check:
    """Claim that MemGuard returned what Ray did: count, errors, best, DataFrame, single results.

    Of the others it says in what they differ.
    """

    def describe(one: Round, rival: str) -> str:
        total = one.runs[rival].record["outcome"]["len"]
        different = one.differences(rival)
        return f"{total:,}, differ: {', '.join(different)}" if different else f"{total:,}, equal"

    values = {name: [describe(one, name) for one in rounds] for name in rounds[0].runs}
    holds = not any(one.differences(MEMGUARD) for one in rounds)
    return Check("results, against Ray's", values, holds)


def as_json(row: Row) -> dict[str, Any]:
    """Return the row for the results file."""
    common = {"label": row.label, "values": row.values, "bar": row.bar_text, "passed": row.passed}
    return common | {"ratio": row.ratio} if isinstance(row, Figure) else common
