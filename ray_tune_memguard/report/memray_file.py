"""Reads a profile of memray: the lines of code that had allocated the memory at the peak."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from ray_tune_memguard.system.library_files import is_of_library

Frame = tuple[str, str, int]


@dataclass(frozen=True)
class Line:
    """A line of code, and what it had allocated at the peak, directly or in libraries.

    Attributes:
        file: the source file; empty for memory of no Python code.
        line: the number of the line.
        function: the function that it is in.
        bytes: what it had allocated.
        share: of all memory at the peak, from 0 to 1.
        allocations: how many allocations these are.
        by: the function of a library that allocated most of it; empty if the line did itself.
    """

    file: str
    line: int
    function: str
    bytes: int
    share: float
    allocations: int
    by: str = ""


@dataclass(frozen=True)
class Peak:
    """A process at its peak.

    Attributes:
        bytes: what was allocated.
        lines: the lines of code, the largest first.
    """

    bytes: int
    lines: Sequence[Line]


def read_peak(file: str | os.PathLike[str]) -> Peak:
    """The lines of code that had allocated the memory at the peak of a profile.

    Memory counts for the innermost line that belongs neither to Python nor to an installed package;
    if there is none, for the innermost one.

    Args:
        file: the profile. One of a process that was killed counts up to the kill.

    Raises:
        ImportError: memray is not installed.
        OSError: it is no profile of memray, or it is empty or damaged.
    """
    import memray

    total = 0
    sizes: defaultdict[Frame, int] = defaultdict(int)
    counts: defaultdict[Frame, int] = defaultdict(int)
    inner: defaultdict[Frame, defaultdict[str, int]] = defaultdict(lambda: defaultdict(int))
    with memray.FileReader(os.fspath(file)) as reader:
        for record in reader.get_high_watermark_allocation_records(merge_threads=True):
            stack = record.stack_trace()
            frame = _users(stack)
            total += record.size
            sizes[frame] += record.size
            counts[frame] += record.n_allocations
            inner[frame][stack[0][0] if stack and stack[0] != frame else ""] += record.size
    lines = [
        Line(file, line, function, size, size / total, counts[frame], _largest(inner[frame]))
        for frame, size in sizes.items()
        for function, file, line in [frame]
    ]
    return Peak(total, sorted(lines, key=lambda one: -one.bytes))


def _users(stack: Sequence[Frame]) -> Frame:
    users = (frame for frame in stack if not is_of_library(frame[1]))
    return next(users, stack[0] if stack else ("", "", 0))


def _largest(sizes: dict[str, int]) -> str:
    return max(sizes, key=sizes.__getitem__)
