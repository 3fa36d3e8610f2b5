"""Pictures of what was measured, as SVG that takes its colours from the page around it."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib import dates
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from ray_tune_memguard.cli.texts import spread
from ray_tune_memguard.diagnostics.growth import UNMEASURED
from ray_tune_memguard.diagnostics.ranking import CATEGORIES
from ray_tune_memguard.report.picture import leave_headroom
from ray_tune_memguard.report.texts import one_line

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from ray_tune_memguard.diagnostics.deaths.record import Death
    from ray_tune_memguard.report.gate_records import GateRecord

_MIB = 2**20
_WIDTH = 9.0
#: Points of a line; more would not be seen, and the file would grow with the trials.
_MAX_POINTS = 500
_MAX_LINES = 6
_MAX_NAME = 44
#: Largest value over median of a parameter from which on its axis is logarithmic.
_LOGARITHMIC = 20
# Readable on white and on black.
_COLOURS = ("#3f8fd9", "#d9822b", "#22a085", "#b56bb0", "#8a8f3c", "#d1495b", "#7d8794")
_RED, _GREY = _COLOURS[5], _COLOURS[6]
_MARKERS = {"completed": (_COLOURS[0], "o"), "error": (_RED, "x"), "unfinished": (_GREY, "^")}
# Stands for the colour of the page's text.
_INK = "#010203"
# Its keys are a long list of literals in matplotlib's types.
_STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 9,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": _GREY,
    "grid.alpha": 0.3,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "figure.facecolor": "none",
    "legend.frameon": False,
    "savefig.dpi": 110,
}
#: One parameter of the configurations, and how it goes with the peaks (rank correlation).
Parameter = tuple[str, float]


def _svg(
    height: float, draw: Callable[[Figure], None], *, left: float = 0.65, top: float = 0.1
) -> str:
    """What ``draw`` draws. Margins are given, in inches: to find them takes matplotlib a second."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, height))
        figure.subplots_adjust(
            left=left / _WIDTH,
            right=1 - 0.15 / _WIDTH,
            bottom=0.45 / height,
            top=1 - top / height,
            wspace=0.08,
            hspace=0.3,
        )
        draw(figure)
        text = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(text, format="svg", transparent=True, metadata=nothing)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    # Names of groups, which several pictures on a page would share.
    return re.sub(r' id="[a-zA-Z0-9]+_\d+"', "", svg)


def driver(series: pd.DataFrame | None, samples: pd.DataFrame | None) -> str:
    """The driver's RSS, and its categories under it, over finished trials."""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        if samples is not None:
            parts = samples[samples["kind"] == "part"]
            names = [name for name in CATEGORIES[1:] if (parts["name"] == name).any()]
            split = parts[parts["name"].isin(names)].pivot_table(
                index="trials", columns="name", values="value", aggfunc="last"
            )
            split = _thinned(split.dropna())
            if names and len(split):
                bands = [split[name] / _MIB for name in names]
                axes.stackplot(split.index, bands, labels=names, colors=_COLOURS, alpha=0.5, lw=0)
        if series is not None:
            points = _thinned(series)
            rss = points["rss_bytes"] / _MIB
            axes.plot(points["trials"], rss, color=_INK, lw=1.4, label="RSS")
        _finish(axes, "finished trials", "MiB")
        axes.legend(loc="upper left", ncols=5)

    return _svg(3.4, draw)


def growing(samples: pd.DataFrame, names: Sequence[str]) -> str:
    """The sizes of retention sites over finished trials, a line for each."""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for colour, name in zip(_COLOURS, names[:_MAX_LINES], strict=False):
            is_measured = samples["kind"] != UNMEASURED
            rows = _thinned(samples[is_measured & (samples["name"] == name)])
            label = one_line(name, _MAX_NAME)
            axes.plot(rows["trials"], rows["value"] / _MIB, color=colour, label=label)
        _finish(axes, "finished trials", "MiB")
        axes.legend(loc="upper left")

    return _svg(2.8, draw)


