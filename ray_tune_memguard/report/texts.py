"""Writes times, sizes and texts for people."""

from __future__ import annotations

import math
import re
import time

from ray_tune_memguard.report import sizes

UNKNOWN = "?"
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")


def size(count: float | None) -> str:
    """Bytes with a unit; ``?`` if they are not known."""
    return UNKNOWN if count is None or not math.isfinite(count) else sizes.size(count)


def moment(seconds: float) -> str:
    """Seconds since the epoch as local date and time."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
    except (ValueError, OverflowError, OSError):
        return UNKNOWN


def one_line(text: object, width: int = 0) -> str:
    """A text in one line, without characters that control a terminal.

    Args:
        text: the text.
        width: the most characters; 0 for any number.
    """
    line = _CONTROL.sub(" ", str(text)).strip()
    return f"{line[: width - 1]}…" if width and len(line) > width else line
