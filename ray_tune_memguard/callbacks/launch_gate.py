"""Lets trials wait while they would not fit into memory."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ray_tune_memguard import options as opt
from ray_tune_memguard.callbacks.base import GuardCallback, guarded
from ray_tune_memguard.callbacks.recording import RunRecords
from ray_tune_memguard.gate.admission import Rules, describe
from ray_tune_memguard.gate.gate import Gate
from ray_tune_memguard.notices import logger
from ray_tune_memguard.report.gate_records import KIND, Action, GateRecord
from ray_tune_memguard.report.readings import NodeLevel

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

    from ray_tune_memguard.gate.interfaces import NodeReadings, TrialMemory
    from ray_tune_memguard.system.node_memory import MonitorSettings, NodeMemory

#: Below the share at which Ray's memory monitor kills.
PAUSE_BELOW_KILL = 0.05
#: Between ``pause`` and ``resume``.
HYSTERESIS = 0.1
#: Seconds between two looks at what is used, and between two trials that are paused on a node.
LOOK_EVERY_S, SHED_EVERY_S = 1.0, 10.0

_WORDS = {
    "pause": "LaunchGate: trials wait",
    "resume": "LaunchGate: trials start again",
    "shed": "LaunchGate: a running trial is paused",
    "stop": "LaunchGate: the run ends and can be resumed",
}


@dataclass
class _GateState:
    """The state of one run. Times are those of ``time.monotonic()``."""

    gate: Gate
    readings: NodeReadings
    own_node: str
    shed_at: float
    records: RunRecords
    trials: list[Trial] = field(default_factory=list)
    look_at: float = 0.0
    shed_again_at: dict[str, float] = field(default_factory=dict)
    actions: Counter[str] = field(default_factory=Counter)
    is_stopped: bool = False


class LaunchGate(GuardCallback):
    """Starts a trial only if it fits into memory beside those that run.

    A trial fits if what is used on its node now, what the running trials will still take and what
    this one will take stay below ``pause`` of the node's memory. What a trial will take is known
    from the peaks of finished and running trials, or from ``memory_per_trial``. Used and total
    memory are those that Ray's memory monitor counts, and those of the tightest cgroup above, where
    that is another one. A node on which no trial runs always starts one.

    Each pause and what ends it is one line of the log and one record, see
    :func:`ray_tune_memguard.read_gate`.

    Args:
        launch_gate: whether the callback is active. Default True, or
            ``TUNE_MEMGUARD_LAUNCH_GATE``.
        pause: share of the memory, up to 1. Default: 0.05 less than the share at which Ray's memory
            monitor kills, and no gate if the monitor is off; or ``TUNE_MEMGUARD_PAUSE``.
        resume: a node that has reached ``pause`` starts trials again below this share. Default:
            0.1 less than ``pause``, or ``TUNE_MEMGUARD_RESUME``.
        slow_start: whether one trial runs alone on each node until it has finished or its memory
            has been level for a minute, so that the size of a trial is known before many start.
            Default False, or ``TUNE_MEMGUARD_SLOW_START``.
        memory_per_trial: bytes that a trial needs at least, also as text such as ``"2 GB"``.
            Default None (measured only), or ``TUNE_MEMGUARD_MEMORY_PER_TRIAL``.
        shed: whether, halfway between ``pause`` and the share at which Ray's monitor kills, the
            newest trial that has a checkpoint is paused. It goes on from its checkpoint when there
            is room. Default False, or ``TUNE_MEMGUARD_SHED``.
        stop_at: share of the memory of the driver's node at which the run ends so that
            ``Tuner.restore`` continues it; None for never. Default None, or
            ``TUNE_MEMGUARD_STOP_AT``.

    Raises:
        ValueError, TypeError: an argument, or its environment variable, is not allowed.

    Examples:
        >>> from ray_tune_memguard import LaunchGate
        >>> LaunchGate(pause=0.8, memory_per_trial="1.5 GiB").memory_per_trial
        1610612736
        >>> LaunchGate(memory_per_trial="much")
        Traceback (most recent call last):
        ValueError: memory_per_trial must be a positive number of bytes, also as text with a unit \
