"""Reads the mappings of this process's resident memory from Linux's ``/proc/self/smaps``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_SMAPS = Path("/proc/self/smaps")
_MAPPING = re.compile(
    rb"^([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ \S+ \d+ *(.*)\n(?:.*\n){1,3}?Rss: +(\d+) kB\n"
    rb"(?:.*\n)*?Anonymous: +(\d+) kB",
    re.MULTILINE,
)
# glibc's arenas beside [heap] begin at multiples of HEAP_MAX_SIZE (malloc/arena.c; 64 bits).
_ARENA_ALIGNMENT = 64 << 20
_GUARD_PAGE = 4096
_MIN_STACK = 64 << 10


@dataclass(frozen=True)
class ResidentMappings:
    """Resident bytes by kind of mapping.

    Attributes:
        shared: file-backed and shared pages (code, libraries, the object store's segment).
        heaps: glibc's heaps, used or not.
        stacks: the stacks of all threads.
        other: all other anonymous memory: pymalloc's arenas, large blocks, pools of libraries.
    """

    shared: int
    heaps: int
    stacks: int
    other: int

    @property
    def rss(self) -> int:
        return self.shared + self.heaps + self.stacks + self.other


def resident_mappings() -> ResidentMappings | None:
    """The mappings of this process; None without ``/proc/self/smaps``."""
    try:
        text = _SMAPS.read_bytes()
    except OSError:
        return None
    sums = {"shared": 0, "heaps": 0, "stacks": 0, "other": 0}
    after_guard = False
    for first, last, permissions, name, rss_kb, anonymous_kb in _MAPPING.findall(text):
        start, size = int(first, 16), int(last, 16) - int(first, 16)
        anonymous = int(anonymous_kb) << 10
        sums["shared"] += (int(rss_kb) << 10) - anonymous
        sums[_kind(start, size, permissions, name, after_guard)] += anonymous
        after_guard = permissions.startswith(b"---") and size == _GUARD_PAGE
    return ResidentMappings(**sums) if sum(sums.values()) else None


def _kind(start: int, size: int, permissions: bytes, name: bytes, after_guard: bool) -> str:
    if name == b"[heap]":
        return "heaps"
    if name.startswith(b"[stack"):
        return "stacks"
    if not name and permissions.startswith(b"rw"):
        if start % _ARENA_ALIGNMENT == 0 and size <= _ARENA_ALIGNMENT:
            return "heaps"
        if after_guard and size >= _MIN_STACK:
            return "stacks"
    return "other"
