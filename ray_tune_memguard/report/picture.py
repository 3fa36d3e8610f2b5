"""Draws the RSS of experiments as a picture."""

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
#: The height of the vertical axis as a multiple of the largest value, for room above a flat line.
_HEADROOM = 1.15


def plot_rss_series(
    experiments: Source | Mapping[str, Source],
    filename: str | os.PathLike[str],
) -> Figure:
    """Draw the driver's RSS in MiB against finished trials, a line for each experiment.

    Each experiment that ran with a ``MemGuard`` or an ``RssReporter`` has a series. To see how much
    memory MemGuard saves, run one with ``MemGuard()`` and one with ``RssReporter()`` alone. The
    function needs matplotlib (``pip install "ray-tune-memguard[plot]"``).

    Args:
        experiments: a path as for :func:`ray_tune_memguard.read_rss_series`, or the DataFrame that
            it returns; or a mapping from the name of each line to one of these.
        filename: the image file to write; its suffix is the format (``.png``, ``.svg``, …). Its
            directory is created if it is missing.

    Returns:
        The matplotlib figure, drawn and saved.

    Raises:
        FileNotFoundError: an experiment has no series.
        ImportError: matplotlib is not installed.
        ValueError: ``experiments`` is empty, or matplotlib does not support the format.

    Examples:
        >>> from ray_tune_memguard import plot_rss_series
        >>> figure = plot_rss_series({"with MemGuard": experiment}, "rss.png")
    """
    # Without pyplot, which would open windows and change the backend that the user has chosen.
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
    """Let the vertical axis begin at zero and end above the largest value."""
    highest = axes.dataLim.ymax
    axes.set_ylim(0, _HEADROOM * highest if highest > 0 else 1.0)