def trials(memory: pd.DataFrame, parameters: Sequence[Parameter], prefix: str) -> str:
    """The peak of each trial, in the order of their starts and against their configuration."""
    count = 1 + len(parameters)
    columns = min(3, count)
    rows = -(-count // columns)

    def draw(figure: Figure) -> None:
        peaks = memory["peak_rss_bytes"] / _MIB
        grid = figure.subplots(rows, columns, sharey=True, squeeze=False).flat
        for axes in grid:
            axes.set_visible(False)
        ordered = memory["started"].rank(method="first")
        names = [("in the order of their starts", ordered)]
        names += [
            (f"{one_line(name, 32)} (ρ = {rho:+.2f})", memory[prefix + name])
            for name, rho in parameters
        ]
        for place, (axes, (name, values)) in enumerate(zip(figure.axes, names, strict=False)):
            axes.set_visible(True)
            for end, (colour, marker) in _MARKERS.items():
                chosen = memory["end"] == end
                axes.scatter(
                    values[chosen],
                    peaks[chosen],
                    s=9 if len(memory) < _MAX_POINTS else 4,
                    c=colour,
                    marker=marker,
                    linewidths=0.8 if marker == "x" else 0,
                    alpha=0.7,
                    rasterized=True,
                )
            _finish(axes, name, "peak RSS [MiB]" if place % columns == 0 else "")
            if values.min() > 0 and values.max() >= _LOGARITHMIC * values.median():
                axes.set_xscale("log")
                # Its own formatter writes formulas, which are off because names may look like one.
                axes.xaxis.set_major_formatter(FuncFormatter(_short))
                axes.xaxis.set_minor_formatter(NullFormatter())
        present = [end for end in _MARKERS if (memory["end"] == end).any()]
        figure.legend(handles=[_marker(end) for end in present], loc="upper left", ncols=3)

    return _svg(0.4 + 2.4 * rows, draw, top=0.35)


def _marker(end: str) -> Line2D:
    colour, marker = _MARKERS[end]
    return Line2D([], [], color=colour, marker=marker, linestyle="", markersize=4, label=end)


def time_line(
    spans: Sequence[tuple[float, float]],
    deaths: Sequence[Death],
    gate: Sequence[GateRecord],
    waits: Sequence[tuple[float, float]],
) -> str:
    """How many trials ran, and what happened to them: waits, pauses, deaths by cause."""
    marks = [(f"gate: {record.action}", record.time) for record in gate]
    marks = [mark for mark in marks if mark[0] in ("gate: shed", "gate: stop")]
    marks += [(f"died: {one_line(death.cause, 24)}", death.time) for death in deaths]
    names = [*(["gate: trials wait"] if waits else []), *sorted({name for name, _ in marks})]
    heights = [1.6] if spans else []
    heights += [max(0.6, 0.26 * len(names))] if names else []

    def draw(figure: Figure) -> None:
        grid = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)
        panels = list(grid[:, 0])
        if spans:
            times, running = _running(spans)
            panels[0].step(times, running, where="post", color=_COLOURS[0], lw=1.2)
            panels[0].set_title("measured trials that ran")
            panels[0].yaxis.set_major_locator(MaxNLocator("auto", integer=True))
            leave_headroom(panels[0])
        if names:
            axes = panels[-1]
            for begin, until in waits:
                left = float(dates.date2num(_moment(begin)))
                axes.broken_barh(
                    [(left, float(dates.date2num(_moment(until))) - left)],
                    (names.index("gate: trials wait") - 0.3, 0.6),
                    color=_COLOURS[1],
                    rasterized=True,
                )
            axes.scatter(
                [_moment(time) for _, time in marks],
                [names.index(name) for name, _ in marks],
                c=[_RED if name.startswith("died") else _COLOURS[3] for name, _ in marks],
                marker="|",
                s=90,
                rasterized=len(marks) > _MAX_POINTS,
            )
            axes.set_yticks(range(len(names)), names)
            axes.set_ylim(len(names) - 0.4, -0.6)
        for axes in panels:
            axes.grid(visible=True)
        locator = dates.AutoDateLocator()
        panels[-1].xaxis.set_major_locator(locator)
        panels[-1].xaxis.set_major_formatter(dates.ConciseDateFormatter(locator))

    return _svg(0.7 + sum(heights), draw, left=2.1, top=0.25)


def head(measured: pd.DataFrame, names: Sequence[str]) -> str:
    """Anonymous memory of Ray's processes on the head node over time."""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for colour, name in zip(_COLOURS, names[:_MAX_LINES], strict=False):
            rows = _thinned(measured[measured["process"] == name])
            anonymous = rows["anonymous_bytes"] / _MIB
            axes.plot(
                rows["trials"], anonymous, color=colour, label=one_line(name, _MAX_NAME), marker="."
            )
        _finish(axes, "finished trials", "anonymous memory [MiB]")
        axes.legend(loc="upper left", ncols=3)

    return _svg(2.8, draw)


def store(measured: pd.DataFrame) -> str:
    """What stays in the object store over finished trials, in memory and on disk."""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        rows = _thinned(measured)
        bands = [rows[name] / _MIB for name in ("primary_bytes", "spilled_bytes")]
        names = ["in memory", "on disk"]
        axes.stackplot(rows["trials"], bands, labels=names, colors=_COLOURS, alpha=0.5, lw=0)
        _finish(axes, "finished trials", "MiB")
        axes.legend(loc="upper left", ncols=2)

    return _svg(2.8, draw)


def _finish(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.xaxis.set_major_formatter(FuncFormatter(_short))
    leave_headroom(axes)
    axes.grid(visible=True)


def _short(value: float, _: object) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"


def _thinned(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.iloc[spread(len(frame), _MAX_POINTS)]


def _running(spans: Sequence[tuple[float, float]]) -> tuple[list[datetime], list[int]]:
    """The number of measured trials that ran, at each time at which it changes."""
    changes = [(begin, 1) for begin, _ in spans] + [(end, -1) for _, end in spans]
    changes.sort()
    running, found = 0, []
    for time, change in changes:
        running += change
        found.append((_moment(time), running))
    chosen = [found[place] for place in spread(len(found), 4 * _MAX_POINTS)]
    return [time for time, _ in chosen], [count for _, count in chosen]


def _moment(seconds: Any) -> datetime:
    # Without a time zone: the pictures show this machine's time, as the tables do.
    return datetime.fromtimestamp(seconds)
