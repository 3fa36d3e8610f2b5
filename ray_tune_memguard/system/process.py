"""Measures the memory of this process, and the CPU time of any process."""

from __future__ import annotations

from pathlib import Path

import psutil

_NS = 1e9


def rss_bytes() -> int:
    """Resident set size of this process in bytes (``psutil.Process.memory_info().rss``)."""
    return int(psutil.Process().memory_info().rss)


def cpu_seconds(pid: int) -> float | None:
    """CPU time of a process in seconds; None if it has ended.

    Linux tells it in nanoseconds for each living thread; elsewhere it is exact to 10 ms.
    """
    total = 0
    try:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            total += int((thread / "schedstat").read_text().split()[0])
        return total / _NS
    except (OSError, ValueError, IndexError):
        pass
    try:
        times = psutil.Process(pid).cpu_times()
        return float(times.user + times.system)
    except psutil.Error:
        return None
