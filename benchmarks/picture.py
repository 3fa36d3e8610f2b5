"""The picture of a benchmark: every run of every rival, one panel for each kind of sweep."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.record import Round, Run
from benchmarks.rivals import RIVALS

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class NoMatplotlib(RuntimeError):
    """matplotlib, which only the picture needs, is not installed."""


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
    """Write the picture as PNG."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        message = "no picture: matplotlib is not installed (pip install matplotlib)"
        raise NoMatplotlib(message) from error

    figure = Figure(figsize=(6.4 * len(panels), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    for index, (panel_title, panel, rounds) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), index + 1)
        axes.set(title=panel_title, xlabel=panel.x_label, ylabel=panel.y_label)
        for name in rounds[0].runs:
            _draw_runs(axes, panel, name, [one.runs[name] for one in rounds])
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=130)


def _draw_runs(axes: Axes, panel: Panel, name: str, runs: list[Run]) -> None:
    for index, run in enumerate(runs):
        xs, ys = zip(*panel.points(run), strict=True)
        rival = RIVALS[name]
        label = rival.title if index == 0 else None
        axes.plot(xs, ys, color=rival.colour, linewidth=1.2, alpha=0.8, label=label)
