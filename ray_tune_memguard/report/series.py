"""The series of the driver's RSS over a run: complete on disk, its latest points in memory."""

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

#: Points of a series in memory; the file has all of them.
MAX_POINTS = 31
FILE_PATTERN = "rss-*.csv"
#: Over fewer trials a slope is noise: caches fill, and the allocator requests large blocks.
MIN_SLOPE_TRIALS = 50
#: The number of trials after which caches are full, so that growth can be judged.
WARM_UP_TRIALS = 100
#: In a run of few, long trials this number of results counts as one trial.
RESULTS_PER_TRIAL = 20


@dataclass(frozen=True)
class RssPoint:
    """One measurement.

    Attributes:
        time: seconds since the epoch.
        trials: number of finished trials, including those of earlier runs of the experiment.
        completed, errored: numbers of the two kinds of finished trials.
        rss_bytes: resident set size of the driver in bytes.
    """

    time: float
    trials: int
    completed: int
    errored: int
    rss_bytes: int


class RssSeries:
    """The points of one run, which are appended to the file ``path`` unless that is None."""

    def __init__(self, path: Path | None) -> None:
        self._file = None if path is None else SeriesFile(path, RssPoint)
        self.recent: deque[RssPoint] = deque(maxlen=MAX_POINTS)

    @property
    def path(self) -> Path | None:
        return None if self._file is None else self._file.path

    def add(self, point: RssPoint) -> None:
        """Append a point.

        Raises:
            OSError: the file cannot be written. The slope still includes the point.
        """
        self.recent.append(point)
        if self._file is not None:
            self._file.add([point])

    def line(self) -> str:
        """The line for the log: the latest point, and the slope up to it."""
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

    Examples:
        >>> from ray_tune_memguard import read_rss_series
        >>> series = read_rss_series(experiment)
        >>> (series["rss_bytes"] / 2**20).tolist()
        [230.0, 231.0]
    """
    return read_series(path, FILE_PATTERN, RssPoint, "RSS series")
