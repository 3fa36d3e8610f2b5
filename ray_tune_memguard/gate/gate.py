"""The gate of one run: asks :func:`~ray_tune_memguard.gate.admission.decide`, and remembers.

A node is *open* or *paused*. It is paused when a trial that could start is refused, and opens again
when none has been refused for :data:`OPEN_AFTER_S`. While it is paused, a trial may still start
when another one ends. Each change is reported once.

An answer holds until the memory is measured again, so a run with ample memory asks once a second:
until then as many trials may start as were found to fit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from ray_tune_memguard.gate.admission import Decision, NodeView, Rules, decide
from ray_tune_memguard.gate.interfaces import NodeReadings, TrialMemory, TrialUsage
from ray_tune_memguard.report.gate_records import Action, GateRecord

#: Seconds between two decisions about a node; between two while a trial waits there.
DECIDE_EVERY_S, DECIDE_AGAIN_S = 1.0, 0.25
#: Seconds without a refusal after which a paused node is open.
OPEN_AFTER_S = 5.0

#: Trial id and node of the trials that run or start. The id of a trial whose process is about to
#: end is None; a node that is not known is empty.
LiveTrials = Callable[[], Iterable[tuple["str | None", str]]]


@dataclass
class _NodeState:
    """What is remembered of one node. Times are those of the gate's clock."""

    decision: Decision = field(default_factory=lambda: Decision(0))
    valid_until: float = float("-inf")
    #: Trials that may still start by this decision.
    allowance: int = 0
    paused_at: float | None = None
    refused_at: float = float("-inf")
    #: Trials that started while the node was paused.
    started: int = 0


@dataclass
class _OnNode:
    """The trials of one node: those that run or start, and how many are about to end."""

    running: dict[str, TrialUsage] = field(default_factory=dict)
    stopping: int = 0


class Gate:
    """Decides for one run, node by node.

    Args:
        rules: what the user has asked for.
        readings: the memory of the nodes.
        memory: the memory of the trials.
        live: lists the trials that run or start.
        report: takes each record.
        clock: tells the time in seconds. Tests pass their own.
    """

    def __init__(
        self,
        rules: Rules,
        readings: NodeReadings,
        memory: TrialMemory,
        live: LiveTrials,
        report: Callable[[GateRecord], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.rules = rules
        self._readings = readings
        self._memory = memory
        self._live = live
        self._report = report
        self._clock = clock
        self._states: dict[str, _NodeState] = {}
        # The trials of all nodes; listed once for the decisions that are made at the same time.
        self._listed: dict[str, _OnNode] = {}
        self._listed_until = float("-inf")

    def admits(self, node: str) -> bool:
        """Whether one more trial may start on a node now."""
        state = self._state_with_decision(node)
        if state.allowance > 0:
            return True
        state.refused_at = self._clock()
        if state.paused_at is None:
            state.paused_at, state.started = state.refused_at, 0
            self._report(self._record(node, "pause", state.decision.reason))
        return False

    def is_paused(self, node: str) -> bool:
        """Whether trials wait on a node."""
        state = self._states.get(node)
        return state is not None and state.paused_at is not None

    def admits_everywhere(self, nodes: Sequence[str]) -> bool:
        """Whether one more trial may start, whichever node it starts on. Refuses nothing."""
        return all(self._state_with_decision(node).allowance > 0 for node in nodes)

    def start(self, nodes: Sequence[str]) -> None:
        """A trial starts.

        Args:
            nodes: its node; or all nodes, if its own is not known.
        """
        self._listed_until = float("-inf")
        for node in nodes:
            state = self._states.setdefault(node, _NodeState())
            state.allowance -= 1
            state.started += 1

    def tick(self) -> None:
        """Open the nodes on which no trial waits any more. Called at least every few seconds."""
        # Trials that end while none waits must have been measured: the next ones are sized by them.
        self._memory.running()
        now = self._clock()
        for node, state in self._states.items():
            if now - state.refused_at >= OPEN_AFTER_S:
                reason = f"no trial has waited for {OPEN_AFTER_S:.0f} s"
                for record in self._open(node, state, reason):
                    self._report(record)

    def end(self) -> list[GateRecord]:
        """Open all nodes, because the run ends; the records of those on which trials waited."""
        states = list(self._states.items())
        return [one for node, state in states for one in self._open(node, state, "the run ends")]

    def _open(self, node: str, state: _NodeState, reason: str) -> Iterator[GateRecord]:
        if state.paused_at is not None:
            seconds, state.paused_at = self._clock() - state.paused_at, None
            yield self._record(node, "resume", reason, seconds=seconds, started=state.started)

    def running_on(self, node: str) -> dict[str, TrialUsage]:
        """The trials that run or start on a node, by trial id."""
        return self._list().get(node, _OnNode()).running

    def _live_on(self, node: str) -> tuple[dict[str, TrialUsage], int]:
        """The trials that run or start on a node, and the number of those that are about to end."""
        now = self._clock()
        if now >= self._listed_until:
            self._listed, self._listed_until = self._list(), now + DECIDE_AGAIN_S
        found = self._listed.get(node, _OnNode())
        return dict(found.running), found.stopping

    def _list(self) -> dict[str, _OnNode]:
        measured = self._memory.running()
        listed: dict[str, _OnNode] = {}
        for trial_id, where in self._live():
            if trial_id is None:
                listed.setdefault(where, _OnNode()).stopping += 1
                continue
            usage = measured.get(trial_id) or TrialUsage(where)
            for node in {usage.node, where}:
                listed.setdefault(node, _OnNode()).running[trial_id] = usage
        return listed

    def admits_successor(self, node: str, trial_id: str) -> bool:
        """Whether a trial that ends may leave its process to another one.

        The other trial takes the place of this one; the gate is not asked again for it. A full node
        gets its memory back first.

        Args:
            node: the trial's node.
            trial_id: the trial.
        """
        state = self._state_with_decision(node)
        if state.decision.is_full:
            return False
        if state.allowance > 0:
            return True
        running, _ = self._live_on(node)
        usage = running.pop(trial_id, TrialUsage(node))
        limits = [
            replace(limit, used_bytes=max(0, limit.used_bytes - usage.bytes))
            for limit in self._readings.limits(node)
        ]
        view = NodeView(limits, list(running.values()), self._memory.finished_peaks())
        return decide(view, self.rules).allowance > 0

    def _state_with_decision(self, node: str) -> _NodeState:
        state = self._states.setdefault(node, _NodeState())
        now = self._clock()
        # An allowance that is used up was for trials that run now: they count in the next one.
        used_up = state.decision.allowance > 0 and state.allowance <= 0
        if now >= state.valid_until or used_up:
            running, stopping = self._live_on(node)
            view = NodeView(
                self._readings.limits(node),
                list(running.values()),
                self._memory.finished_peaks(),
                state.decision.is_full,
                stopping,
            )
            state.decision = decide(view, self.rules)
            state.allowance = state.decision.allowance
            state.valid_until = now + (DECIDE_EVERY_S if state.allowance else DECIDE_AGAIN_S)
        return state

    def _record(
        self, node: str, action: Action, reason: str, seconds: float = 0.0, started: int = 0
    ) -> GateRecord:
        decision = self._states[node].decision
        limits = [decision.limit] if decision.limit else list(self._readings.limits(node))[:1]
        return GateRecord(
            time.time(),
            action,
            node,
            reason,
            limits[0].used_bytes if limits else 0,
            limits[0].total_bytes if limits else 0,
            limits[0].source if limits else "",
            len(self._live_on(node)[0]),
            decision.expected_bytes,
            started,
            round(seconds, 1),
        )
