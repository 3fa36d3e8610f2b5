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
    from ray_tune_memguard.adapter.seam import Controller
    from ray_tune_memguard.cluster.trial_memory import TrialMemories

#: Peaks of this many finished trials are kept.
MAX_PEAKS = 200
READ_EVERY_S = 0.5


@dataclass
class _Trial:
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
        self._trials: dict[str, _Trial] = {}
        self.peaks: deque[int] = deque(maxlen=MAX_PEAKS)

    def read(self) -> dict[str, TrialUsage]:
        actors = self._running_actors()
        for trial_id in self._trials.keys() - actors.keys():
            ended = self._trials.pop(trial_id)
            if ended.peak:
                self.peaks.append(ended.peak)
        for trial_id in actors.keys() - self._trials.keys():
            process = self._process_of(actors[trial_id])
            if process is not None:
                self._trials[trial_id] = _Trial(process)
        trials = list(self._trials.values())
        for trial, reading in zip(
            trials, read_trees([trial.process for trial in trials]), strict=True
        ):
            trial.bytes = 0 if reading is None else reading.anonymous
            trial.peak = max(trial.peak, trial.bytes)
        return {
            trial_id: TrialUsage(self._node, trial.bytes, trial.peak)
            for trial_id, trial in self._trials.items()
            if trial.bytes
        }

    def _running_actors(self) -> dict[str, object]:
        """The actor of each trial, by trial id."""
        controller = self._controller()
        if controller is None:
            return {}
        live = controller._actor_manager._live_actors_to_ray_actors_resources
        return {
            trial.trial_id: live[tracked_actor][0]
            for tracked_actor, trial in list(controller._actor_to_trial.items())
            if tracked_actor in live
        }

    def _process_of(self, handle: object) -> ProcessKey | None:
        try:
            actor = gcs.actor_info(gcs.actor_id_of(handle))
        except gcs.ClusterStateError:
            return None
        if actor is None or actor.state != "ALIVE" or actor.node_id != self._node:
            return None
        return process_key(actor.pid)
