"""Finds out whether the kernel's OOM killer was at work on this machine.

From open to restricted: the counter of ``/proc/vmstat`` (any process may read it; it counts the
whole machine), the counters of the cgroups above us, and the kernel's log, which names each killed
process with its size. The log needs ``kernel.dmesg_restrict=0`` or the capability ``CAP_SYSLOG``.
What cannot be read is absent, and named.
"""

from __future__ import annotations

import ctypes
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ray_tune_memguard.system.cgroups import MemoryCgroup, memory_cgroups, read_numbers

_KIB = 1024
#: The inode of the machine's own PID namespace; processes in containers have another one.
_FIRST_PID_NAMESPACE = "pid:[4026531836]"
# One read of /dev/kmsg returns one record; the kernel's limit for a record is below this.
_RECORD_BYTES = 8192
_READ_ALL, _BUFFER_SIZE = 3, 10
#: Kills that are kept of one run.
MAX_KILLS = 200
#: The kernel may kill several processes before a run is told of the first. So what it has killed
#: counts for further deaths for so long.
TOGETHER_S = 10.0
#: A kill of a node that was not watched counts for a death of now if it is not older than this. The
#: log's clock differs from the machine's by a share of the time since its start.
RECENT_S, MAX_DRIFT = 600.0, 0.001

_KILLED = re.compile(
    r"(?:Out of memory|Memory cgroup out of memory)?(?:: )?Kill(?:ed)? process (?P<pid>\d+) "
    r"\((?P<name>.*?)\),?(?= total-vm)(?P<sizes>.*)"
)
_SIZE = re.compile(r"(anon|file|shmem)-rss:(\d+)kB")
_CONSTRAINT = re.compile(r"oom-kill:constraint=(?P<kind>\w+).*?,pid=(?P<pid>\d+)")
_CGROUP = re.compile(r"oom_memcg=(?P<cgroup>[^,]*)")
_LIMIT = re.compile(r"memory: usage \d+kB, limit (?P<limit>\d+)kB")
_TEXT_LINE = re.compile(r"(?:<\d+>)?\[ *(?P<seconds>\d+\.\d+)\](?:\[[^\]]*\])? (?P<text>.*)")


@dataclass(frozen=True)
class OomKill:
    """One process that the kernel's OOM killer has killed.

    Attributes:
        kernel_time_s: seconds since the machine started, by the clock of the kernel's log.
        pid: the process, as the machine counts: in a container it has another number.
        name: the first 15 characters of the process's name.
        rss_bytes: its resident memory; 0 if the log does not tell.
        cgroup: the cgroup whose limit was reached; empty if the machine's memory was exhausted.
        limit_bytes: the limit of this cgroup; None if the log does not tell.
    """

    kernel_time_s: float
    pid: int
    name: str
    rss_bytes: int
    cgroup: str = ""
    limit_bytes: int | None = None


@dataclass(frozen=True)
class KernelEvidence:
    """What the kernel tells about its OOM killer, since a watch began.

    Attributes:
        kills: the processes that it killed, by its log, in order of time.
        counter_rise: by how much the machine's number of kills rose; None if it cannot be read.
        cgroup_rise: the same for the cgroups above this process.
        absent: what cannot be read, and why.
        pids_are_ours: whether the numbers of processes in the log are the numbers that we see; not
            in containers.
    """

    kills: tuple[OomKill, ...] = ()
    counter_rise: int | None = None
    cgroup_rise: int | None = None
    absent: tuple[str, ...] = ()
    pids_are_ours: bool = True

    @property
    def has_log(self) -> bool:
        """Whether the kernel's log could be read."""
        return not any(name.startswith("kernel log") for name in self.absent)


class KernelLogError(OSError):
    """The kernel's log cannot be read."""


class _Counts(NamedTuple):
    """Numbers of kills; None where the kernel does not tell."""

    machine: int | None
    cgroups: int | None


