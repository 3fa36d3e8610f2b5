"""The measurements of the head node's processes, on disk."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ray_tune_memguard.report.records import known_fields, number, read_records

if TYPE_CHECKING:
    import pandas as pd

#: The beginning of the files' names.
KIND = "head"


@dataclass(frozen=True)
class HeadRecord:
    """One look.

    Attributes:
        time: seconds since the epoch.
        trials: number of finished trials.
        processes: RSS and anonymous memory in bytes, by process.
    """

    time: float
    trials: int
    processes: dict[str, tuple[int, int]]


def read_head_node(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Read what :class:`ray_tune_memguard.HeadNodeReporter` has measured, in all runs.

    Args:
        path: the experiment's directory (``ResultGrid.experiment_path``, on a local disk), the
            ``.memguard`` directory in it, or one ``head-*.jsonl`` file.

    Returns:
        A DataFrame with a row for each process of each look: ``time`` in seconds since the epoch,
        ``trials`` (number of finished trials), ``process``, ``rss_bytes`` and
        ``anonymous_bytes``; without rows if nothing was measured.

    Examples:
        >>> from ray_tune_memguard import read_head_node
        >>> head = read_head_node(experiment)
        >>> (head.loc[head["process"] == "gcs_server", "rss_bytes"] / 2**20).tolist()
        [48.0, 64.0]
    """
    import pandas as pd

    rows = [
        (record.time, record.trials, name, rss, anonymous)
        for record in read_records(path, KIND, _record)
        for name, (rss, anonymous) in record.processes.items()
    ]
    columns = ["time", "trials", "process", "rss_bytes", "anonymous_bytes"]
    return pd.DataFrame(rows, columns=columns)


def _record(row: dict[str, Any]) -> HeadRecord:
    found: dict[str, Any] = {"time": 0.0, "trials": 0, **known_fields(HeadRecord, row)}
    processes = {
        name: (number(name, rss), number(name, own))
        for name, (rss, own) in found.get("processes", {}).items()
    }
    return HeadRecord(**{**found, "processes": processes})
