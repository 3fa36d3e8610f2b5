"""Measures the memory of this machine as Ray's memory monitor measures it.

Ray kills workers when the used share of a node's memory is above a threshold. Only a measurement
that counts as the monitor does can be compared with this threshold. The monitor (Ray 2.50 to 2.60,
``memory_monitor_utils.cc``) knows two totals: the machine's, and the limit of the cgroup that is
mounted at the top of ``/sys/fs/cgroup``. It takes the smaller one, with the usage that belongs to
it: ``MemTotal - MemAvailable`` of the machine, or the usage of the cgroup without file cache. With
``RAY_count_swap_in_memory_monitor=1`` (Ray 2.60) swap is added: that of the cgroup where version 2
limits it, otherwise the machine's. (Version 1 has one counter for memory with swap, which Ray reads
then and this module does not: it counts less memory, which is on the safe side.)

The monitor does not see limits of other cgroups above the process, such as a Slurm job's.
:class:`MemoryLimits` has both views.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from ray_tune_memguard.system.cgroups import (
    CgroupLimit,
    MemoryCgroup,
    memory_cgroups,
    read_numbers,
    tightest_limit,
)

_KIB = 1024
_GIB = 2**30
#: Of a limit: what others may use of the machine where the threshold is to stand for the limit.
_MAX_SHARE_OF_OTHERS = 0.25
#: The source of a limit that no cgroup sets.
MACHINE = "the machine"


@dataclass(frozen=True)
class MonitorSettings:
    """The settings of Ray's memory monitor.

    Attributes:
        is_on: whether the monitor runs (``memory_monitor_refresh_ms`` is not 0).
        threshold: the used share of the total above which it kills (``memory_usage_threshold``).
        min_free_bytes: if at least 0, it kills only when less than this is free
            (``min_memory_free_bytes``).
        counts_swap: whether swap counts as memory (``count_swap_in_memory_monitor``).

    Examples:
        >>> from ray_tune_memguard.system.node_memory import MonitorSettings
        >>> MonitorSettings().kills_above(100)
        95
        >>> MonitorSettings(min_free_bytes=2).kills_above(100)
        98
    """

    is_on: bool = True
    threshold: float = 0.95
    min_free_bytes: int = -1
    counts_swap: bool = False

    def kills_above(self, total_bytes: int) -> int:
        """The used bytes above which the monitor kills.

        Args:
            total_bytes: the total that the monitor counts.
        """
        by_share = int(total_bytes * self.threshold)
        if self.min_free_bytes < 0:
            return by_share
        return max(by_share, total_bytes - self.min_free_bytes)


@dataclass(frozen=True)
class NodeMemory:
    """Used and total memory.

    Attributes:
        used_bytes: bytes in use; what the kernel can reclaim is not counted.
        total_bytes: the limit.
        source: what sets the limit: ``"the machine"``, or the cgroup's directory.
    """

    used_bytes: int
    total_bytes: int
    source: str

    @property
    def share(self) -> float:
        """The used share of the total, from 0 to 1."""
        return self.used_bytes / self.total_bytes if self.total_bytes else 1.0


@dataclass(frozen=True)
class Swapped:
    """What is in swap.

    Attributes:
        used_bytes: bytes in swap.
        memory_bytes: the memory (RAM) of those who use this swap: a container's, or the machine's.
    """

    used_bytes: int
    memory_bytes: int


@dataclass(frozen=True)
class MemoryLimits:
    """The limits that hold for a process on this machine, each with the usage that belongs to it.

    Attributes:
        ray: what Ray's memory monitor counts; None where it cannot be read.
        cgroup: the tightest cgroup limit above the process; None if there is none.

    Examples:
        >>> from ray_tune_memguard.system.node_memory import MemoryLimits, NodeMemory
        >>> machine = NodeMemory(4 * 2**30, 64 * 2**30, "the machine")
        >>> job = NodeMemory(2**30, 16 * 2**30, "/sys/fs/cgroup/slurm/job_7")
        >>> MemoryLimits(machine, job).describe()
        'Memory limit: 16.0 GiB (cgroup /sys/fs/cgroup/slurm/job_7), 1.0 GiB of it in use.'
    """

    ray: NodeMemory | None
    cgroup: NodeMemory | None

    @property
    def tightest(self) -> NodeMemory | None:
        """The smaller limit; None if none is known."""
        return min(self.known(), key=lambda memory: memory.total_bytes, default=None)

    def known(self) -> list[NodeMemory]:
        """The limits that are known, each of which must hold."""
        return [memory for memory in (self.ray, self.cgroup) if memory is not None]

    def describe(self) -> str:
        """One line that says which limit counts, and where it comes from."""
        memory = self.tightest
        if memory is None:
            return "Memory limit: unknown, because this system shows neither /proc nor cgroups."
        return (
            f"Memory limit: {memory.total_bytes / _GIB:.1f} GiB ({_origin(memory)}), "
            f"{memory.used_bytes / _GIB:.1f} GiB of it in use."
        )

    def warning(self, monitor: MonitorSettings) -> str | None:
        """The warning if Ray's monitor counts with another limit than the tightest one.

        Args:
            monitor: the settings of Ray's memory monitor.

        Returns:
            The text; None if there is nothing to warn about.
        """
        if self.ray is None or self.cgroup is None or not monitor.is_on:
            return None
        if self.cgroup.total_bytes >= monitor.kills_above(self.ray.total_bytes):
            return None
        text = (
            f"Ray's memory monitor counts {self.ray.total_bytes / _GIB:.1f} GiB "
            f"({_origin(self.ray)}), but {_origin(self.cgroup)} allows only "
            f"{self.cgroup.total_bytes / _GIB:.1f} GiB: the kernel kills before Ray's monitor "
            "acts. "
        )
        by_others = max(0, self.ray.used_bytes - self.cgroup.used_bytes)
        counts = f"because it counts what others use there as well (now {by_others / _GIB:.1f} GiB)"
        if not leaves_room(by_others, self.cgroup.total_bytes):
            return (
                f"{text}With a lower threshold it would kill healthy workers, {counts}: ask for "
                "the whole node (in Slurm --exclusive --mem=0), or run fewer trials at once."
            )
        share = threshold_below(self.cgroup.total_bytes * monitor.threshold / self.ray.total_bytes)
        others = "" if monitor.min_free_bytes < 0 else " and RAY_min_memory_free_bytes=-1"
        return (
            f"{text}Start Ray with RAY_memory_usage_threshold={share}{others} on such nodes, if "
            f"nobody else uses much of them, {counts}."
        )


def leaves_room(by_others: int, limit_bytes: int) -> bool:
    """Whether Ray's threshold can stand for a limit that it does not see.

    The monitor compares what the whole machine uses with the threshold. Where others use much, it
    kills workers that are far from the limit.

    Args:
        by_others: what is used on the machine outside of the limit.
        limit_bytes: the limit.
    """
    return by_others <= _MAX_SHARE_OF_OTHERS * limit_bytes


def threshold_below(share: float) -> float:
    """A share with two digits, rounded down, so that the limit that it stands for still holds.

    Examples:
        >>> threshold_below(0.2375), threshold_below(0.00742)
        (0.23, 0.0074)
    """
    if share <= 0:
        return 0.0
    digits = 1 - math.floor(math.log10(share))
    return math.floor(share * 10**digits) / 10**digits


def _origin(memory: NodeMemory) -> str:
    return memory.source if memory.source == MACHINE else f"cgroup {memory.source}"


class NodeMemoryReader:
    """Measures this machine's memory.

    The cgroups are found once; each measurement reads only their files.

    Args:
        monitor: the settings of Ray's memory monitor.
        pid: a process whose cgroups count: this process, or Ray's raylet, the parent of all trials'
            processes; None for this process.
        root: the root directory of the file system. Tests pass a copy.
    """

    def __init__(
        self,
        monitor: MonitorSettings | None = None,
        pid: int | None = None,
        root: Path = Path("/"),
    ) -> None:
        self._monitor = monitor or MonitorSettings()
        self._root = root
        self._top = _top_cgroup(root)
        limit = tightest_limit(memory_cgroups(pid, root) or memory_cgroups(None, root))
        self._limit: CgroupLimit | None = limit

    def read(self) -> MemoryLimits:
        """Measure now."""
        return MemoryLimits(self.as_ray(), self._above_us())

    def as_ray(self) -> NodeMemory | None:
        """Used and total memory as Ray's memory monitor counts them; None without ``/proc``."""
        memory = self._machine()
        if memory is not None and (found := self._top_limit(memory)):
            top, limit = found
            # Ray takes a usage above the limit for the limit, and one that it cannot read for 0.
            memory = NodeMemory(min(top.used_bytes() or 0, limit), limit, top.name)
        if memory is None or not self._monitor.counts_swap:
            return memory
        used, total = self._swap()
        return NodeMemory(memory.used_bytes + used, memory.total_bytes + total, memory.source)

    def swapped(self) -> Swapped | None:
        """What is in swap of the memory that Ray counts, or else of the machine's."""
        memory = self._machine()
        if memory is None:
            return None
        if found := self._top_limit(memory):
            top, limit = found
            used = top.swapped_bytes()
            if used is not None:
                return Swapped(used, limit)
        return Swapped(self._swap_of_machine()[0], memory.total_bytes)

    def _top_limit(self, machine: NodeMemory) -> tuple[MemoryCgroup, int] | None:
        """The cgroup at the top and its limit, if Ray counts with it instead of the machine."""
        limit = None if self._top is None else self._top.limit_bytes()
        if self._top is None or not limit or limit > machine.total_bytes:
            return None
        return self._top, limit

    def _above_us(self) -> NodeMemory | None:
        if self._limit is None:
            return None
        cgroup = self._limit.cgroup
        limit, used = cgroup.limit_bytes(), cgroup.used_bytes()
        # A limit may be changed while the run goes on.
        return None if limit is None or used is None else NodeMemory(used, limit, cgroup.name)

    def _machine(self) -> NodeMemory | None:
        keys = ("MemTotal", "MemAvailable", "MemFree", "Cached", "Buffers")
        found = read_numbers(self._root / "proc" / "meminfo", keys)
        total = found.get("MemTotal")
        # Kernels before 3.14 lack MemAvailable.
        free = found.get("MemAvailable") or sum(found.get(key, 0) for key in keys[2:])
        if total is None or not free:
            return None
        used = max(0, total - free)
        return NodeMemory(used * _KIB, total * _KIB, MACHINE)

    def _swap(self) -> tuple[int, int]:
        """Used and total swap in bytes."""
        if self._top is not None and (limited := self._top.swap_bytes()) is not None:
            return limited
        return self._swap_of_machine()

    def _swap_of_machine(self) -> tuple[int, int]:
        found = read_numbers(self._root / "proc" / "meminfo", ("SwapTotal", "SwapFree"))
        total = found.get("SwapTotal", 0)
        return max(0, total - found.get("SwapFree", 0)) * _KIB, total * _KIB


def _top_cgroup(root: Path) -> MemoryCgroup | None:
    """The cgroup that Ray's memory monitor reads: version 2 at the top, otherwise version 1."""
    top = root / "sys" / "fs" / "cgroup"
    for directory, version, limit in (
        (top, 2, "memory.max"),
        (top / "memory", 1, "memory.limit_in_bytes"),
    ):
        if (directory / limit).is_file():
            return MemoryCgroup(directory, version, root)
    return None
