"""The RSS of sweeps as a picture."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from ray_tune_memguard.report.series import read_rss_series

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    Source: TypeAlias = str | os.PathLike[str] | pd.DataFrame

_MIB = 2**20
#: The height of the picture, as a multiple of the largest value: a flat line is below the frame.
_HEADROOM = 1.15


def plot_rss_series(
    experiments: Source | Mapping[str, Source],
    filename: str | os.PathLike[str],
) -> Figure:
    """Draw the driver's RSS in MiB against finished trials, a line for each experiment.

    Any sweep that had a ``MemGuard`` or an ``RssReporter`` has a series; to see what the guard
    saves, run one sweep with ``MemGuard()`` and one with ``RssReporter()`` alone. It needs
    matplotlib (``pip install "ray-tune-memguard[plot]"``).

    Args:
        experiments: where the series is, as for :func:`ray_tune_memguard.read_rss_series`, or what
            that has read; or several such, by the name that each line is to have.
        filename: the image to write, in a format that its suffix says (``.png``, ``.svg``, …). Its
            directory is made if it is missing.

    Returns:
        The matplotlib figure, drawn and saved.

    Raises:
        FileNotFoundError: an experiment has no series.
        ImportError: matplotlib is not installed.
        ValueError: ``experiments`` is empty, or matplotlib does not know the format.
    """
    # Without pyplot: it would open windows and change the backend that the user has chosen.
    from matplotlib.figure import Figure

    named = experiments if isinstance(experiments, Mapping) else {"": experiments}
    if not named:
        raise ValueError("experiments is empty; it takes a path, or paths by name")
    lines = {
        name: read_rss_series(source) if isinstance(source, (str, os.PathLike)) else source
        for name, source in named.items()
    }
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for name, series in lines.items():
        axes.plot(series["trials"], series["rss_bytes"] / _MIB, label=name or None)
    axes.set_xlabel("finished trials")
    axes.set_ylabel("driver RSS [MiB]")
    leave_headroom(axes)
    axes.grid(alpha=0.3)
    if any(lines):
        axes.legend()
    path = Path(filename)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return figure


def leave_headroom(axes: Axes) -> None:
    """Let the vertical axis begin at zero, and end above the largest value that is drawn."""
    highest = axes.dataLim.ymax
    axes.set_ylim(0, _HEADROOM * highest if highest > 0 else 1.0)
