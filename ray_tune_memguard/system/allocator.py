"""Measures and trims the C allocator's slack: freed memory that the system did not get back.

Only glibc reports and trims it (``mallinfo2``, since 2.33, and ``malloc_trim``; see their manual
pages). On other platforms the functions here report nothing and do nothing.

``psutil.heap_info`` and ``heap_trim`` (since 7.2) are not used: they do not report the free bytes,
which decide whether to trim. In addition, Ray puts its own psutil first on the path, and that of
Ray 2.50 is too old to have them.
"""

from __future__ import annotations

import ctypes
import functools
import sys


class _Mallinfo2(ctypes.Structure):
    """``struct mallinfo2`` of <malloc.h>: ten counters of type ``size_t``."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    ]


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version") or not hasattr(library, "malloc_trim"):
        return None
    library.malloc_trim.argtypes = [ctypes.c_size_t]
    if hasattr(library, "mallinfo2"):
        library.mallinfo2.restype = _Mallinfo2
    return library


def counters() -> dict[str, int]:
    """The counters of ``mallinfo2`` by name, in bytes or blocks; empty on other platforms."""
    library = _glibc()
    if library is None or not hasattr(library, "mallinfo2"):
        return {}
    found = library.mallinfo2()
    return {field[0]: int(getattr(found, field[0])) for field in _Mallinfo2._fields_}


def slack_bytes() -> int | None:
    """The freed bytes that the allocator keeps; None if it does not report them."""
    return counters().get("fordblks")


def trim() -> None:
    """Return slack to the operating system, if the platform can."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)
