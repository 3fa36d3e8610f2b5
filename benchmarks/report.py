"""A benchmark's table for reading, and its results for keeping: JSON beside a picture."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.record import Round
from benchmarks.rivals import RIVALS
from benchmarks.rows import Figure, Row, as_json


def _spread(row: Figure, values: list[float]) -> str:
    middle = row.show(statistics.median(values))
    if len(values) == 1:
        return middle
    return f"{middle} ({row.show(min(values))} .. {row.show(max(values))})"


def _distinct(values: list[str]) -> str:
    return "; ".join(dict.fromkeys(values))


def _verdict(row: Row, judged: bool) -> str:
    if row.passed is None:
        return ""
    if not judged:
        return "not judged"
    return "pass" if row.passed else "MISS"


def _cells(row: Row, names: list[str], judged: bool) -> tuple[str, ...]:
    verdict = _verdict(row, judged)
    ratio = ""
    if isinstance(row, Figure):
        ratio = "" if row.ratio is None else f"{row.ratio:.3g}"
        shown = {name: _spread(row, values) for name, values in row.values.items()}
    else:
        shown = {name: _distinct(values) for name, values in row.values.items()}
    return (row.label, *(shown.get(name, "") for name in names), ratio, row.bar_text, verdict)


def format_table(rows: list[Row], judged: bool) -> str:
    """Return the rows as a table; bars are ``not judged`` at another size than theirs."""
    names = [name for name in RIVALS if any(name in row.values for row in rows)]
    titles = [RIVALS[name].title for name in names]
    header = ("", *titles, "MemGuard / Ray", "bar", "")
    return format_lines([header, *(_cells(row, names, judged) for row in rows)])


def format_lines(lines: list[tuple[str, ...]]) -> str:
    """Return lines of cells, the first of them the head, in columns."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in lines]
    text.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(line.rstrip() for line in text)


def write_results(
    path: Path, head: dict[str, Any], legs: list[tuple[str, list[Row], list[Round]]]
) -> None:
    """Write everything that the benchmark measured, samples included."""
    sweeps = [
        {
            "title": title,
            "rows": [as_json(row) for row in rows],
            "runs": [{name: run.record for name, run in one.runs.items()} for one in rounds],
        }
        for title, rows, rounds in legs
    ]
    path.write_text(json.dumps(head | {"sweeps": sweeps}) + "\n")
