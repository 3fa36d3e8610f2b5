"""What the gate needs to know, as protocols: who uses memory, and how much each node has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from ray_tune_memguard.system.node_memory import NodeMemory


class TrialUsage(NamedTuple):
    """The memory of one running trial.

    Attributes:
        node: the id of its node; empty if it is not known yet.
        bytes: what its processes use now; 0 before they are measured.
        peak_bytes: the most that they have used so far.
        is_level: whether this has not grown for a while.
    """

    node: str = ""
    bytes: int = 0
    peak_bytes: int = 0
    is_level: bool = False


class TrialMemory(Protocol):
    """The memory of the run's trials, as it was measured last. Any thread may measure it."""

    def running(self) -> Mapping[str, TrialUsage]:
        """The trials that have a process, by trial id; those that are measured."""
        ...

    def finished_peaks(self) -> Sequence[int]:
        """The peaks of trials that finished, in bytes; the latest ones, any order."""
        ...


class NodeReadings(Protocol):
    """The memory of the nodes, as it was measured last."""

    def nodes(self) -> Sequence[str]:
        """The ids of the nodes that are alive."""
        ...

    def limits(self, node: str) -> Sequence[NodeMemory]:
        """The limits that hold on a node; empty if they are not known."""
        ...
