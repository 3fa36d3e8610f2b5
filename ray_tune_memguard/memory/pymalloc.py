"""CPython's allocator for small objects (blocks of up to 512 bytes): how much it has and uses.

The only interface is ``sys._debugmallocstats``, which prints to the C library's stderr. The text is
caught in a file for the moment of the call; the GIL is held, so no Python thread writes meanwhile,
and what native threads write is passed on.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from dataclasses import dataclass

_ROW = re.compile(rb"^# bytes in (allocated|available) blocks\s*=\s*([\d,]+)", re.MULTILINE)
_ARENAS = re.compile(rb"^Total\s*=\s*([\d,]+)", re.MULTILINE)
_UNUSED_POOLS = re.compile(rb"^\d+ unused pools \* \d+ bytes\s*=\s*([\d,]+)", re.MULTILINE)
# A line of the statistics, whatever it counts.
_STATISTICS = re.compile(
    rb"\s*(#|\d+ |Total|class +size|-----|Small block threshold|arena map|Arenas|$)", re.IGNORECASE
)


@dataclass(frozen=True)
class PymallocUse:
    """Bytes. ``used``: blocks in use and what their pools need; ``free``: can be used again."""

    used: int
    free: int


def pymalloc_use() -> PymallocUse | None:
    """What the allocator has; None where it does not tell (``PYTHONMALLOC=malloc``, no stderr)."""
    report = getattr(sys, "_debugmallocstats", None)
    if report is None:
        return None
    try:
        with tempfile.TemporaryFile(buffering=0) as caught:
            _call_into(caught.fileno(), report)
            caught.seek(0)
            text = caught.read()
    except OSError:
        return None
    return _parse(text)


def _call_into(descriptor: int, report: object) -> None:
    before = os.dup(2)
    try:
        os.dup2(descriptor, 2)
        try:
            report()  # type: ignore[operator]
        finally:
            os.dup2(before, 2)
    finally:
        os.close(before)


def _parse(text: bytes) -> PymallocUse | None:
    strangers = b"".join(
        line for line in text.splitlines(keepends=True) if not _STATISTICS.match(line)
    )
    if strangers:
        os.write(2, strangers)
    rows = {name: _number(digits) for name, digits in _ROW.findall(text)}
    arenas = _ARENAS.search(text)
    if arenas is None or rows.keys() != {b"allocated", b"available"}:
        return None
    unused = _UNUSED_POOLS.search(text)
    free = rows[b"available"] + (_number(unused.group(1)) if unused else 0)
    return PymallocUse(used=_number(arenas.group(1)) - free, free=free)


def _number(digits: bytes) -> int:
    return int(digits.replace(b",", b""))
