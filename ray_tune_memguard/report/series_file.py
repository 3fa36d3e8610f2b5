"""Writes and reads series of measurements as CSV files: one line a measurement, one file a run."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable
from dataclasses import fields
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

#: The directories of MemGuard's files in an experiment: the current one, and that of earlier
#: versions, which is only read.
OWN_DIRECTORIES = (".memguard", "memguard")

if TYPE_CHECKING:
    import pandas as pd
    from _typeshed import DataclassInstance

    Row = TypeVar("Row", bound=DataclassInstance)
else:
    Row = TypeVar("Row")

#: The types of fields that hold numbers, as their annotations are written.
NUMBERS = ("int", "float")


class SeriesFile(Generic[Row]):
    """Appends rows to a CSV file. The file is open only while rows are written.

    Args:
        path: the file. Its directory is created if it is missing.
        row_type: the dataclass of the rows. Its fields are the columns.
    """

    def __init__(self, path: Path, row_type: type[Row]) -> None:
        self.path = path
        self._columns = [field.name for field in fields(row_type)]

    def add(self, rows: Iterable[Row]) -> None:
        """Append rows.

        Raises:
            OSError: the file cannot be written.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        values = attrgetter(*self._columns)
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if file.tell() == 0:
                writer.writerow(self._columns)
            writer.writerows(values(row) for row in rows)


def report_files(path: str | os.PathLike[str], pattern: str) -> list[Path]:
    """The files of an experiment that match, run by run.

    Args:
        path: the experiment's directory, the ``.memguard`` directory in it, or one file.
        pattern: what the names of the files match.
    """
    place = Path(path).expanduser()
    if place.is_file():
        return [place]
    # Beside them an experiment has a directory for each trial.
    own = [directory for name in OWN_DIRECTORIES if (directory := place / name).is_dir()]
    found = (file for directory in own or [place] for file in directory.glob(pattern))
    return sorted(found, key=lambda file: file.name)


def read_series(
    path: str | os.PathLike[str], pattern: str, row_type: type[DataclassInstance], what: str
) -> pd.DataFrame:
    """The rows of all runs of an experiment, in the order of their ``time``.

    Rows that a kill or a full disk has left incomplete are skipped.

    Args:
        path: the experiment's directory, the ``.memguard`` directory in it, or one file.
        pattern: what the names of the files match.
        row_type: the dataclass of the rows.
        what: what is read, for the error message.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file is damaged.
    """
    import pandas as pd

    files = report_files(path, pattern)
    if not files:
        raise FileNotFoundError(f"No {what} ({pattern}) at {path}")
    frame = pd.concat([pd.read_csv(file) for file in files], ignore_index=True)
    columns = {column.name: column.type for column in fields(row_type)}
    if missing := columns.keys() - set(frame.columns):
        raise ValueError(f"{what} without {', '.join(sorted(missing))}")
    frame = frame.dropna(subset=list(columns), ignore_index=True)
    frame = frame.astype({name: kind for name, kind in columns.items() if kind in NUMBERS})
    return frame.sort_values("time", kind="stable", ignore_index=True)
