"""The picture of a benchmark: every run of both rivals, one panel for each kind of sweep."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.record import Pair, Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {"Ray alone": "#c44e52", "MemGuard": "#4c72b0"}


class NoMatplotlib(RuntimeError):
    """matplotlib, which only the picture needs, is not installed."""


@dataclass(frozen=True)
class Panel:
    """Which columns of the samples are drawn against each other."""

    x_label: str
    y_label: str
    x: int
    y: int
    y_unit: float


def draw(title: str, panels: list[tuple[str, Panel, list[Pair]]], path: Path) -> None:
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
    for index, (panel_title, panel, pairs) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), index + 1)
        axes.set(title=panel_title, xlabel=panel.x_label, ylabel=panel.y_label)
        rivals = {"Ray alone": [p.ray for p in pairs], "MemGuard": [p.memguard for p in pairs]}
        for name, runs in rivals.items():
            _draw_runs(axes, panel, name, runs)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=130)


def _draw_runs(axes: Axes, panel: Panel, name: str, runs: list[Run]) -> None:
    for index, run in enumerate(runs):
        xs = [sample[panel.x] for sample in run.samples]
        ys = [sample[panel.y] / panel.y_unit for sample in run.samples]
        label = name if index == 0 else None
        axes.plot(xs, ys, color=COLOURS[name], linewidth=1.2, alpha=0.8, label=label)
