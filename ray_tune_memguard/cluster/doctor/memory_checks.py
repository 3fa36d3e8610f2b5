"""Checks of the memory monitor, of limits that Ray does not see, and of the object store."""

from __future__ import annotations

from collections.abc import Iterator

from ray_tune_memguard.cluster.doctor.facts import Facts, NodeFacts
from ray_tune_memguard.cluster.doctor.findings import Finding, Place, Remedy, Severity
from ray_tune_memguard.cluster.settings import BY_NAME
from ray_tune_memguard.report.sizes import size
from ray_tune_memguard.system.node_memory import (
    MonitorSettings,
    leaves_room,
    threshold_below,
)

_REFRESH = "memory_monitor_refresh_ms"
_THRESHOLD = "memory_usage_threshold"
_MIN_FREE = "min_memory_free_bytes"
_BY_GROUP = "worker_killing_policy_by_group"

#: Above this share the kernel is short of memory before the monitor acts.
_LATE_THRESHOLD = 0.98
#: What Ray gives the object store of the memory that it sees.
_STORE_SHARE = 0.3
#: Of the memory that is ours.
_MAX_STORE_SHARE = 0.4
_MAX_SWAP_SHARE = 0.1


def monitor_off(facts: Facts) -> Iterator[Finding]:
    """The memory monitor is off."""
    nodes = [node for node in facts.nodes if facts.setting(_REFRESH, node) == 0]
    if nodes:
        yield Finding(
            "memory-monitor-off",
            Severity.WARNING,
            "Ray's memory monitor is off.",
            "When memory runs out, the kernel chooses whom to kill, which may be the raylet or the "
            "driver, and nobody says why.",
            f"{_REFRESH} is 0.",
            (Remedy(_REFRESH, BY_NAME[_REFRESH].default),),
            where=_names(facts, nodes),
        )


def monitor_late(facts: Facts) -> Iterator[Finding]:
    """The memory monitor acts too late."""
    for node in facts.nodes:
        monitor = facts.monitor(node)
        by_free = _share_by_free(monitor, node.machine.ray_total)
        acts_at = max(monitor.threshold, by_free)
        if acts_at < _LATE_THRESHOLD:
            continue
        late = {_THRESHOLD: monitor.threshold, _MIN_FREE: by_free}
        names = [name for name, share in late.items() if share >= _LATE_THRESHOLD]
        yield Finding(
            "memory-monitor-late",
            Severity.WARNING,
            f"Ray's memory monitor acts at {acts_at:.1%} of the memory.",
            "That is too late: between two of its looks the kernel runs out of memory and "
            "kills on its own.",
            " ".join(
                f"{name} is {facts.setting(name, node)}; Ray's default is {BY_NAME[name].default}."
                for name in names
            ),
            tuple(Remedy(name, BY_NAME[name].default) for name in names),
            where=node.name,
        )


def _share_by_free(monitor: MonitorSettings, total: int | None) -> float:
    """The share at which the monitor acts because of the bytes that must be free; 0 if any may."""
    free = monitor.min_free_bytes
    if free <= 0 or total is None:
        return 1.0 if free == 0 else 0.0
    return 1 - free / total


def limit_unseen(facts: Facts) -> Iterator[Finding]:
    """A limit is tighter than the memory that Ray counts with."""
    for node in facts.nodes:
        seen, limit, by = node.machine.ray_total, *_limit(node)
        monitor = facts.monitor(node)
        if seen is None or limit is None or not monitor.is_on:
            continue
        kills_above = monitor.kills_above(seen)
        if limit < kills_above:
            has_room = leaves_room(node.used_by_others, limit)
            yield Finding(
                "memory-limit-unseen",
                Severity.SEVERE,
                f"Ray counts with {size(seen)}, but {by} allows {size(limit)}.",
                "Ray looks only at the machine and at the top of /sys/fs/cgroup; its memory "
                "monitor does not act before the limit kills.",
                f"The monitor acts at {size(kills_above)}, above {size(limit)}; others use "
                f"{size(node.used_by_others)} of the machine, which it counts as well.",
                (
                    *(_threshold_for(limit, seen, monitor) if has_room else ()),
                    *_smaller_store(node, limit),
                ),
                advice="Lower the threshold only where nobody else uses much of the machine."
                if has_room
                else "Do not lower the threshold for the limit: because of what others use, Ray "
                "would kill healthy workers. Ask for the whole node (in Slurm --exclusive "
                "--mem=0), or run fewer trials at once; LaunchGate, a part of MemGuard, counts "
                "with the limit.",
                where=node.name,
            )


