"""The driver's RSS over a run: whole on disk, in memory only as far as a slope needs it."""

from __future__ import annotations

import os
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ray_tune_memguard.report.line import fit_line
from ray_tune_memguard.report.series_file import SeriesFile, read_series

if TYPE_CHECKING:
    import pandas as pd

#: Of the series in memory; the file has it all.
MAX_POINTS = 31
FILE_PATTERN = "rss-*.csv"
#: Over fewer trials a slope is noise: caches fill, and the allocator takes memory in large pieces.
MIN_SLOPE_TRIALS = 50
#: Trials that a run takes to fill its caches; what grows is judged from then on.
WARM_UP_TRIALS = 100
#: In a sweep of few, long trials so many results stand for a trial.
RESULTS_PER_TRIAL = 20


@dataclass(frozen=True)
class RssPoint:
    """One measurement.

    ``time``: seconds since the epoch. ``trials``: finished trials of the sweep, those before a
    resume included; ``completed`` and ``errored`` are the two kinds. ``rss_bytes``: resident set
    size of the driver.
    """

    time: float
    trials: int
    completed: int
    errored: int
    rss_bytes: int


class RssSeries:
    """Points of one run, appended to ``path``; None: to no file."""

    def __init__(self, path: Path | None) -> None:
        self._file = None if path is None else SeriesFile(path, RssPoint)
        self.recent: deque[RssPoint] = deque(maxlen=MAX_POINTS)

    @property
    def path(self) -> Path | None:
        return None if self._file is None else self._file.path

    def add(self, point: RssPoint) -> None:
        """Append a point.

        Raises:
            OSError: the file cannot be written. The point counts for the slope all the same.
        """
        self.recent.append(point)
        if self._file is not None:
            self._file.add([point])

    def line(self) -> str:
        """The latest point and the slope behind it, as a person reads them."""
        last = self.recent[-1]
        text = f"trial#{last.trials}  RSS {last.rss_bytes / 2**20:.0f} MiB"
        span = last.trials - self.recent[0].trials
        fitted = fit_line(
            [point.trials for point in self.recent], [point.rss_bytes for point in self.recent]
        )
        if fitted is None or span < MIN_SLOPE_TRIALS:
            return text
        return f"{text}  ({fitted.slope / 1024:+.1f} KiB/trial over the last {span})"


def read_rss_series(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Read the RSS series of an experiment, all of its runs in order of time.

    Args:
        path: the experiment's directory (``ResultGrid.experiment_path``, on a local disk), the
            ``.memguard`` directory in it, or one ``rss-*.csv`` file.

    Returns:
        A DataFrame with a row for each measurement. The columns are the fields of
        :class:`RssPoint`: ``time`` in seconds since the epoch, ``trials``, ``completed`` and
        ``errored`` (numbers of finished trials so far), and ``rss_bytes`` (bytes).

    Raises:
        FileNotFoundError: there is no series.

    Example:
        >>> from ray_tune_memguard import read_rss_series
        >>> series = read_rss_series(experiment)
        >>> (series["rss_bytes"] / 2**20).tolist()
        [230.0, 231.0]
    """
    return read_series(path, FILE_PATTERN, "RSS series")
