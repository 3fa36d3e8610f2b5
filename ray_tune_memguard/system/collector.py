"""Pauses Python's garbage collector."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_collection() -> Iterator[bool]:
    """Pause the garbage collector, which allocations would otherwise start.

    Yields:
        Whether the collector was enabled.
    """
    enabled = gc.isenabled()
    try:
        gc.disable()
        yield enabled
    finally:
        if enabled:
            gc.enable()
