"""Records of a run, appended one by one: a file of JSON lines for each run and kind of record."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ray_tune_memguard.report.series_file import NUMBERS, report_files

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Record = TypeVar("Record", bound=DataclassInstance)
else:
    Record = TypeVar("Record")

SUFFIX = ".jsonl"
#: What is raised where a record is made of a damaged line.
DAMAGE = (ValueError, TypeError, KeyError, AttributeError)


def file_pattern(kind: str) -> str:
    """What the names of the files with records of a kind match."""
    return f"{kind}-*{SUFFIX}"


class RecordFile:
    """Appends records to a file. The file is open only while a record is written.

    Args:
        path: the file. Its directory is created if it is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._is_torn = False

    def add(self, record: DataclassInstance) -> None:
        """Append a dataclass object. Values that JSON does not know are written as text.

        Raises:
            OSError: the file cannot be written. What was written of the record is skipped by
                readers.
        """
        line = json.dumps(asdict(record), default=str) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        start = "\n" if self._is_torn else ""
        self._is_torn = True
        with self.path.open("a", encoding="utf-8") as file:
            file.write(start + line)
        self._is_torn = False


def read_records(
    path: str | os.PathLike[str], kind: str, build: Callable[[dict[str, object]], Record]
) -> list[Record]:
    """The records of all runs of an experiment: run by run, each in the order of writing.

    A line that a kill or a full disk has left incomplete is skipped, and a damaged one.

    Args:
        path: the experiment's directory, the ``.memguard`` directory in it, or one file.
        kind: of the records, the beginning of the files' names.
        build: makes a record of a line's JSON object; see :func:`known_fields`.

    Returns:
        The records; an empty list if there is no file.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: ``build`` makes a record of no line.
    """
    found: list[Record] = []
    damage: Exception | None = None
    for file in report_files(path, file_pattern(kind)):
        with file.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                try:
                    row = json.loads(line)
                except ValueError:
                    continue
                if not isinstance(row, dict):
                    continue
                try:
                    found.append(build(row))
                except DAMAGE as error:
                    damage = error
    if damage is not None and not found:
        raise damage
    return found


def known_fields(record_type: type[Record], row: dict[str, object]) -> dict[str, object]:
    """The entries of a JSON object that are fields of the dataclass.

    Another version of this package may have written more of them, or fewer.

    Raises:
        ValueError: a field of numbers has another value; the file is damaged.
    """
    types = {field.name: field.type for field in fields(record_type)}
    found = {name: value for name, value in row.items() if name in types}
    for name, value in found.items():
        if types[name] in NUMBERS:
            number(name, value)
    return found


def number(name: str, value: object) -> float:
    """The value, checked to be a number.

    Args:
        name: its name, for the error.
        value: the value.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(value, (int, float)):
        raise ValueError(f"{name} is {value!r}, not a number")
    return value
