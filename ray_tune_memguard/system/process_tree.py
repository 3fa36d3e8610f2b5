"""Measures the memory of processes and of their descendants.

Three figures of a process, all in bytes:

- *RSS*: what is in memory and mapped by the process, shared pages included.
- *anonymous memory*: RSS without shared memory and files, which ``top`` shows as RSS - SHR. With
  descendants the pages that a fork shares count once, not once for each process: how many there
  are is read (``smaps_rollup``) as often as that is cheap.
- *highest RSS*: the highest RSS that the process has ever had, as the kernel keeps it (``VmHWM``).

Where there is no ``/proc``, ``psutil`` reads what the system has.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

import psutil

# Searching children lists all processes, if one has started, and reads the new ones.
MAX_SEARCH_SHARE = 0.0005
#: Trees of which one look reads the highest RSS, which takes twice as long as RSS alone.
MAX_HIGHEST = 16
# After this time without a search pids may have been all round (32,768 of them on some systems).
_MAX_AGE_S = 30.0
# For this the kernel walks all pages of each descendant.
MAX_PAGES_SHARE = 0.01
_HAS_PROC = os.path.exists("/proc/self/statm")
# proc(5), since Linux 4.5.
_SIZES = re.compile(rb"\nVmHWM:\s+(\d+) kB\nVmRSS:\s+(\d+) kB\nRssAnon:\s+(\d+) kB\n")


class ProcessKey(NamedTuple):
    """A process. The system uses a pid again, but not with the same start time.

    Attributes:
        pid: its number.
        started: its start time, in units of the system.
    """

    pid: int
    started: float


class ProcessReading(NamedTuple):
    """What one process uses, in bytes.

    Attributes:
        key: the process.
        rss: its RSS.
        anonymous: its anonymous memory.
        highest_rss: its highest RSS so far; 0 if it was not read, or the system does not tell.
    """

    key: ProcessKey
    rss: int
    anonymous: int
    highest_rss: int


class TreeReading(NamedTuple):
    """What a process and its descendants use.

    Attributes:
        root: the process.
        children: its descendants.
        at: when it was read, by ``time.time()``.
    """

    root: ProcessReading
    children: tuple[ProcessReading, ...]
    at: float

    @property
    def rss(self) -> int:
        return self.root.rss + sum(child.rss for child in self.children)

    @property
    def anonymous(self) -> int:
        return self.root.anonymous + sum(child.anonymous for child in self.children)


def begin_reading(pid: int, reset: bool) -> TreeReading | None:
    """The first reading of a process tree.

    Args:
        pid: the process.
        reset: whether the highest RSS shall count from now on, because the process has done other
            work before.

    Returns:
        The reading; None if there is no such process.
    """
    key = process_key(pid)
    if key is None:
        return None
    if reset:
        reset_highest_rss(pid)
    return read_tree(key)


def read_tree(root: ProcessKey) -> TreeReading | None:
    """Read a process, if it is still the same one, and its descendants that are known."""
    return _read_tree(root) if process_key(root.pid) == root else None


def read_trees(roots: Sequence[ProcessKey], turn: int = 0) -> list[TreeReading | None]:
    """Read processes and their descendants.

    The highest RSS is read of some 16 trees in each call: of more trees in turn.

    New descendants are found by a search, unless no process has started since the last one. A
    search may take 0.05 % of a core: where there are 200 processes, there is one each second.

    Args:
        roots: the processes.
        turn: one more in each call for these trees.

    Returns:
        A reading for each; None for a process that has ended.
    """
    _descendants.update(roots)
    _common.update(roots)
    turns = -(-len(roots) // MAX_HIGHEST)
    # By pid, because the number of the others changes.
    return [_read_tree(root, (root.pid + turn) % turns == 0) for root in roots]


def process_key(pid: int) -> ProcessKey | None:
    """The process that has this pid now; None if there is none."""
    found = _parent_and_start(pid)
    return None if found is None else ProcessKey(pid, found[1])


def reset_highest_rss(pid: int) -> bool:
    """Let the highest RSS of a process count from now on.

    Returns:
        Whether the system allows it.
    """
    try:
        # 5: proc(5), since Linux 4.0.
        with open(f"/proc/{pid}/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        return False
    return True


def _read_tree(root: ProcessKey, with_highest: bool = True) -> TreeReading | None:
    reading = _read(root, with_highest)
    if reading is None or _descendants.are_without(root):
        return None
    keys = _descendants.of(root.pid)
    if not keys:  # Most have none.
        return TreeReading(reading, (), time.time())
    children = [child for key in keys if (child := _read(key, with_highest)) is not None]
    # What a child shares counts in its parent. A new child shares all until more is known.
    children = [
        _without_common(child, _common.of(child.key, child.anonymous)) for child in children
    ]
    return TreeReading(reading, tuple(children), time.time())


def _without_common(reading: ProcessReading, common: int) -> ProcessReading:
    own = max(0, reading.anonymous - common)
    return ProcessReading(reading.key, reading.rss, own, reading.highest_rss)


def _read(key: ProcessKey, with_highest: bool) -> ProcessReading | None:
    if not _HAS_PROC:
        return _read_by_psutil(key)
    try:
        found = _SIZES.search(_text_of(key.pid, "status")) if with_highest else None
        if found is not None:
            highest, rss, anonymous = [int(size) * 1024 for size in found.groups()]
            return ProcessReading(key, rss, anonymous, max(highest, rss))
        # It has ended, or the system keeps no highest RSS (gVisor).
        sizes = _text_of(key.pid, "statm").split()
        rss, shared = int(sizes[1]) * _PAGE, int(sizes[2]) * _PAGE
    except (OSError, IndexError, ValueError):
        return None
    # Without memory it has ended, and its parent does not know yet.
    return ProcessReading(key, rss, rss - shared, 0) if rss else None


def _read_by_psutil(key: ProcessKey) -> ProcessReading | None:
    try:
        memory = psutil.Process(key.pid).memory_info()
    except psutil.Error:
        return None
    shared = getattr(memory, "shared", 0)
    return ProcessReading(key, memory.rss, memory.rss - shared, getattr(memory, "peak_wset", 0))


def _last_pid() -> int:
    """The number of the process or thread that was started last; 0 if unknown (gVisor)."""
    try:
        with open("/proc/loadavg", "rb", buffering=0) as file:
            return int(file.read().split()[-1])
    except (OSError, IndexError, ValueError):
        return 0


def _is_between(pid: int, earlier: int, later: int) -> bool:
    """Whether a process that has this pid may have started between two values of the last pid.

    The system gives pids in ascending order, and begins anew at the end. That it has been all round
    between the two is not seen.
    """
    if not (earlier and later):
        return True
    if earlier <= later:
        return earlier < pid <= later
    return pid > earlier or pid <= later


def _text_of(pid: int, name: str) -> bytes:
    # Twice as fast as `open`, and this is done for each process at each look.
    file = os.open(f"/proc/{pid}/{name}", os.O_RDONLY)
    try:
        return os.read(file, 8192)
    finally:
        os.close(file)


def _parent_and_start(pid: int) -> tuple[int, float] | None:
    try:
        if not _HAS_PROC:
            process = psutil.Process(pid)
            return process.ppid(), process.create_time()
        # The name, in parentheses, may contain anything.
        fields = _text_of(pid, "stat").rpartition(b")")[2].split()
        return int(fields[1]), float(fields[19])
    except (OSError, psutil.Error, IndexError, ValueError):
        return None


class _Budget:
    """Says when something is due again that may take a share of one core."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._due_at = 0.0

    def is_due(self) -> bool:
        return time.monotonic() >= self._due_at

    def spend(self, since: float) -> None:
        """Account for the time of this thread since ``time.thread_time()`` was ``since``."""
        self._due_at = time.monotonic() + (time.thread_time() - since) / self._share


