"""Decides whether one more trial may start on a node. Pure: values in, a value out.

The rules, in this order:

1. A node without a trial admits one, whatever its memory is. Otherwise a run could wait for
   ever: for memory that another program uses, or for a trial that is larger than the node.
2. While the node is *full* none starts. It becomes full when the used share of a limit reaches
   ``pause``, and stays so until all are below ``resume``.
3. With slow start one trial runs until the size of a trial is known.
4. A trial starts if what is used now, what the running trials will still take and what this one
   will take stay below ``pause`` of each limit.

Nothing is decided about a node whose memory is not known: it admits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ray_tune_memguard.gate.forecast import Forecast
from ray_tune_memguard.gate.interfaces import TrialUsage
from ray_tune_memguard.report.sizes import size
from ray_tune_memguard.system.node_memory import NodeMemory

#: More trials than this are not admitted at once.
MAX_ALLOWANCE = 1000


@dataclass(frozen=True)
class Rules:
    """What the user has asked for.

    Attributes:
        pause: the share of a limit that used and expected memory must stay below.
        resume: the share below which a full node admits again; less than ``pause``.
        slow_start: whether one trial runs alone until its size is known.
        memory_per_trial: bytes that a trial needs at least, if the user has said so.
    """

    pause: float = 0.9
    resume: float = 0.8
    slow_start: bool = False
    memory_per_trial: int | None = None


@dataclass(frozen=True)
class NodeView:
    """One node, as it was measured last.

    Attributes:
        limits: the limits that hold there, each with the usage that belongs to it.
        running: the trials that run or start there.
        finished_peaks: the peaks of finished trials, of all nodes, in bytes.
        was_full: whether the node was full at the last decision.
        stopping: trials whose processes are about to end, and hold their memory until then.
    """

    limits: Sequence[NodeMemory]
    running: Sequence[TrialUsage] = ()
    finished_peaks: Sequence[int] = ()
    was_full: bool = False
    stopping: int = 0


@dataclass(frozen=True)
class Decision:
    """The answer.

    Attributes:
        allowance: how many trials may start; 0 for none.
        is_full: whether the node is full.
        reason: why none may start; empty if one may.
        limit: the limit that decided; None if none did.
        expected_bytes: what the next trial is expected to take.
    """

    allowance: int
    is_full: bool = False
    reason: str = ""
    limit: NodeMemory | None = None
    expected_bytes: int = 0


def decide(node: NodeView, rules: Rules) -> Decision:
    """Decide how many trials may start on a node now.

    Args:
        node: the node.
        rules: what the user has asked for.
    """
    forecast = Forecast(node.running, node.finished_peaks, rules.memory_per_trial)
    expected = forecast.next_peak
    threshold = rules.resume if node.was_full else rules.pause
    full = [limit for limit in node.limits if limit.share >= threshold]
    is_empty = not node.running and not node.stopping
    if full and is_empty:
        return Decision(1, True, "", full[0], expected)
    if full:
        missed = rules.pause if full[0].share >= rules.pause else rules.resume
        reason = f"{describe(full[0])} is used, which is not below {missed:.0%}"
        return Decision(0, True, reason, full[0], expected)
    if rules.slow_start and _is_size_unknown(node, rules):
        if is_empty:
            return Decision(1, False, "", None, expected)
        reason = "slow_start: one trial runs until it has finished or its memory is level"
        return Decision(0, False, reason, None, expected)
    if forecast.is_blind or not node.limits:
        return Decision(MAX_ALLOWANCE, False, "", None, expected)
    allowances = [(_fitting(forecast, limit, rules.pause), limit) for limit in node.limits]
    allowance, limit = min(allowances, key=lambda pair: pair[0])
    if allowance or is_empty:
        return Decision(max(1, allowance), False, "", None, expected)
    reason = (
        f"{describe(limit)} is used, {size(forecast.growth())} more is expected of "
        f"{_count(len(node.running))}, and the next one needs {size(expected)}: together more than "
        f"{rules.pause:.0%}"
    )
    return Decision(0, False, reason, limit, expected)


def _is_size_unknown(node: NodeView, rules: Rules) -> bool:
    return (
        not node.finished_peaks
        and rules.memory_per_trial is None
        and not any(trial.is_level for trial in node.running)
    )


def _fitting(forecast: Forecast, limit: NodeMemory, pause: float) -> int:
    """How many more trials fit below the share of a limit."""
    room = int(limit.total_bytes * pause) - limit.used_bytes
    if forecast.growth(more=1) > room:
        return 0
    more = 1
    while more < MAX_ALLOWANCE and forecast.growth(more=2 * more) <= room:
        more *= 2
    return more


def describe(memory: NodeMemory) -> str:
    """What is used of a limit, in words."""
    return f"{size(memory.used_bytes)} of {size(memory.total_bytes)} ({memory.source})"


def _count(trials: int) -> str:
    return "the running trial" if trials == 1 else f"the {trials} running trials"
