"""CPython's allocator for small objects (blocks of up to 512 bytes): how much it has and uses.

The only interface is ``sys._debugmallocstats``, which prints to the C library's stderr. The text is
caught in a file for that moment. The switches keep the GIL, so a Python thread gets in between only
if the interpreter gives it its turn just then; what it, or native code, writes is passed on.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import sys
import tempfile
from dataclasses import dataclass

_ROW = re.compile(rb"^# bytes in (allocated|available) blocks\s*=\s*([\d,]+)", re.MULTILINE)
_ARENAS = re.compile(rb"^Total\s*=\s*([\d,]+)", re.MULTILINE)
_UNUSED_POOLS = re.compile(rb"^\d+ unused pools \* \d+ bytes\s*=\s*([\d,]+)", re.MULTILINE)
# Any line of the statistics.
_STATISTICS = re.compile(
    rb"(Small block threshold = \d+, in \d+ size classes\."
    rb"|class +size +num pools +blocks in use +avail blocks|-[- ]+|arena map counts"
    rb"| *\d+ +\d+ +\d+ +\d+ +\d+"
    rb"|(# [a-z ]+|Total) *= +[\d,]+"
    rb"|\s*\d+ (unused pools|arenas|free [\w -]+) \* \d+ bytes(/arena| each)? *= +[\d,]+)?\s*"
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
    # Python's own `os.dup2` gives the GIL away.
    switch = ctypes.PyDLL(None).dup2
    before = os.dup(2)
    try:
        switch(descriptor, 2)
        report()  # type: ignore[operator]
    finally:
        switch(before, 2)
        os.close(before)


def _parse(text: bytes) -> PymallocUse | None:
    lines = text.splitlines(keepends=True)
    strangers = b"".join(line for line in lines if not _STATISTICS.fullmatch(line))
    if strangers:
        with contextlib.suppress(OSError):
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