@dataclass
class KernelWatch:
    """Watches the kernel's OOM killer from now on.

    Each kill explains one death: whoever finds that the kernel has caused a death calls
    :meth:`explain`.

    Args:
        root: the root directory of the file system; tests pass a copy.
    """

    root: Path = Path("/")
    _kills: list[OomKill] = field(default_factory=list)
    _read_until_s: float = 0.0

    def __post_init__(self) -> None:
        self._cgroups = memory_cgroups(None, self.root)
        # Kills are counted from the first of these, without those that are explained.
        self._counted_from = self._counted = self._count()
        self._explained = 0
        # When kills were seen that may explain a death; None if there are none.
        self._seen_at: float | None = None
        try:
            self._read_until_s = max((at for at, _ in read_log(self.root)), default=0.0)
        except KernelLogError:  # It is named when the evidence is asked for.
            self._read_until_s = time.monotonic()
        #: When the watch began, by the clock of the kernel's log.
        self.began_s = self._read_until_s

    def evidence(self) -> KernelEvidence:
        """What has happened since the watch began. It takes a few milliseconds."""
        absent = []
        self._forget_old_kills()
        try:
            records = [record for record in read_log(self.root) if record[0] > self._read_until_s]
            self._read_until_s = max((at for at, _ in records), default=self._read_until_s)
            self._kills = [*self._kills, *kills_in(records)][-MAX_KILLS:]
        except KernelLogError as error:
            absent.append(f"kernel log ({error})")
        self._counted = self._count()
        if self._counted.machine is None:
            absent.append("/proc/vmstat")
        if self._seen_at is None and (self._kills or self._counted != self._counted_from):
            self._seen_at = time.monotonic()
        return KernelEvidence(
            kills=tuple(self._kills),
            counter_rise=self._rise(self._counted_from.machine, self._counted.machine),
            cgroup_rise=self._rise(self._counted_from.cgroups, self._counted.cgroups),
            absent=tuple(absent),
            pids_are_ours=sees_machine_pids(self.root),
        )

    def explain(self, kill: OomKill | None) -> None:
        """A kill has explained a death, and explains no other one.

        Args:
            kill: the entry of the log; None if only the counters tell of it.
        """
        self._explained += 1
        self._kills = [one for one in self._kills if one is not kill]

    def _forget_old_kills(self) -> None:
        if self._seen_at is None or time.monotonic() - self._seen_at < TOGETHER_S:
            return
        self._seen_at = None
        self._counted_from, self._explained = self._counted, 0
        # Where the log has our numbers, each kill names its process.
        if not sees_machine_pids(self.root):
            self._kills = []

    def _count(self) -> _Counts:
        return _Counts(oom_kills_of_machine(self.root), _oom_kills_of(self._cgroups))

    def _rise(self, before: int | None, now: int | None) -> int | None:
        if before is None or now is None:
            return None
        return max(0, now - before - self._explained)


def recent_evidence() -> KernelEvidence:
    """What the log of this machine has of the last minutes. For nodes that were not watched."""
    now = time.monotonic()
    since = now - RECENT_S - MAX_DRIFT * now
    try:
        kills = tuple(kill for kill in kills_of_log() if kill.kernel_time_s >= since)
        return KernelEvidence(kills, pids_are_ours=sees_machine_pids())
    except KernelLogError as error:
        return KernelEvidence(absent=(f"kernel log ({error})",))


def kills_of_log(root: Path = Path("/")) -> tuple[OomKill, ...]:
    """All kills that the log still has.

    Raises:
        KernelLogError: the log cannot be read.
    """
    return tuple(kills_in(read_log(root)))


def oom_kills_of_machine(root: Path = Path("/")) -> int | None:
    """The number of the OOM killer's kills since the machine started; None if it is not told."""
    return read_numbers(root / "proc" / "vmstat", ("oom_kill",)).get("oom_kill")


