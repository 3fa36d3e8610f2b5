"""The picture of a benchmark: every run of every rival, or bars of the figures of its table."""

from __future__ import annotations

import contextlib
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.record import Round, Run
from benchmarks.rivals import RIVALS
from benchmarks.rows import Figure

if TYPE_CHECKING:
    from matplotlib import figure
    from matplotlib.axes import Axes


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


@dataclass(frozen=True)
class Panel:
    """What of a run is drawn: points, each of a number of trials or results and a figure."""

    x_label: str
    y_label: str
    points: Callable[[Run], list[tuple[float, float]]]


def columns(x: int, y: int, unit: float) -> Callable[[Run], list[tuple[float, float]]]:
    """Draw two columns of the samples against each other, the second one in ``unit``."""
    return lambda run: [(sample[x], sample[y] / unit) for sample in run.samples]


def draw(title: str, panels: list[tuple[str, Panel, list[Round]]], path: Path) -> None:
    """Write the picture of samples as PNG."""
    picture = new_picture(title, 6.4 * len(panels), 4.2)
    for index, (panel_title, panel, rounds) in enumerate(panels):
        axes = picture.add_subplot(1, len(panels), index + 1)
        axes.set(title=panel_title, xlabel=panel.x_label, ylabel=panel.y_label)
        for name in rounds[0].runs:
            _draw_runs(axes, panel, name, [one.runs[name] for one in rounds])
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend()
    picture.savefig(path, dpi=130)


def draw_bars(title: str, panels: list[tuple[str, list[Figure]]], path: Path) -> None:
    """Write medians as bars, with lines from the lowest to the highest, as PNG."""
    most = max(len(rows) for _, rows in panels)
    picture = new_picture(title, 7.0 * len(panels), 1.2 + 0.5 * most)
    for index, (panel_title, rows) in enumerate(panels):
        axes = picture.add_subplot(1, len(panels), index + 1)
        names = [name for name in RIVALS if any(name in row.values for row in rows)]
        for place, name in enumerate(names):
            _draw_bars(axes, rows, name, place / len(names), 0.8 / len(names))
        axes.set_title(panel_title)
        axes.set_yticks([y + 0.4 - 0.4 / len(names) for y in range(len(rows))])
        axes.set_yticklabels([row.label for row in rows])
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.set_xticks([])
        axes.legend()
    picture.savefig(path, dpi=130)


def new_picture(title: str, width: float, height: float) -> figure.Figure:
    """Return an empty picture, of inches.

    Raises:
        NoMatplotlib: as it says.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure as Picture
    except ImportError as error:
        raise NoMatplotlib from error
    picture = Picture(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(picture)
    picture.suptitle(title)
    return picture


def _draw_runs(axes: Axes, panel: Panel, name: str, runs: list[Run]) -> None:
    for index, run in enumerate(runs):
        xs, ys = zip(*panel.points(run), strict=True)
        rival = RIVALS[name]
        label = rival.title if index == 0 else None
        axes.plot(xs, ys, color=rival.colour, linewidth=1.2, alpha=0.8, label=label)


def _draw_bars(axes: Axes, rows: list[Figure], name: str, above: float, height: float) -> None:
    label: str | None = RIVALS[name].title
    for y, row in enumerate(rows):
        values = row.values.get(name)
        if not values:
            continue
        middle = statistics.median(values)
        spread = [[middle - min(values)], [max(values) - middle]]
        bar = axes.barh(
            y + above, middle, height, xerr=spread, color=RIVALS[name].colour, label=label
        )
        axes.bar_label(bar, [row.show(middle)], padding=3, fontsize=8)
        label = None
