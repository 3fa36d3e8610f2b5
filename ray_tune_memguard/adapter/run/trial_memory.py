"""The memory of the run's trials, as the launch gate reads it.

If a ``TrialMemoryReporter`` measures the trials, on all nodes, the gate reads what it measured.
Otherwise :class:`RunTrialMemory` measures those on the driver's node itself, when the gate asks.
"""

from __future__ import annotations

import time
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ray_tune_memguard.cluster import gcs
from ray_tune_memguard.gate.interfaces import TrialUsage
from ray_tune_memguard.gate.level import LevelWatch
from ray_tune_memguard.system.process_tree import ProcessKey, process_key, read_trees

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

    from ray_tune_memguard.adapter.seam import Controller
    from ray_tune_memguard.cluster.trial_memory import TrialMemories

#: Peaks of this many finished trials are kept.
MAX_PEAKS = 200
READ_EVERY_S = 0.5


@dataclass
class _Measured:
    """A trial in the process of its actor."""

    trial: Trial
    process: ProcessKey
    bytes: int = 0
    peak: int = 0


class RunTrialMemory:
    """The anonymous memory of running trials and the peaks of finished ones.

    Args:
        controller: the run's controller; held weakly.
        own_node: the id of the driver's node.
        measured: what a ``TrialMemoryReporter`` measures, if there is one.
    """

    def __init__(self, controller: Controller, own_node: str, measured: TrialMemories) -> None:
        self._measured = measured
        self._own = _OwnNode(controller, own_node)
        self._watch = LevelWatch()
        self._usages: dict[str, TrialUsage] = {}
        self._read_at = float("-inf")

    def running(self) -> Mapping[str, TrialUsage]:
        """See :class:`ray_tune_memguard.gate.interfaces.TrialMemory`."""
        now = time.monotonic()
        if now - self._read_at >= READ_EVERY_S:
            self._read_at = now
            usages = self._read()
            level = self._watch.update({trial: use.peak_bytes for trial, use in usages.items()})
            self._usages = {
                trial: TrialUsage(use.node, use.bytes, use.peak_bytes, trial in level)
                for trial, use in usages.items()
            }
        return self._usages

    def finished_peaks(self) -> Sequence[int]:
        """See :class:`ray_tune_memguard.gate.interfaces.TrialMemory`."""
        if self._measured.is_measured:
            return self._measured.finished.latest()
        return self._own.peaks

    def _read(self) -> dict[str, TrialUsage]:
        if not self._measured.is_measured:
            return self._own.read()
        return {
            use.trial_id: TrialUsage(use.node, use.anonymous, use.peak_anonymous)
            for use in self._measured.running()
        }


class _OwnNode:
    """Reads the processes of the trials that run on the driver's node."""

    def __init__(self, controller: Controller, node: str) -> None:
        self._controller = weakref.ref(controller)
        self._node = node
        # By trial and actor: a trial that starts again has another process.
        self._measured: dict[tuple[str, str], _Measured] = {}
        self._elsewhere: set[str] = set()
        self.peaks: deque[int] = deque(maxlen=MAX_PEAKS)

    def read(self) -> dict[str, TrialUsage]:
        running = self._running()
        for key in self._measured.keys() - running.keys():
            ended = self._measured.pop(key)
            # One that is paused, or failed and tries again, may still grow.
            if ended.peak and ended.trial.is_finished():
                self.peaks.append(ended.peak)
        self._elsewhere &= {actor for _, actor in running}
        for key in running.keys() - self._measured.keys():
            process = self._process_of(key[1])
            if process is not None:
                self._measured[key] = _Measured(running[key], process)
        readings = read_trees([one.process for one in self._measured.values()])
        for one, reading in zip(self._measured.values(), readings, strict=True):
            # Without a reading its process has ended, and Ray does not know yet.
            one.bytes = 0 if reading is None else reading.anonymous
            one.peak = max(one.peak, one.bytes)
        return {
            trial_id: TrialUsage(self._node, one.bytes, one.peak)
            for (trial_id, _), one in self._measured.items()
            if one.bytes
        }

    def _running(self) -> dict[tuple[str, str], Trial]:
        """The trials that have an actor, by their ids and those of their actors."""
        controller = self._controller()
        if controller is None:
            return {}
        live = controller._actor_manager._live_actors_to_ray_actors_resources
        found = {}
        for tracked_actor, trial in list(controller._actor_to_trial.items()):
            if tracked_actor in live:
                actor = gcs.actor_id_or_none(live[tracked_actor][0])
                if actor is not None:
                    found[trial.trial_id, actor] = trial
        return found

    def _process_of(self, actor_id: str) -> ProcessKey | None:
        if actor_id in self._elsewhere:
            return None
        try:
            actor = gcs.actor_info(actor_id)
        except gcs.ClusterStateError:
            return None
        if actor is None or actor.state != "ALIVE":
            return None
        if actor.node_id != self._node:
            self._elsewhere.add(actor_id)
            return None
        return process_key(actor.pid)
