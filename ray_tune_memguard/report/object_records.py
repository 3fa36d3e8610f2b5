"""The measurements of the object store, on disk."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ray_tune_memguard.report.records import known_fields, read_records

if TYPE_CHECKING:
    import pandas as pd

#: The beginning of the files' names.
KIND = "objects"


@dataclass(frozen=True)
class StoreRecord:
    """One look at the stores of all nodes.

    Attributes:
        time: seconds since the epoch.
        trials: number of finished trials.
        capacity_bytes: what the stores may hold in memory.
        primary_bytes: primary copies in memory.
        spilled_bytes: on disk at this time.
        leak: the text with which a leak was named, at the look that named it; otherwise empty.
    """

    time: float = 0.0
    trials: int = 0
    capacity_bytes: int = 0
    primary_bytes: int = 0
    spilled_bytes: int = 0
    leak: str = ""


def read_object_store(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Read what :class:`ray_tune_memguard.ObjectStoreReporter` has measured, in all runs.

    Args:
        path: the experiment's directory (``ResultGrid.experiment_path``, on a local disk), the
            ``.memguard`` directory in it, or one ``objects-*.jsonl`` file.

    Returns:
        A DataFrame with a row for each look: ``time`` in seconds since the epoch, ``trials``
        (number of finished trials), ``capacity_bytes``, ``primary_bytes``, ``spilled_bytes`` and
        ``leak`` (the text with which a leak was named, or empty); without rows if nothing was
        measured.

    Examples:
        >>> from ray_tune_memguard import read_object_store
        >>> store = read_object_store(experiment)
        >>> (store["primary_bytes"] + store["spilled_bytes"]).tolist()
        [20000000, 40000000]
    """
    import pandas as pd

    def record(row: dict[str, object]) -> StoreRecord:
        return StoreRecord(**known_fields(StoreRecord, row))  # type: ignore[arg-type]

    records = read_records(path, KIND, record)
    return pd.DataFrame(records, columns=list(StoreRecord.__dataclass_fields__))
