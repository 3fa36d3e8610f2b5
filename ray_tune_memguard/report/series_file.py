"""Writes and reads series of measurements as CSV files: one line a measurement, one file a run."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Mapping
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
        self._is_torn = self._needs_header = False

    def add(self, rows: Iterable[Row]) -> None:
        """Append rows.

        Raises:
            OSError: the file cannot be written. What was written in part is skipped by readers.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        values = attrgetter(*self._columns)
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if file.tell() == 0:
                self._needs_header = True
            elif self._is_torn:
                # With one field more, a number that was cut counts for none.
                file.write(",\n")
            self._is_torn = True
            if self._needs_header:
                writer.writerow(self._columns)
            writer.writerows(values(row) for row in rows)
        self._is_torn = self._needs_header = False


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


def run_of(file: Path, pattern: str) -> str:
    """The run that wrote a file, as the name of the file has it in place of the pattern's star."""
    before, _, after = pattern.partition("*")
    return file.name.removeprefix(before).removesuffix(after)


def read_series(
    path: str | os.PathLike[str], pattern: str, row_type: type[DataclassInstance], what: str
) -> pd.DataFrame:
    """The rows of all runs of an experiment, in the order of their ``time``.

    Rows that a kill or a full disk has left incomplete are skipped, and damaged ones.

    Args:
        path: the experiment's directory, the ``.memguard`` directory in it, or one file.
        pattern: what the names of the files match.
        row_type: the dataclass of the rows.
        what: what is read, for the error message.

    Raises:
        FileNotFoundError: there is no such file, or none has a whole line.
        ValueError: there are rows, and all of them are damaged.
    """
    import pandas as pd

    columns = {column.name: str(column.type) for column in fields(row_type)}
    frames, damage = [], ""
    for file in report_files(path, pattern):
        try:
            frame = _intact_rows(file, columns)
        except ValueError as error:
            damage = f"{file.name} has {error}"
            continue
        if frame is not None:
            frames.append(frame)
    if not frames:
        if damage:
            raise ValueError(damage)
        raise FileNotFoundError(f"No {what} ({pattern}) at {path}")
    return pd.concat(frames).sort_values("time", kind="stable", ignore_index=True)


def _intact_rows(file: Path, columns: Mapping[str, str]) -> pd.DataFrame | None:
    """The rows of one file; None if it has not even a whole line.

    Raises:
        ValueError: it has no header, or no intact row of several.
    """
    import pandas as pd

    *lines, _ = file.read_text(encoding="utf-8", errors="replace").split("\n")
    # A quote that a torn row has left open would take the rows after it.
    rows = csv.reader(line for line in lines if line.count('"') % 2 == 0)
    header: list[str] = []
    # A header that a full disk has cut is written again.
    while not columns.keys() <= set(header):
        if (found := next(rows, None)) is None:
            if not lines:
                return None
            raise ValueError(f"no header with {', '.join(columns)}")
        header = found
    whole = [row for row in rows if len(row) == len(header)]
    frame = pd.DataFrame(whole, columns=header, dtype=object)[list(columns)]
    for name, kind in columns.items():
        if kind in NUMBERS:
            numbers = pd.to_numeric(frame[name], errors="coerce")
            frame[name] = numbers.where(numbers.abs() < math.inf)
    intact = frame.dropna()
    if len(whole) and intact.empty:
        raise ValueError("no intact row")
    return intact.astype({name: kind for name, kind in columns.items() if kind in NUMBERS})