("2 GB", "512 MiB"), or None; got 'much'
    """

    _state: _GateState | None = None

    def __init__(
        self,
        launch_gate: bool | opt.Unset = opt.UNSET,
        pause: float | opt.Unset | None = opt.UNSET,
        resume: float | opt.Unset | None = opt.UNSET,
        slow_start: bool | opt.Unset = opt.UNSET,
        memory_per_trial: float | str | opt.Unset | None = opt.UNSET,
        shed: bool | opt.Unset = opt.UNSET,
        stop_at: float | opt.Unset | None = opt.UNSET,
    ) -> None:
        self.launch_gate = opt.resolve("launch_gate", launch_gate, True, opt.flag)
        self.pause = opt.resolve("pause", pause, None, opt.fraction_or_none)
        self.resume = opt.resolve("resume", resume, None, opt.fraction_or_none)
        self.slow_start = opt.resolve("slow_start", slow_start, False, opt.flag)
        self.memory_per_trial = opt.resolve(
            "memory_per_trial", memory_per_trial, None, opt.size_or_none
        )
        self.shed = opt.resolve("shed", shed, False, opt.flag)
        self.stop_at = opt.resolve("stop_at", stop_at, None, opt.fraction_or_none)
        _check_order("resume", self.resume, "pause", self.pause)
        _check_order("pause", self.pause, "stop_at", self.stop_at)
        self.options = {
            "launch_gate": self.launch_gate,
            "pause": self.pause,
            "resume": self.resume,
            "slow_start": self.slow_start,
            "memory_per_trial": self.memory_per_trial,
            "shed": self.shed,
            "stop_at": self.stop_at,
        }

    def begin(self) -> None:
        self._state = None
        if not self.launch_gate:
            return
        if not self.claim("launch gate"):
            return
        parts = self.run.memory_of_nodes(self)
        if parts is None:
            return
        monitor, readings = parts
        limits = readings.limits_of_own_node()
        self.notices.remark("limit", limits.describe())
        if warning := limits.warning(monitor):
            self.notices.warn("other limit", warning)
        if not (monitor.is_on or self.pause or self.stop_at):
            self.notices.remark(
                "off",
                "LaunchGate is off because Ray's memory monitor is off. LaunchGate(pause=0.9) "
                "turns it on.",
            )
            return
        launches = self.run.watch_launches(readings.nodes)
        if launches is None:
            return
        memory: TrialMemory = self.run.gate_memory(readings.own_node)
        kill = _kill_share(monitor, readings.limits(readings.own_node))
        rules = self._rules(kill)
        gate = Gate(rules, readings, memory, launches.live, self._report)
        self._state = _GateState(
            gate,
            readings,
            readings.own_node,
            (rules.pause + kill) / 2,
            RunRecords(self.run, KIND, type(self).__name__, self.notices),
        )
        launches.gate = gate
        if self.shed and not self.run.can_pause_trials():
            self.notices.warn(
                "shed",
                "LaunchGate: shed=True has no effect in this run, because its scheduler does not "
                "take up trials that it has not paused itself.",
            )

    def _rules(self, kill: float) -> Rules:
        pause = self.pause
        if pause is None:
            pause = max(kill - PAUSE_BELOW_KILL, kill / 2)
            if self.stop_at is not None:
                pause = min(pause, self.stop_at)
        resume = self.resume
        if resume is not None and resume >= pause:
            self.notices.warn(
                "resume",
                f"LaunchGate: resume={resume} is not less than pause, which is {pause:.2f} here; "
                "it falls back to its default.",
            )
            resume = None
        if resume is None:
            resume = max(pause - HYSTERESIS, pause / 2)
        return Rules(pause, resume, self.slow_start, self.memory_per_trial)

    @guarded
    def on_step_end(self, iteration: int, trials: list[Trial], **info: object) -> None:
        state = self._state
        if state is None:
            return
        state.trials = trials
        now = time.monotonic()
        if now < state.look_at:
            return
        state.look_at = now + LOOK_EVERY_S
        state.gate.tick()
        if self.stop_at is not None and not state.is_stopped:
            self._stop_in_time(state, self.stop_at)
        if self.shed and not state.is_stopped:
            for node in state.readings.nodes():
                self._shed_if_needed(state, node, now)

    @guarded
    def on_experiment_end(self, trials: list[Trial], **info: object) -> None:
        state = self._state
        try:
            # A pause that stays open would last until the next run. A stop ends all of them.
            if state is not None and not state.actions["stop"]:
                for record in state.gate.end():
                    self._keep(record)
        finally:
            self.run.release_nodes(self)

    def disable(self, error: Exception) -> None:
        super().disable(error)
        self._state = None
        if hasattr(self, "run"):
            self.run.open_gate()

    def number_by_action(self) -> dict[str, int]:
        """The number of each of the gate's actions in this run."""
        return {} if self._state is None else dict(self._state.actions)

    def levels(self) -> list[NodeLevel]:
        """How full each node is whose memory is known. Called by the run's thread."""
        state = self._state
        if state is None:
            return []
        fullest = {node: _fullest(state.readings.limits(node)) for node in state.readings.nodes()}
        return [
            NodeLevel(node, limit.share, state.gate.rules.pause, state.gate.is_paused(node))
            for node, limit in fullest.items()
            if limit is not None
        ]

    def _stop_in_time(self, state: _GateState, stop_at: float) -> None:
        fullest = _fullest(state.readings.limits(state.own_node))
        if fullest is None or fullest.share < stop_at:
            return
        state.is_stopped = True
        if not self.run.end_resumably():
            self.notices.warn(
                "stop", "LaunchGate: stop_at has no effect, because this run cannot be ended early."
            )
            return
        reason = f"{describe(fullest)} is used, which is not below {stop_at:.0%} (stop_at)"
        self._report(_record("stop", state, state.own_node, reason, fullest))

    def _shed_if_needed(self, state: _GateState, node: str, now: float) -> None:
        fullest = _fullest(state.readings.limits(node))
        if (
            fullest is None
            or fullest.share < state.shed_at
            or now < state.shed_again_at.get(node, 0.0)
            or not self.run.can_pause_trials()
        ):
            return
        running = state.gate.running_on(node)
        # The last one would start again at once.
        trial_id = self.run.pause_newest(running) if len(running) > 1 else None
        if trial_id is None:
            return
        state.shed_again_at[node] = now + SHED_EVERY_S
        reason = (
            f"{describe(fullest)} is used, which is not below {state.shed_at:.0%}; trial "
            f"{trial_id} goes on from its checkpoint when there is room"
        )
        self._report(_record("shed", state, node, reason, fullest, trial_id))

    def _report(self, record: GateRecord) -> None:
        where = "" if self._has_one_node() else f" on node {record.node[:8]}"
        logger.info("%s%s: %s.", _WORDS[record.action], where, record.reason)
        self._keep(record)

    def _keep(self, record: GateRecord) -> None:
        if self._state is not None:
            self._state.actions[record.action] += 1
            self._state.records.add(self._state.trials, record)

    def _has_one_node(self) -> bool:
        return self._state is None or len(self._state.readings.nodes()) == 1


def _check_order(low_name: str, low: float | None, high_name: str, high: float | None) -> None:
    if low is not None and high is not None and low >= high:
        raise ValueError(
            f"{low_name} must be less than {high_name}; got {low_name}={low} and {high_name}={high}"
        )


def _kill_share(monitor: MonitorSettings, limits: Iterable[NodeMemory]) -> float:
    """The used share at which Ray's memory monitor kills; 1 if it is off."""
    total = next((memory.total_bytes for memory in limits), 0)
    if not monitor.is_on:
        return 1.0
    return monitor.kills_above(total) / total if total else monitor.threshold


def _fullest(limits: Iterable[NodeMemory]) -> NodeMemory | None:
    return max(limits, key=lambda memory: memory.share, default=None)


def _record(
    action: Action,
    state: _GateState,
    node: str,
    reason: str,
    limit: NodeMemory,
    trial_id: str = "",
) -> GateRecord:
    return GateRecord(
        time.time(),
        action,
        node,
        reason,
        limit.used_bytes,
        limit.total_bytes,
        limit.source,
        len(state.gate.running_on(node)),
        trial_id=trial_id,
    )