class _Descendants:
    """The descendants of the processes that are read, as of the last search."""

    def __init__(self) -> None:
        self._budget = _Budget(MAX_SEARCH_SHARE)
        self._lock = threading.Lock()
        self._known: dict[int, list[ProcessKey]] = {}
        self._ended: set[ProcessKey] = set()
        self._searched: set[ProcessKey] = set()
        self._last_pid = 0
        self._read_at = -_MAX_AGE_S
        # The processes of this machine: parent and start time.
        self._table: dict[int, tuple[int, float]] = {}

    def of(self, pid: int) -> list[ProcessKey]:
        return self._known.get(pid, [])

    def are_without(self, root: ProcessKey) -> bool:
        """Whether the last search found that the root has ended."""
        return root in self._ended

    def update(self, roots: Sequence[ProcessKey]) -> None:
        """Search, if it is time, and if there can be others than at the last search."""
        # Each run of this process has a thread that searches.
        with self._lock:
            last_pid = _last_pid()
            has_news = (
                not last_pid or last_pid != self._last_pid or not self._searched.issuperset(roots)
            )
            if has_news and self._budget.is_due():
                began, is_old = time.thread_time(), time.monotonic() > self._read_at + _MAX_AGE_S
                self._read_new_processes(0 if is_old else self._last_pid, last_pid)
                if is_old:  # Reading all of them once does not put off the next search.
                    began = time.thread_time()
                self._search(roots)
                self._budget.spend(began)

    def _read_new_processes(self, earlier: int, last_pid: int) -> None:
        """Bring the table up to date. Only what has started since the last search is read.

        Args:
            earlier: the last pid at that search; 0 to read all.
            last_pid: the last pid now; 0 if unknown.
        """
        table = self._table
        self._last_pid, self._read_at = last_pid, time.monotonic()
        pids = set(psutil.pids())
        for pid in table.keys() - pids:
            del table[pid]
        for pid in pids:
            if pid not in table or _is_between(pid, earlier, last_pid):
                found = _parent_and_start(pid)
                if found is not None:
                    table[pid] = found
                else:
                    table.pop(pid, None)

    def _search(self, roots: Sequence[ProcessKey]) -> None:
        children: dict[int, list[ProcessKey]] = {}
        for pid, (parent, started) in self._table.items():
            children.setdefault(parent, []).append(ProcessKey(pid, started))
        # Another run of this process asks for others in turn.
        searched = self._searched.union(roots)
        ended = {root for root in searched if not self._has(root)}
        self._searched = searched - ended
        known = {}
        for root in self._searched:
            if found := _below(root, children):
                known[root.pid] = found
        # Other threads read them without the lock, so each is replaced as a whole.
        self._known, self._ended = known, ended

    def _has(self, process: ProcessKey) -> bool:
        found = self._table.get(process.pid)
        if found is not None and found[1] != process.started:
            # Either the table is wrong, or another process has this pid now.
            found = _parent_and_start(process.pid)
            if found is not None:
                self._table[process.pid] = found
        return found is not None and found[1] == process.started


