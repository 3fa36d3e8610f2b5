"""The rows of a scenario's table: what is read of each run, how it is shown, and its threshold."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from benchmarks import metrics
from benchmarks.baselines import MEMGUARD, RAY
from benchmarks.metrics import Round, read

Format = Callable[[float], str]


def _seconds(value: float) -> str:
    return f"{value * 1e3:,.0f} ms" if value < 1.0 else f"{value:,.1f} s"


FORMATS: dict[str, Format] = {
    "B": "{:,.0f} B".format,
    "0.1 B": "{:,.1f} B".format,
    "MiB": lambda value: f"{value / 2**20:,.1f} MiB",
    "MB": lambda value: f"{value / 1e6:,.1f} MB",
    "s": _seconds,
    "ms": lambda value: f"{value * 1e3:,.2f} ms",
    "µs": lambda value: f"{value * 1e6:,.0f} µs",
    "/s": "{:,.1f}/s".format,
    "%": lambda value: f"{100 * value:.3g} %",
    "number": "{:,.0f}".format,
    "factor": "{:.3f}".format,
}


@dataclass(frozen=True)
class Row:
    """One row of a table, read from all rounds: values and text by baseline."""

    label: str
    values: dict[str, list[Any]]
    cells: dict[str, str]
    threshold: str = ""
    #: None where nothing is asked for.
    passed: bool | None = None
    #: None where values are text.
    show: Format | None = None
    is_drawn: bool = False

    @property
    def ratio(self) -> float | None:
        """Return the median of the rounds' ratios, MemGuard by Ray; None if one is not > 0."""
        if self.show is None or not {RAY, MEMGUARD} <= set(self.values):
            return None
        frame = pd.DataFrame(self.values, dtype=float)[[RAY, MEMGUARD]]
        if not (frame > 0).to_numpy().all():
            return None
        return float((frame[MEMGUARD] / frame[RAY]).median())


@dataclass(frozen=True)
class Metric:
    """One row of the table, before anything has run.

    Args:
        label: its name.
        unit: how a value is written, see ``FORMATS``; or "yes" for a claim that must hold, and
            "text" for one that is for information.
        reading: what :func:`benchmarks.metrics.read` understands, or the name of a claim.
        threshold: such as ``<= 200``, of the median, or ``min >= 0.9``, of another statistic.
        judged: of which baselines that is asked.
        own: whether only those have the figure.
        is_drawn: whether the picture has it as a bar.
    """

    label: str
    unit: str
    reading: str
    threshold: str = ""
    judged: tuple[str, ...] = (MEMGUARD,)
    own: bool = False
    is_drawn: bool = False

    def row(self, rounds: list[Round]) -> Row:
        """Read it from all rounds."""
        names = [name for name in rounds[0] if name in self.judged or not self.own]
        if self.unit in ("yes", "text"):
            return self._claimed(rounds, names)
        show = FORMATS[self.unit]
        values = {name: [read(self.reading, one[name], one) for one in rounds] for name in names}
        cells = {
            name: _spread(pd.Series(found, dtype=float), show) for name, found in values.items()
        }
        words, passed = self._judge(values, show)
        return Row(self.label, values, cells, words, passed, show, self.is_drawn)

    def _judge(self, values: dict[str, list[float]], show: Format) -> tuple[str, bool | None]:
        """Return the threshold in words, and whether all that are judged keep to it."""
        if not self.threshold:
            return "", None
        *statistic, comparison, limit = self.threshold.split()
        bound = float(limit)
        figures = [
            pd.Series(values[name], dtype=float).agg(*(statistic or ["median"]))
            for name in self.judged
        ]
        if comparison == "<=":
            return f"at most {show(bound)}", all(figure <= bound for figure in figures)
        return f"at least {show(bound)}", all(figure >= bound for figure in figures)

    def _claimed(self, rounds: list[Round], names: list[str]) -> Row:
        claim = getattr(metrics, self.reading)
        found = {name: [claim(one[name], one.get(RAY, {})) for one in rounds] for name in names}
        values = {name: [said for said, _ in verdicts] for name, verdicts in found.items()}
        cells = {name: "; ".join(dict.fromkeys(said)) for name, said in values.items()}
        if self.unit == "text":
            return Row(self.label, values, cells)
        passed = all(holds for name in self.judged for _, holds in found[name])
        return Row(self.label, values, cells, "yes", passed)


def _spread(values: pd.Series[float], show: Format) -> str:
    if values.isna().all():
        return "nothing"
    middle = show(values.median())
    if len(values) == 1:
        return middle
    return f"{middle} ({show(values.min())} .. {show(values.max())})"


def table(text: str, *judged: str) -> tuple[Metric, ...]:
    """Read metrics from lines of ``label | unit | reading | threshold | options``.

    The options are "own", "drawn", and the baselines that are judged, if not all of ``judged``.
    A label that begins with ``>`` is a part of the row above.
    """
    found = []
    for line in filter(None, text.splitlines()):
        label, unit, reading, threshold, options = (*map(str.strip, line.split("|")), "", "")[:5]
        words = options.split()
        names = tuple(word for word in words if word not in ("own", "drawn"))
        found.append(
            Metric(
                re.sub("^> ", "   ", label),
                unit,
                reading,
                threshold,
                names or judged or (MEMGUARD,),
                own="own" in words,
                is_drawn="drawn" in words,
            )
        )
    return tuple(found)
