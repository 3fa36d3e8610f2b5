"""Finds the memory limits that Linux control groups (cgroups) put on a process.

A process is in one cgroup of each hierarchy, and the limit of every cgroup above it counts as well:
the kernel kills when any of them is full. Docker and Kubernetes set the limit on the container's
cgroup, Slurm on the job's, several levels above the process, and systemd on a service or slice. So
:func:`memory_cgroups` walks from the cgroup of the process up to the root, as far as the mounted
file system shows it, and :func:`tightest_limit` chooses.

Both versions are read: version 1, version 2, and machines where both are mounted and the memory
controller belongs to one of them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

# Version 1 writes "no limit" as the largest multiple of the page size.
_MIN_UNLIMITED_BYTES = 2**60
_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class MemoryCgroup:
    """One cgroup of the memory controller.

    Attributes:
        directory: its directory in the cgroup file system.
        version: of the hierarchy, 1 or 2.
        root: the root directory of the file system that is searched; ``/`` outside tests.
    """

    directory: Path
    version: int
    root: Path = Path("/")

    @property
    def name(self) -> str:
        """The directory as the user knows it."""
        return f"/{self.directory.relative_to(self.root)}"

    def limit_bytes(self) -> int | None:
        """The limit in bytes; None if there is none, or it cannot be read."""
        limit = self._number("memory.max" if self.version == 2 else "memory.limit_in_bytes")
        return None if limit is None or limit >= _MIN_UNLIMITED_BYTES else limit

    def used_bytes(self) -> int | None:
        """Bytes in use without file cache, as Ray counts them; None if they cannot be read."""
        usage = self._number("memory.current" if self.version == 2 else "memory.usage_in_bytes")
        cached = self._file_cache_bytes()
        return None if usage is None or cached is None else max(0, usage - cached)

    def swap_bytes(self) -> tuple[int, int] | None:
        """Used and allowed bytes of swap; None if version 2 sets no limit for it."""
        limit = self._number("memory.swap.max") if self.version == 2 else None
        if limit is None:
            return None
        return (self.swapped_bytes() or 0, limit) if limit else (0, 0)

    def swapped_bytes(self) -> int | None:
        """Bytes in swap; None if the kernel does not count them for each cgroup."""
        if self.version == 2:
            used = self._number("memory.swap.current")
            # Pages in the swap cache are in memory, and counted there.
            cached = read_numbers(self.directory / "memory.stat", ("swapcached",))
            memory = cached.get("swapcached", 0)
        else:
            used = self._number("memory.memsw.usage_in_bytes")
            memory = self._number("memory.usage_in_bytes") or 0
        return None if used is None else max(0, used - memory)

    def _file_cache_bytes(self) -> int | None:
        """The bytes of file cache, which the kernel can reclaim."""
        prefix = "" if self.version == 2 else "total_"
        found = read_numbers(
            self.directory / "memory.stat", (f"{prefix}inactive_file", f"{prefix}active_file")
        )
        return sum(found.values()) if len(found) == 2 else None

    def _number(self, file: str) -> int | None:
        text = _read(self.directory / file).strip()
        # Version 2 writes "max" for no limit.
        return int(text) if text.isdigit() else None


@dataclass(frozen=True)
class CgroupLimit:
    """A limit that a cgroup sets.

    Attributes:
        cgroup: the cgroup.
        bytes: the limit in bytes.
    """

    cgroup: MemoryCgroup
    bytes: int


class _Hierarchy(NamedTuple):
    """A mounted hierarchy that has the memory controller, and the cgroup of the process in it."""

    version: int
    mount_point: str
    #: The cgroup that the mount point shows: a container sees its own cgroup there.
    mounted: str
    cgroup: str


def memory_cgroups(pid: int | None = None, root: Path = Path("/")) -> list[MemoryCgroup]:
    """The memory cgroups that a process is in, its own first and the highest visible one last.

    Args:
        pid: the process; None for this one.
        root: the root directory of the file system. Tests pass a copy.

    Returns:
        The cgroups; empty on a system without cgroups, or if the process does not exist.
    """
    process = root / "proc" / ("self" if pid is None else str(pid))
    for hierarchy in _hierarchies(process):
        top = PurePosixPath(hierarchy.mount_point)
        own = top / _below(hierarchy.mounted, hierarchy.cgroup)
        directories = [own, *own.parents]
        found = [
            MemoryCgroup(root / str(directory).lstrip("/"), hierarchy.version, root)
            for directory in directories[: directories.index(top) + 1]
        ]
        # In a container the path may be the host's, of which the container sees only the top.
        found = [cgroup for cgroup in found if _has_memory(cgroup)]
        if found:
            return found
    return []


def tightest_limit(cgroups: list[MemoryCgroup]) -> CgroupLimit | None:
    """The smallest limit of these cgroups, of equal ones the nearest; None if there is none."""
    limits = ((cgroup, cgroup.limit_bytes()) for cgroup in cgroups)
    found = [CgroupLimit(cgroup, limit) for cgroup, limit in limits if limit is not None]
    return min(found, key=lambda limit: limit.bytes, default=None)


def read_numbers(path: Path, keys: tuple[str, ...]) -> dict[str, int]:
    """The numbers of a file of lines like ``key 123`` or ``Key:  123 kB``.

    Args:
        path: the file. A file that cannot be read has none.
        keys: the keys to read, without colons.

    Returns:
        The numbers as the file has them, by key; without those that it lacks.
    """
    found = {}
    for line in _read(path).splitlines():
        words = line.split(maxsplit=2)
        if len(words) >= 2 and words[0].rstrip(":") in keys and words[1].isdigit():
            found[words[0].rstrip(":")] = int(words[1])
    return found


def _hierarchies(process: Path) -> Iterator[_Hierarchy]:
    """The hierarchies that may have the memory controller, the most likely first."""
    cgroup_by_controller = dict(_own_cgroups(process))
    mounts = list(_cgroup_mounts(process))
    # Where both versions are mounted, a controller belongs to one of them, and to version 1 if it
    # is listed there.
    for controller, version in (("memory", 1), ("", 2)):
        cgroup = cgroup_by_controller.get(controller)
        for kind, mounted, mount_point in mounts:
            if cgroup is not None and kind == (controller or "cgroup2"):
                yield _Hierarchy(version, mount_point, mounted, cgroup)


def _own_cgroups(process: Path) -> Iterator[tuple[str, str]]:
    """Controller and cgroup; the controller of version 2 is the empty text."""
    for line in _read(process / "cgroup").splitlines():
        _number, _, rest = line.partition(":")
        controllers, colon, cgroup = rest.partition(":")
        if colon:
            for controller in controllers.split(","):
                yield controller, cgroup


def _cgroup_mounts(process: Path) -> Iterator[tuple[str, str, str]]:
    """``memory`` or ``cgroup2``, the cgroup that the mount shows, and the mount point."""
    for line in _read(process / "mountinfo").splitlines():
        mount, _, file_system = line.partition(" - ")
        fields, kinds = mount.split(), file_system.split()
        if len(fields) < 5 or not kinds:
            continue
        mounted, mount_point = (_unescaped(field) for field in fields[3:5])
        if kinds[0] == "cgroup2":
            yield "cgroup2", mounted, mount_point
        elif kinds[0] == "cgroup" and "memory" in kinds[-1].split(","):
            yield "memory", mounted, mount_point


def _below(mounted: str, cgroup: str) -> str:
    """The path of the cgroup below the mount point.

    It is empty if the process is outside of what is mounted, as with a namespace (``/../..``).
    """
    relative = os.path.relpath(cgroup or "/", mounted or "/")
    return (
        "" if relative == "." or relative.startswith("..") or cgroup.startswith("/..") else relative
    )


def _has_memory(cgroup: MemoryCgroup) -> bool:
    # The root cgroup of version 2 has statistics only.
    return (cgroup.directory / "memory.stat").is_file()


def _unescaped(field: str) -> str:
    return _OCTAL.sub(lambda found: chr(int(found[1], 8)), field)


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
