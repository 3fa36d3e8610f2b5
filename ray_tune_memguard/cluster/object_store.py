"""What Ray's object store holds, by node and in all.

What stays is *primary copies* in memory and what is *spilled* to disk now, and the sum of both is
the figure that shows a leak. What the store *uses* is more: copies that were made for reading stay
until room is needed.

The control service tells the primary copies, within a second. A node's raylet writes what is
spilled to its ``debug_state.txt`` every 10 s. What it has spilled since then is in newer files of
the directory of spilled objects. The older files there are deleted later than their objects, and
count only where there is no such line.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

import ray

from ray_tune_memguard.cluster.probe import Answer, NoAnswerError, NodeProbes
from ray_tune_memguard.cluster.session import session_directory
from ray_tune_memguard.report.sizes import size

STORE = "object_store_memory"
_SPILLED = re.compile(r"num bytes currently spilled: (\d+)")
#: The beginning of the file has the node's id, the middle what is spilled.
_MAX_STATE_CHARACTERS = 65_536
#: Between a spilled file's first byte and its last.
_MAX_WRITING_S = 30.0
#: Less than this is not mentioned.
_NEGLIGIBLE = 2**20


@dataclass(frozen=True)
class StoreReading:
    """What all stores of the cluster hold, in bytes.

    Attributes:
        capacity: what they may hold in memory.
        primary: primary copies in memory.
        spilled: on disk now, as far as it is known.
        seconds: of a CPU, which the look took.
    """

    capacity: int
    primary: int
    spilled: int
    seconds: float

    @property
    def held(self) -> int:
        """What stays until nothing refers to it."""
        return self.primary + self.spilled


@dataclass(frozen=True)
class NodeStore:
    """What the store of one node holds, in bytes. What is not known is None.

    Attributes:
        node: the id of the node.
        address: its IP address.
        capacity: what it may hold in memory.
        primary: primary copies in memory.
        spilled: on disk now.
        used: all that it holds in memory, copies for reading included.
        created: of all objects since the node's start, restored copies included.
        fallback: in files, because it did not fit even after spilling.
        restored: read back from disk since the node's start.
    """

    node: str
    address: str
    capacity: int
    primary: int | None
    spilled: int | None = None
    used: int | None = None
    created: int | None = None
    fallback: int | None = None
    restored: int | None = None

    def sentences(self, is_only_node: bool = False) -> list[str]:
        """What this means, in plain words.

        Args:
            is_only_node: whether the cluster has no other node.

        Examples:
            >>> mib = 2**20
            >>> [sentence] = NodeStore("n", "10.0.0.5", 80 * mib, 0, 0, used=70 * mib).sentences()
            >>> sentence[:66]
            '70.0 MiB (88 % of the store) are copies of objects of other nodes,'
        """
        found = []
        primary, spilled = self.primary or 0, self.spilled or 0
        if primary >= _NEGLIGIBLE:
            found.append(
                f"{size(primary)} ({_percent(primary, self.capacity)} of the store) are primary "
                "copies: they stay until nothing refers to them, or are spilled."
            )
        if spilled >= _NEGLIGIBLE:
            found.append(
                f"{size(spilled)} are on disk now, because they did not fit: they stay there until "
                "nothing refers to them."
            )
        copies = (self.used or 0) - primary
        is_spilled = bool(spilled or self.restored)
        if copies >= _NEGLIGIBLE and is_only_node and not is_spilled:
            found.append(
                f"{size(copies)} ({_percent(copies, self.capacity)} of the store) are in use "
                "although nothing refers to their objects any more, because an array or a buffer "
                "that was read from the store outlives the reference; or are released right now."
            )
        elif copies >= _NEGLIGIBLE:
            of_what = "spilled objects" if is_spilled else "objects of other nodes"
            found.append(
                f"{size(copies)} ({_percent(copies, self.capacity)} of the store) are copies of "
                f"{of_what}, for reading. Ray drops those that are not in use when room is needed: "
                "they are no leak."
            )
        if self.fallback:
            found.append(
                f"{size(self.fallback)} did not fit even after spilling, because what is in the "
                "store is in use: they are in files, which makes them slow."
            )
        if not found and self.primary is not None:
            nothing = "The store holds next to nothing"
            is_past = (self.created or 0) >= _NEGLIGIBLE
            past = f"; {size(self.created or 0)} have come and gone" if is_past else ""
            found.append(f"{nothing}{past}.")
        return found


class StoreWatch:
    """Looks at all stores of the cluster, without waiting.

    Args:
        probes: what asks the nodes.
    """

    def __init__(self, probes: NodeProbes) -> None:
        self._probes = probes
        self._look: Answer[tuple[int, int, int | None, float]] | None = None
        self._asked: dict[str, Answer[int | None]] = {}
        self._spilled: dict[str, int] = {}

    @property
    def is_looking(self) -> bool:
        """Whether a look has begun and was not taken."""
        return self._look is not None

    def look(self) -> None:
        """Begin to look."""
        own = self._probes.own_node
        self._look = self._probes.ask_here(_look_here, own)
        for node in self._probes.nodes():
            if node != own and node not in self._asked:
                self._asked[node] = self._probes.ask(node, spilled_now, node)

    def take(self, timeout_s: float = 0.0) -> StoreReading | None:
        """The reading that :meth:`look` has asked for; None while it is not there.

        What is spilled on other nodes is what they have told last.

        Raises:
            NoAnswerError: the control service does not tell.
        """
        if self._look is None or not self._look.is_ready(timeout_s):
            return None
        look, self._look = self._look, None
        capacity, primary, spilled, seconds = look.get()
        self._collect(look.node, spilled)
        return StoreReading(capacity, primary, sum(self._spilled.values()), seconds)

    def _collect(self, own: str, spilled: int | None) -> None:
        told = {own: spilled}
        for node, answer in list(self._asked.items()):
            if answer.is_ready():
                del self._asked[node]
                try:
                    told[node] = answer.get()
                except NoAnswerError:  # A node that is lost holds nothing.
                    continue
        self._spilled.update({node: now for node, now in told.items() if now is not None})
        gone = self._spilled.keys() - {own, *self._probes.nodes()}
        for node in gone:
            del self._spilled[node]


def _look_here(node: str) -> tuple[int, int, int | None, float]:
    """Capacity and primary copies of the cluster, what is spilled here, and the CPU's seconds."""
    began = time.thread_time()
    capacity = ray.cluster_resources().get(STORE, 0.0)
    primary = primary_bytes(capacity, ray.available_resources().get(STORE, 0.0))
    spilled = spilled_now(node)
    return int(capacity), primary, spilled, time.thread_time() - began