def _below(root: ProcessKey, children: dict[int, list[ProcessKey]]) -> list[ProcessKey]:
    """All descendants of a process."""
    found = [root]
    for parent in found:  # Which grows meanwhile.
        for child in children.get(parent.pid, ()):
            # One that is older is an orphan: its parent had the same pid.
            if child.started >= parent.started and child not in found:
                found.append(child)
    return found[1:]


class _Common:
    """How many bytes of its anonymous memory a descendant shares."""

    def __init__(self) -> None:
        self._budget = _Budget(MAX_PAGES_SHARE)
        self._known: dict[ProcessKey, int] = {}

    def of(self, key: ProcessKey, default: int) -> int:
        return self._known.get(key, default)

    def update(self, roots: Sequence[ProcessKey]) -> None:
        """Read them of all trees with descendants, if it is time."""
        if not self._budget.is_due():
            return
        began = time.thread_time()
        known = {}
        for root in roots:
            for key in _descendants.of(root.pid):
                known[key] = _shared_anonymous(key.pid)
        self._known = known
        self._budget.spend(began)


def _shared_anonymous(pid: int) -> int:
    """Bytes of anonymous memory that the process has not for itself; 0 if unknown."""
    try:
        amounts = {
            words[0]: int(words[1])
            for line in _text_of(pid, "smaps_rollup").splitlines()[1:]
            if len(words := line.split()) > 1
        }
        return max(0, amounts[b"Anonymous:"] - amounts[b"Private_Dirty:"]) * 1024
    except (OSError, KeyError, ValueError):  # No permission, no such kernel, or it has ended.
        return 0


_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
_descendants = _Descendants()
_common = _Common()
