"""A series of memory measurements: kept on disk whole, in memory only as far as a slope needs."""

from __future__ import annotations

import csv
import os
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

#: Of the series in memory; the file has it all.
POINTS_KEPT = 31
FILE_PATTERN = "rss-*.csv"
#: Over fewer trials a slope is noise: caches fill, and the allocator takes memory in large pieces.
MIN_SLOPE_TRIALS = 50


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
    """Points of one run, appended to ``path`` as CSV, a line at a time; None: to no file.

    A write that fails raises OSError; the point is kept for the slope all the same.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.recent: deque[RssPoint] = deque(maxlen=POINTS_KEPT)

    def add(self, point: RssPoint) -> None:
        self.recent.append(point)
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", newline="") as file:
            writer = csv.writer(file)
            if file.tell() == 0:
                writer.writerow([field.name for field in fields(RssPoint)])
            writer.writerow(astuple(point))

    def line(self) -> str:
        """The latest point and the slope behind it, as a person reads them."""
        last = self.recent[-1]
        text = f"trial#{last.trials}  RSS {last.rss_bytes / 2**20:.0f} MiB"
        span = last.trials - self.recent[0].trials
        slope = bytes_per_trial(self.recent) if span >= MIN_SLOPE_TRIALS else None
        if slope is None:
            return text
        return f"{text}  ({slope / 1024:+.1f} KiB/trial over the last {span})"


def bytes_per_trial(points: Sequence[RssPoint]) -> float | None:
    """Slope of RSS by least squares; None with fewer than two different numbers of trials."""
    return least_squares_slope([(point.trials, point.rss_bytes) for point in points])


def least_squares_slope(points: Iterable[tuple[float, float]]) -> float | None:
    """Slope of the straight line with the least squared error in y; None where x does not vary."""
    pairs = list(points)
    if not pairs:
        return None
    mean_x = sum(x for x, _ in pairs) / len(pairs)
    mean_y = sum(y for _, y in pairs) / len(pairs)
    spread = sum((x - mean_x) ** 2 for x, _ in pairs)
    if spread == 0:
        return None
    return sum((x - mean_x) * (y - mean_y) for x, y in pairs) / spread


def report_files(path: str | os.PathLike[str], pattern: str) -> list[Path]:
    """The files of an experiment: of its directory, its ``.memguard`` directory, or one file."""
    place = Path(path)
    if place.is_file():
        return [place]
    return sorted([*place.glob(pattern), *place.glob(f"*/{pattern}")])


def read_rss_series(path: str | os.PathLike[str]) -> pd.DataFrame:
    """The RSS series of an experiment, all its runs in order of time.

    ``path``: the experiment's directory (what ``ResultGrid.experiment_path`` says, on a local
    disk), the ``.memguard`` directory in it, or one ``rss-*.csv`` file. The columns are the fields
    of :class:`RssPoint`.

    Raises:
        FileNotFoundError: there is no series.
    """
    import pandas as pd

    files = report_files(path, FILE_PATTERN)
    if not files:
        raise FileNotFoundError(f"No RSS series ({FILE_PATTERN}) at {path}")
    frame = pd.concat([pd.read_csv(file) for file in files], ignore_index=True)
    return frame.sort_values("time", kind="stable", ignore_index=True)