def oom_kills_of_cgroup(cgroup: MemoryCgroup) -> int | None:
    """The number of kills in one cgroup (with version 2 below it, too); None if not told."""
    file = "memory.events" if cgroup.version == 2 else "memory.oom_control"
    return read_numbers(cgroup.directory / file, ("oom_kill",)).get("oom_kill")


def sees_machine_pids(root: Path = Path("/")) -> bool:
    """Whether processes have the numbers here that the kernel's log gives them."""
    try:
        return os.readlink(root / "proc" / "self" / "ns" / "pid") == _FIRST_PID_NAMESPACE
    except OSError:
        return False


def boot_id(root: Path = Path("/")) -> str:
    """Identifies the time since the machine started last; empty if it is not told."""
    try:
        return (root / "proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def read_log(root: Path = Path("/")) -> list[tuple[float, str]]:
    """The records of the kernel's log: seconds since the machine started, and the text.

    Raises:
        KernelLogError: no permission, or there is no log. The message says which.
    """
    try:
        return list(_read_device(root / "dev" / "kmsg"))
    except OSError as error:
        reason = error.strerror or str(error)
    if root == Path("/"):
        text = _read_ring_buffer()
        if text is not None:
            return _lines(text)
    raise KernelLogError(f"/dev/kmsg: {reason}")


def kills_in(records: Sequence[tuple[float, str]]) -> Iterator[OomKill]:
    """The kills that records of the log tell of."""
    cgroup_of: dict[int, str] = {}
    limit: int | None = None
    for seconds, text in records:
        if found := _LIMIT.search(text):
            limit = int(found["limit"]) * _KIB
        elif found := _CONSTRAINT.search(text):
            cgroup = _CGROUP.search(text) if "MEMCG" in found["kind"] else None
            cgroup_of[int(found["pid"])] = cgroup["cgroup"] if cgroup else ""
        elif found := _KILLED.search(text):
            pid = int(found["pid"])
            size = sum(int(size) for _, size in _SIZE.findall(found["sizes"])) * _KIB
            is_cgroup = text.startswith("Memory cgroup")
            cgroup_name = cgroup_of.get(pid, "") or ("(unknown)" if is_cgroup else "")
            yield OomKill(
                seconds, pid, found["name"], size, cgroup_name, limit if is_cgroup else None
            )
            limit = None


def _read_device(path: Path) -> Iterator[tuple[float, str]]:
    device = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        while True:
            try:
                record = os.read(device, _RECORD_BYTES)
            except BlockingIOError:
                return
            except BrokenPipeError:  # Records were overwritten while this one was read.
                continue
            if not record:
                return
            # "6,339,5140900,-;the text\n KEY=value"; the third is the time in microseconds.
            for line in record.decode(errors="replace").splitlines():
                head, semicolon, text = line.partition(";")
                fields = head.split(",")
                if semicolon and len(fields) >= 3 and fields[2].isdigit():
                    yield int(fields[2]) / 1e6, text
    finally:
        os.close(device)


def _read_ring_buffer() -> str | None:
    """The log by the system call that ``dmesg`` uses; None if it is not permitted."""
    try:
        library = ctypes.CDLL(None)
        size = library.klogctl(_BUFFER_SIZE, None, 0)
        if size <= 0:
            return None
        buffer = ctypes.create_string_buffer(size)
        length = library.klogctl(_READ_ALL, buffer, size)
    except (AttributeError, OSError):  # No such call in this C library.
        return None
    return buffer.raw[:length].decode(errors="replace") if length > 0 else None


def _lines(text: str) -> list[tuple[float, str]]:
    found = (_TEXT_LINE.fullmatch(line) for line in text.splitlines())
    return [(float(line["seconds"]), line["text"]) for line in found if line]


def _oom_kills_of(cgroups: Sequence[MemoryCgroup]) -> int | None:
    counts = [count for cgroup in cgroups if (count := oom_kills_of_cgroup(cgroup)) is not None]
    if not counts:
        return None
    # With version 2 a cgroup counts what those below it count.
    return max(counts) if cgroups[0].version == 2 else sum(counts)
