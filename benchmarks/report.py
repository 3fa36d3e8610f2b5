"""A scenario's table for reading, its JSON file for keeping, and its picture."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from benchmarks.baselines import BASELINES, MEMGUARD, RAY
from benchmarks.metrics import Points, Record, Round
from benchmarks.rows import Row

if TYPE_CHECKING:
    from matplotlib import figure
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Panel:
    """What of a run is drawn: points, each of a number of trials or results and a figure."""

    x_label: str
    y_label: str
    points: Callable[[Record], Points]


@dataclass(frozen=True)
class Table:
    """What was measured in one section of a scenario."""

    title: str
    rows: list[Row]
    rounds: list[Round]
    panels: tuple[Panel, ...] = ()


def _verdict(row: Row, judged: bool) -> str:
    if row.passed is None:
        return ""
    if not judged:
        return "not judged"
    return "pass" if row.passed else "MISS"


def format_table(rows: list[Row], judged: bool) -> str:
    """Return the rows as a table; at another size than theirs, thresholds are ``not judged``."""
    names = [name for name in BASELINES if any(name in row.values for row in rows)]
    ratio = ("MemGuard / Ray",) if {RAY, MEMGUARD} <= set(names) else ()
    lines = [("", *(BASELINES[name].title for name in names), *ratio, "threshold", "")]
    for row in rows:
        cells = [row.cells.get(name, "") for name in names]
        if ratio:
            cells.append("" if row.ratio is None else f"{row.ratio:.3g}")
        lines.append((row.label, *cells, row.threshold, _verdict(row, judged)))
    return format_lines(lines)


def format_lines(lines: list[tuple[str, ...]]) -> str:
    """Return lines of cells, the first of them the head, in columns."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in lines]
    text.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in text)


def write_results(path: Path, head: dict[str, Any], tables: list[Table]) -> None:
    """Write everything that was measured, samples included."""
    sweeps = [
        {
            "title": table.title,
            "rows": [
                {
                    "label": row.label,
                    "values": row.values,
                    "threshold": row.threshold,
                    "passed": row.passed,
                    "ratio": row.ratio,
                }
                for row in table.rows
            ],
            "runs": table.rounds,
        }
        for table in tables
    ]
    path.write_text(json.dumps(head | {"sweeps": sweeps}) + "\n")


class NoMatplotlib(RuntimeError):
    """matplotlib, which only the picture needs, is not installed."""

    def __init__(self) -> None:
        super().__init__("no picture: matplotlib is not installed (pip install matplotlib)")


@contextlib.contextmanager
def if_possible() -> Iterator[None]:
    """Draw in this block; without matplotlib, say so and go on."""
    try:
        yield
    except NoMatplotlib as error:
        print(error, file=sys.stderr)


def new_picture(title: str, width: float, height: float) -> figure.Figure:
    """Return an empty picture, of inches.

    Raises:
        NoMatplotlib: as it says.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise NoMatplotlib from error
    picture = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(picture)
    picture.suptitle(title)
    return picture


def draw(title: str, tables: list[Table], path: Path) -> None:
    """Write the picture of samples, or of rows as bars, as PNG; none if there is none to draw."""
    lines = [(table, panel) for table in tables for panel in table.panels]
    bars = [(table.title, [row for row in table.rows if row.is_drawn]) for table in tables]
    bars = [(name, rows) for name, rows in bars if rows]
    if lines:
        picture = new_picture(title, 6.4 * len(lines), 4.2)
        for index, (table, panel) in enumerate(lines):
            _draw_runs(picture.add_subplot(1, len(lines), index + 1), table, panel)
    elif bars:
        most = max(len(rows) for _, rows in bars)
        picture = new_picture(title, 7.0 * len(bars), 1.2 + 0.5 * most)
        for index, (name, rows) in enumerate(bars):
            _draw_bars(picture.add_subplot(1, len(bars), index + 1), name, rows)
    else:
        return
    picture.savefig(path, dpi=130)


def _draw_runs(axes: Axes, table: Table, panel: Panel) -> None:
    axes.set(title=table.title, xlabel=panel.x_label, ylabel=panel.y_label)
    for name in table.rounds[0]:
        baseline = BASELINES[name]
        for index, one in enumerate(table.rounds):
            axes.plot(
                *zip(*panel.points(one[name]), strict=True),
                color=baseline.colour,
                linewidth=1.2,
                alpha=0.8,
                label=baseline.title if index == 0 else None,
            )
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()


def _draw_bars(axes: Axes, title: str, rows: list[Row]) -> None:
    """Draw medians as bars, with lines from the lowest to the highest."""
    names = [name for name in BASELINES if any(name in row.values for row in rows)]
    height = 0.8 / len(names)
    for place, name in enumerate(names):
        label: str | None = BASELINES[name].title
        for y, row in enumerate(rows):
            if row.show is None or name not in row.values:
                continue
            found = pd.Series(row.values[name], dtype=float)
            middle = found.median()
            bar = axes.barh(
                y + place / len(names),
                middle,
                height,
                xerr=[[middle - found.min()], [found.max() - middle]],
                color=BASELINES[name].colour,
                label=label,
            )
            axes.bar_label(bar, [row.show(middle)], padding=3, fontsize=8)
            label = None
    axes.set_title(title)
    axes.set_yticks([y + 0.4 - height / 2 for y in range(len(rows))])
    axes.set_yticklabels([row.label for row in rows])
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xticks([])
    axes.legend()
