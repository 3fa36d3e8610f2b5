"""Measures the memory of this process."""

from __future__ import annotations

import psutil


def rss_bytes() -> int:
    """Resident set size of this process in bytes (``psutil.Process.memory_info().rss``)."""
    return int(psutil.Process().memory_info().rss)
