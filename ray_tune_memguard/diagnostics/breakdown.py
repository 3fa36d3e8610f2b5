"""Divides this process's resident memory (RSS) into categories."""

from __future__ import annotations

from dataclasses import dataclass, fields

from ray_tune_memguard.system import allocator
from ray_tune_memguard.system.mappings import resident_mappings
from ray_tune_memguard.system.process import rss_bytes
from ray_tune_memguard.system.pymalloc import pymalloc_use

NO_SMAPS = "this system has no /proc/self/smaps"
NO_MALLINFO = "the C library does not report what its allocator has in use (mallinfo2, glibc 2.33)"
NO_PYMALLOC = "Python runs without its own allocator (PYTHONMALLOC), or does not report its use"


@dataclass(frozen=True)
class MemoryBreakdown:
    """Resident bytes by category; None for a category that this system does not report.

    Known categories add up to ``rss`` if none is missing (see ``absent``).

    Attributes:
        python: live small objects (up to 512 bytes a block), and the overhead of their pools.
        malloc: blocks in use from C's ``malloc``: Python's larger blocks, and native code.
        slack: freed memory that an allocator keeps.
        stacks: the stacks of all threads.
        other: anonymous memory that is mapped otherwise, for example Arrow's pools.
        shared: file-backed or shared pages.
    """

    rss: int
    python: int | None = None
    malloc: int | None = None
    slack: int | None = None
    stacks: int | None = None
    other: int | None = None
    shared: int | None = None

    @property
    def absent(self) -> dict[str, str]:
        """The reason for each missing category, by name."""
        reasons = {
            "python": NO_PYMALLOC,
            "malloc": NO_MALLINFO,
            "slack": NO_MALLINFO if self.malloc is None else NO_SMAPS,
            "stacks": NO_SMAPS,
            "shared": NO_SMAPS,
            "other": "it is the remainder, for which all other categories must be known",
        }
        return {
            category.name: reasons[category.name]
            for category in fields(self)
            if getattr(self, category.name) is None
        }


def memory_breakdown() -> MemoryBreakdown:
    """Measure now. Reads ``/proc/self/smaps`` once, which takes some ms for some hundred MiB."""
    small = pymalloc_use()
    counters = allocator.counters()
    mapped = resident_mappings()
    rss = rss_bytes() if mapped is None else mapped.rss
    used_in_heaps = counters.get("uordblks")
    malloc = None if used_in_heaps is None else used_in_heaps + counters["hblkhd"]
    slack = other = None
    if mapped is not None and used_in_heaps is not None:
        free_small = 0 if small is None else small.free
        # The free bytes of mallinfo2 include pages that were returned to the system.
        slack = max(0, mapped.heaps - used_in_heaps) + free_small
        in_heaps = min(mapped.heaps, used_in_heaps)
        malloc = in_heaps + counters["hblkhd"]
        if small is not None:
            other = mapped.other - small.used - small.free - counters["hblkhd"]
    return MemoryBreakdown(
        rss=rss,
        python=None if small is None else small.used,
        malloc=malloc,
        slack=slack,
        stacks=None if mapped is None else mapped.stacks,
        other=other,
        shared=None if mapped is None else mapped.shared,
    )
