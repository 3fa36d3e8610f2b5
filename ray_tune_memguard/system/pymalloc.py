"""Measures CPython's allocator for small objects (blocks of up to 512 bytes).

CPython reports its use in one way only: ``_PyObject_DebugMallocStats`` prints a table to a C
stream. ``sys._debugmallocstats`` passes it the stderr of the process. Here it gets a stream in
memory (POSIX ``open_memstream``), so that the process's stderr is not affected. CPython 3.10 to
3.13 export the function; if it or the stream is missing, the figure is not available.
"""

from __future__ import annotations

import ctypes
import functools
import re
from dataclasses import dataclass

_ROW = re.compile(rb"^# bytes in (allocated|available) blocks\s*=\s*([\d,]+)", re.MULTILINE)
_ARENAS = re.compile(rb"^Total\s*=\s*([\d,]+)", re.MULTILINE)
_UNUSED_POOLS = re.compile(rb"^\d+ unused pools \* \d+ bytes\s*=\s*([\d,]+)", re.MULTILINE)


@dataclass(frozen=True)
class PymallocUse:
    """Bytes in use, including the overhead of pools, and free bytes that can be used again."""

    used: int
    free: int


def pymalloc_use() -> PymallocUse | None:
    """The allocator's use; None if it is not available (for example, ``PYTHONMALLOC=malloc``)."""
    text = _statistics()
    return None if text is None else _parse(text)


@functools.cache
def _libraries() -> tuple[ctypes.CDLL, ctypes.PyDLL] | None:
    """The C library and Python's own functions; None if a needed function is missing."""
    try:
        library = ctypes.CDLL(None)
        library.open_memstream.restype = ctypes.c_void_p
        library.fclose.argtypes = [ctypes.c_void_p]
        library.free.argtypes = [ctypes.c_void_p]
        # A `PyDLL` keeps the GIL, because the allocator must not change while it is read.
        python = ctypes.PyDLL(None)
        python._PyObject_DebugMallocStats.argtypes = [ctypes.c_void_p]
    except (AttributeError, OSError, TypeError):
        return None
    return library, python


def _statistics() -> bytes | None:
    """The table as CPython prints it."""
    libraries = _libraries()
    if libraries is None:
        return None
    library, python = libraries
    text, size = ctypes.c_void_p(), ctypes.c_size_t()
    stream = library.open_memstream(ctypes.byref(text), ctypes.byref(size))
    if not stream:
        return None
    python._PyObject_DebugMallocStats(stream)
    # Closing the stream sets the text and its size.
    library.fclose(stream)
    try:
        return ctypes.string_at(text, size.value)
    finally:
        library.free(text)


def _parse(text: bytes) -> PymallocUse | None:
    rows = {name: _number(digits) for name, digits in _ROW.findall(text)}
    arenas = _ARENAS.search(text)
    if arenas is None or rows.keys() != {b"allocated", b"available"}:
        return None
    unused = _UNUSED_POOLS.search(text)
    free = rows[b"available"] + (_number(unused.group(1)) if unused else 0)
    return PymallocUse(used=_number(arenas.group(1)) - free, free=free)


def _number(digits: bytes) -> int:
    return int(digits.replace(b",", b""))
