"""The memory of all nodes, for decisions that are made in the driver's loop and must not wait.

The driver's own node is read at once (50 µs), at most every :data:`READ_EVERY_S`. Another node is
asked through its probe every :data:`ASK_EVERY_S`, and its last answer counts until the next one is
there, but not longer than :data:`MAX_AGE_S`. A node that has not answered yet has no limits.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ray_tune_memguard.cluster.probe import Answer, NoAnswerError
from ray_tune_memguard.system.node_memory import (
    MemoryLimits,
    MonitorSettings,
    NodeMemory,
    NodeMemoryReader,
)

if TYPE_CHECKING:
    from ray_tune_memguard.cluster.probe import NodeProbes

READ_EVERY_S = 0.25
ASK_EVERY_S = 1.0
MAX_AGE_S = 30.0
#: A cluster of one node, whose id nobody asks for.
THIS_NODE = "this node"


def read_limits(monitor: MonitorSettings) -> MemoryLimits:
    """The limits that hold on the node on which it is called; a probe calls it."""
    return _reader(monitor).read()


@functools.lru_cache(maxsize=4)
def _reader(monitor: MonitorSettings) -> NodeMemoryReader:
    return NodeMemoryReader(monitor)


class ClusterMemory:
    """The limits of each node, and what is used of them.

    Args:
        reader: measures the driver's own node.
        monitor: the settings of Ray's memory monitor.
        probes: ask the other nodes; None for a cluster of one node.
    """

    def __init__(
        self, reader: NodeMemoryReader, monitor: MonitorSettings, probes: NodeProbes | None
    ) -> None:
        self._reader = reader
        self._monitor = monitor
        self._probes = probes
        self.own_node = THIS_NODE if probes is None else probes.own_node
        self._limits: dict[str, list[NodeMemory]] = {}
        self._read_at: dict[str, float] = {}
        self._asked: dict[str, Answer[MemoryLimits]] = {}
        # When the question was asked whose answer counts.
        self._measured_at: dict[str, float] = {}

    def limits_of_own_node(self) -> MemoryLimits:
        """Both views of the driver's node, measured now."""
        return self._reader.read()

    def nodes(self) -> Sequence[str]:
        """The ids of the nodes that are alive."""
        return [self.own_node] if self._probes is None else self._probes.nodes()

    def limits(self, node: str) -> Sequence[NodeMemory]:
        """The limits that hold on a node; empty if they are not known."""
        if node == self.own_node:
            if self._is_due(node, READ_EVERY_S):
                self._limits[node] = self._reader.read().known()
        elif self._probes is not None:
            self._collect(node)
            if node not in self._asked and self._is_due(node, ASK_EVERY_S):
                self._asked[node] = self._probes.ask(node, read_limits, self._monitor)
            if time.monotonic() - self._measured_at.get(node, 0.0) > MAX_AGE_S:
                self._limits.pop(node, None)
        return self._limits.get(node, [])

    def _is_due(self, node: str, every_s: float) -> bool:
        now = time.monotonic()
        if now - self._read_at.get(node, float("-inf")) < every_s:
            return False
        self._read_at[node] = now
        return True

    def _collect(self, node: str) -> None:
        answer = self._asked.get(node)
        if answer is None or not answer.is_ready():
            return
        del self._asked[node]
        # Without an answer the last one still counts: where memory is short, Ray's monitor may kill
        # the probe, and another one takes some seconds.
        with contextlib.suppress(NoAnswerError):
            self._limits[node] = answer.get().known()
            self._measured_at[node] = self._read_at[node]