def primary_bytes(total: float, available: float) -> int:
    """The primary copies, of the amounts of the resource ``object_store_memory``."""
    primary = round(total - available)
    # A node that is not idle takes one byte.
    return primary if primary > 1 else 0


def spilled_now(node: str, session: Path | None = None) -> int | None:
    """The bytes that a node of this machine has on disk now.

    Args:
        node: the id of the node.
        session: the directory of its Ray session; None for that of this process.

    Returns:
        None if it is not known.
    """
    session = session_directory() if session is None else session
    if session is None:
        return None
    files = session / f"ray_spilled_objects_{node}"
    try:
        with (session / "logs" / "debug_state.txt").open(errors="replace") as file:
            # Before it is read: a file may then count twice for 10 s, and none is left out.
            written = os.fstat(file.fileno()).st_mtime
            found = spilled_in(file.read(_MAX_STATE_CHARACTERS), node)
    except OSError:
        found = None
    # Several nodes on one machine write to the same file.
    if found is None:
        return _files_of(files)
    return found + (_files_of(files, newer_than=written) or 0)


def spilled_in(state: str, node: str) -> int | None:
    """What a raylet has written of itself to ``debug_state.txt``.

    Examples:
        >>> state = "Node ID: 4c8f\\n- num bytes currently spilled: 62916084\\n"
        >>> spilled_in(state, "4c8f"), spilled_in(state, "another")
        (62916084, None)
    """
    found = _SPILLED.search(state)
    return int(found[1]) if found and f"Node ID: {node}\n" in state else None


def _files_of(directory: Path, newer_than: float = 0.0) -> int | None:
    """The sizes of the files in a directory; it is made with the first spilled object."""
    if not directory.parent.is_dir():
        return None
    found = 0
    try:
        if directory.stat().st_mtime < newer_than - _MAX_WRITING_S:  # No file has come since.
            return 0
        with os.scandir(directory) as files:
            for file in files:
                try:
                    state = file.stat()
                except OSError:  # Ray deletes them.
                    continue
                if state.st_mtime > newer_than:
                    found += state.st_size
    except OSError:
        return 0
    return found


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / max(1, whole):.0f} %"
