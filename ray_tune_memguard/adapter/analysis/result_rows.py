"""Turns a trial's results, one JSON object a line, into records, a row or a DataFrame.

Ray builds a DataFrame of each trial's whole ``result.json`` and selects one of its rows, which
takes 2 ms a trial. Here the lines of the file become dictionaries. The row is equal to Ray's,
including the type of each value, if all lines have the same keys and types, as nearly all files do.
For other files :func:`row_of` raises an error, and the caller uses Ray's own code.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from ray_tune_memguard.adapter.serialization.json_text import parse

if TYPE_CHECKING:
    import pandas

Record = dict[str, object]
# Larger integers have other types in pandas.
_MAX_INTEGER = 2.0**63
_NUMBERS = (int, float)


class UnevenRecordsError(ValueError):
    """The row of these lines depends on how pandas converts them."""


def row_of(content: bytes, metric: str | None = None, mode: str | None = None) -> Record | None:
    """The row of a trial.

    Args:
        content: the content of the trial's ``result.json``: one JSON object a line.
        metric: the key of a metric, nested keys joined by ``/``; None for the last result.
        mode: ``"max"`` or ``"min"``: the first result with the highest or lowest ``metric``; None
            for the last result.

    Returns:
        The row; None if the trial reported nothing.

    Raises:
        UnevenRecordsError: only Ray's own code can read the row.
    """
    records = records_of(content)
    if not records:
        return None
    shape = _shape(records[0])
    if not (all(_shape(record) == shape for record in records[1:]) and _is_exact(records)):
        raise UnevenRecordsError("keys or types differ")
    if metric is None or mode is None or metric not in records[0]:
        return records[-1]
    return _best(records, metric, mode)


def records_of(content: bytes) -> list[Record]:
    """All results of a trial as flat dictionaries, nested keys joined by ``/``.

    Raises:
        UnevenRecordsError: a line is not a JSON object.
    """
    lines = content.rstrip(b"\n")
    return [flatten(_parsed(line)) for line in lines.split(b"\n")] if lines else []


def frame_of(content: bytes) -> pandas.DataFrame:
    """The DataFrame that Ray makes of the content of a ``result.json``.

    Raises:
        UnevenRecordsError: a line is not a JSON object.
    """
    import pandas

    return pandas.DataFrame(records_of(content))


def flatten(record: Mapping[str, object]) -> Record:
    """Flatten a record as ``pandas.json_normalize`` does: plain values first, then nested ones."""
    plain: Record = {key: value for key, value in record.items() if type(value) is not dict}
    if len(plain) < len(record):
        for key, value in record.items():
            if type(value) is dict:
                plain.update(_leaves(value, key))
    return plain


def _leaves(nested: Mapping[str, object], prefix: str) -> Iterator[tuple[str, object]]:
    for key, value in nested.items():
        if type(value) is dict:
            yield from _leaves(value, f"{prefix}/{key}" if prefix else key)
        else:
            yield f"{prefix}/{key}" if prefix else key, value


def _parsed(line: bytes) -> Record:
    """The JSON object of one line, as Python's own decoder reads it.

    Raises:
        UnevenRecordsError: the line is not a JSON object.
    """
    try:
        record = parse(line)
    except ValueError as error:
        raise UnevenRecordsError("not JSON") from error
    if type(record) is not dict:
        raise UnevenRecordsError("not a JSON object")
    return record


def _shape(record: Record) -> tuple[object, ...]:
    return (*record, *map(type, record.values()))


def _is_exact(records: list[Record]) -> bool:
    """Whether pandas would keep every value of the records and its type."""
    first = records[0].values()
    # pandas turns a row of numbers alone into floats.
    if all(type(value) in _NUMBERS for value in first):
        return False
    if any(value is None for value in first) and len(records) > 1:
        return False
    return not any(
        type(value) in _NUMBERS and abs(value) >= _MAX_INTEGER and not _is_infinite(value)  # type: ignore[arg-type]
        for record in records
        for value in record.values()
    )


def _is_infinite(value: object) -> bool:
    return type(value) is float and math.isinf(value)


def _best(records: list[Record], metric: str, mode: str) -> Record:
    values = [record[metric] for record in records]
    if type(values[0]) not in _NUMBERS:
        raise UnevenRecordsError("the metric is not a number")
    known = [(value, index) for index, value in enumerate(values) if value == value]
    if not known:
        raise UnevenRecordsError("the metric is never a number")
    sign = 1 if mode == "max" else -1
    # Of equal values the first wins.
    return records[max(known, key=lambda found: (sign * found[0], -found[1]))[1]]  # type: ignore[operator]