def _threshold_for(limit: int, seen: int, monitor: MonitorSettings) -> Iterator[Remedy]:
    """The settings with which the monitor acts below a limit that it does not see."""
    yield Remedy(_THRESHOLD, threshold_below(limit * BY_NAME[_THRESHOLD].default / seen))
    if monitor.min_free_bytes >= 0:
        yield Remedy(_MIN_FREE, BY_NAME[_MIN_FREE].default)


def _smaller_store(node: NodeFacts, limit: int) -> Iterator[Remedy]:
    """The size of an object store that fits, unless it is smaller already."""
    fitting = int(_STORE_SHARE * limit)
    if node.object_store is None or node.object_store > fitting:
        yield Remedy("object-store-memory", fitting, is_start_argument=True, place=Place.NODE)


def store_too_large(facts: Facts) -> Iterator[Finding]:
    """The object store was sized for memory that is not ours."""
    for node in facts.nodes:
        limit, by = _limit(node)
        store, seen = node.object_store, node.machine.ray_total
        if store is None or limit is None or seen is None or limit >= seen:
            continue
        if store > _MAX_STORE_SHARE * limit:
            yield Finding(
                "object-store-too-large",
                Severity.SEVERE if store > limit else Severity.WARNING,
                f"The object store may take {size(store)} of the {size(limit)} that {by} allows.",
                f"Ray gives it {_STORE_SHARE:.0%} of what it takes for free memory, which is not "
                "all ours; pages of the store count for the limit.",
                f"Store {size(store)}, limit {size(limit)}, Ray sees {size(seen)}.",
                tuple(_smaller_store(node, limit)),
                where=node.name,
            )


def old_policy(facts: Facts) -> Iterator[Finding]:
    """The memory monitor uses the policy of Ray before 2.56."""
    nodes = [node for node in facts.nodes if facts.setting(_BY_GROUP, node)]
    if nodes and facts.ray_version >= BY_NAME[_BY_GROUP].since:
        yield Finding(
            "memory-monitor-old-policy",
            Severity.NOTE,
            "The memory monitor kills by the policy of Ray before 2.56.",
            "It kills one worker at a time, and spares idle workers, which hold memory for nobody.",
            f"{_BY_GROUP} is set.",
            (Remedy(_BY_GROUP, False),),
            where=_names(facts, nodes),
        )


def swaps(facts: Facts) -> Iterator[Finding]:
    """The machine, or Ray's container, uses swap."""
    for node in facts.nodes:
        used, memory = node.machine.swap_used, node.machine.swapped_memory
        if memory and used > _MAX_SWAP_SHARE * memory:
            yield Finding(
                "swap-in-use",
                Severity.WARNING,
                f"{size(used)} is in swap.",
                "Ray's memory monitor counts RAM only, so that trials slow down by orders of "
                "magnitude before it acts.",
                f"{size(used)} is in swap, beside {size(memory)} of memory.",
                advice="Run fewer trials at once, or turn swap off (`swapoff -a`) on machines that "
                "run trials only.",
                where=node.name,
            )


CHECKS = (monitor_off, monitor_late, limit_unseen, store_too_large, old_policy, swaps)


def _limit(node: NodeFacts) -> tuple[int | None, str]:
    """The tightest limit that is not Ray's own view, and what sets it."""
    machine = node.machine
    by_slurm = node.slurm_memory
    if by_slurm is not None and (machine.limit is None or by_slurm < machine.limit):
        return by_slurm, "the Slurm job"
    return machine.limit, machine.limit_from


def _names(facts: Facts, nodes: list[NodeFacts]) -> str:
    return "" if len(nodes) == len(facts.nodes) else ", ".join(node.name for node in nodes)
