"""A scenario's table for reading, its JSON file for keeping, and its picture."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from benchmarks.baselines import BASELINES, MEMGUARD, RAY
from benchmarks.metrics import Points, Record, Round
from benchmarks.rows import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


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
    stored = ("label", "values", "threshold", "passed", "ratio")
    sweeps = [
        {
            "title": table.title,
            "rows": [{name: getattr(row, name) for name in stored} for row in table.rows],
            "runs": table.rounds,
        }
        for table in tables
    ]
    path.write_text(json.dumps(head | {"sweeps": sweeps}) + "\n")


@contextlib.contextmanager
def if_possible() -> Iterator[None]:
    """Draw in this block; without matplotlib, which only pictures need, say so and go on."""
    try:
        yield
    except ModuleNotFoundError as error:
        print(f"no picture: {error} (pip install matplotlib)", file=sys.stderr)


def new_picture(title: str, width: float, height: float) -> Figure:
    """Return an empty picture, of inches."""
    from matplotlib.figure import Figure

    picture = Figure(figsize=(width, height), layout="constrained")
    picture.suptitle(title)
    return picture


def draw(title: str, tables: list[Table], path: Path) -> None:
    """Write the picture of samples, or of rows as bars, as PNG; none if there is none to draw."""
    plots = [partial(_draw_runs, table, panel) for table in tables for panel in table.panels]
    width, height = 6.4, 4.2
    if not plots:
        bars = {table.title: [row for row in table.rows if row.is_drawn] for table in tables}
        plots = [partial(_draw_bars, name, rows) for name, rows in bars.items() if rows]
        width, height = 7.0, 1.2 + 0.5 * max(map(len, bars.values()))
    if not plots:
        return
    picture = new_picture(title, width * len(plots), height)
    for number, plot in enumerate(plots, 1):
        plot(picture.add_subplot(1, len(plots), number))
    picture.savefig(path, dpi=130)


def _draw_runs(table: Table, panel: Panel, axes: Axes) -> None:
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


def _draw_bars(title: str, rows: list[Row], axes: Axes) -> None:
    """Draw medians as bars, with lines from the lowest to the highest."""
    names = [name for name in BASELINES if any(name in row.values for row in rows)]
    height = 0.8 / len(names)
    for place, name in enumerate(names):
        values = pd.DataFrame({y: row.values.get(name) for y, row in enumerate(rows)}, dtype=float)
        found = values.agg(["median", "min", "max"]).dropna(axis=1).T
        bars = axes.barh(
            found.index + place / len(names),
            found["median"],
            height,
            xerr=[found["median"] - found["min"], found["max"] - found["median"]],
            color=BASELINES[name].colour,
            label=BASELINES[name].title,
        )
        shown = [rows[y].show(middle) for y, middle in found["median"].items()]
        axes.bar_label(bars, shown, padding=3, fontsize=8)
    axes.set_title(title)
    axes.set_yticks([y + 0.4 - height / 2 for y in range(len(rows))])
    axes.set_yticklabels([row.label for row in rows])
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xticks([])
    axes.legend()
