"""Processes that outlive the one that started them: found by a mark in their environment."""

from __future__ import annotations

import time
import uuid

import psutil

#: Inherited by everything that a marked process starts, whatever session or group that is in.
MARK_VARIABLE = "MEMGUARD_BENCHMARK_MARK"
_LONGEST_SECONDS = 15.0


def new_mark() -> str:
    """Return a mark that no other process has."""
    return uuid.uuid4().hex


def end_marked(mark: str) -> None:
    """Kill every process with the mark, Ray's of a driver that is dead, say; and no other."""
    deadline = time.monotonic() + _LONGEST_SECONDS
    while (left := _marked(mark)) and time.monotonic() < deadline:
        for process in left:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                pass
        psutil.wait_procs(left, timeout=2)


def _marked(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            ours = process.environ().get(MARK_VARIABLE) == mark
            if ours and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            pass
    return found
