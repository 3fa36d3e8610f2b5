"""Checks of idle workers.

Ray's policy in words: every ``kill_idle_workers_interval_ms`` the raylet looks at its idle workers.
Those above ``num_workers_soft_limit`` that have been idle for longer than
``idle_worker_killing_time_threshold_ms`` are asked to exit, the oldest first. One that owns objects
refuses. Below the limit nothing ends an idle worker.
"""

from __future__ import annotations

from collections.abc import Iterator

from ray_tune_memguard.cluster.doctor.facts import MAX_WANTED_CPU, Facts, NodeFacts, WorkerFacts
from ray_tune_memguard.cluster.doctor.findings import Finding, Remedy, Severity
from ray_tune_memguard.cluster.settings import BY_NAME
from ray_tune_memguard.report.sizes import size

_INTERVAL = "kill_idle_workers_interval_ms"
_AFTER = "idle_worker_killing_time_threshold_ms"
_LIMIT = "num_workers_soft_limit"

#: Ten times as slow as Ray's default.
_MAX_IDLE_MS = 10_000
#: Memory of an idle worker of its own. One that has run a task has 60 MiB.
_MAX_IDLE_BYTES = 100 * 2**20
#: Share of a node's memory that its idle workers may have.
_MAX_IDLE_SHARE = 0.1


def never_ended(facts: Facts) -> Iterator[Finding]:
    """Idle workers are never ended."""
    nodes = [node for node in facts.nodes if facts.setting(_INTERVAL, node) == 0]
    if nodes:
        yield Finding(
            "idle-workers-never-end",
            Severity.WARNING,
            "Ray never ends idle workers.",
            f"{_INTERVAL} is 0, which means never, not at once: each worker that has run a task "
            "keeps its memory until its job ends.",
            _idle_in_words(nodes),
            (Remedy(_INTERVAL, BY_NAME[_INTERVAL].default),),
            where=_names(facts, nodes),
        )


def kept_long(facts: Facts) -> Iterator[Finding]:
    """Idle workers are ended much later than by default."""
    for name in (_INTERVAL, _AFTER):
        nodes = [node for node in facts.nodes if facts.setting(name, node) >= _MAX_IDLE_MS]
        if nodes:
            value = max(facts.setting(name, node) for node in nodes)
            default = BY_NAME[name].default
            yield Finding(
                "idle-workers-end-late",
                Severity.WARNING,
                f"Ray ends idle workers later than by default: {name} is {value:,}.",
                f"Ray's default is {default:,}, so that this value keeps idle workers "
                f"{value / default:.0f} times as long.",
                _idle_in_words(nodes),
                (Remedy(name, default),),
                where=_names(facts, nodes),
            )


def many_allowed(facts: Facts) -> Iterator[Finding]:
    """A node keeps more idle workers than it has CPUs."""
    nodes = [node for node in facts.nodes if facts.setting(_LIMIT, node) > max(node.cpus, 1)]
    if nodes:
        limit = max(facts.setting(_LIMIT, node) for node in nodes)
        yield Finding(
            "idle-workers-limit",
            Severity.WARNING,
            f"Each node keeps up to {limit} idle workers, more than it has CPUs.",
            f"{_LIMIT} is {limit}; below this limit nothing ends an idle worker.",
            _idle_in_words(nodes),
            (Remedy(_LIMIT, BY_NAME[_LIMIT].default),),
            where=_names(facts, nodes),
        )


def own_objects(facts: Facts) -> Iterator[Finding]:
    """Idle workers own objects."""
    for node in facts.nodes:
        owners = [worker for worker in node.idle if worker.owned_objects]
        if owners:
            is_above = len(node.staying) > facts.idle_limit(node)
            yield Finding(
                "idle-workers-own-objects",
                Severity.WARNING if is_above else Severity.NOTE,
                f"{_count(owners, 'owns', 'own')} objects.",
                "A worker that owns an object does not exit, because the object would be lost with "
                "it.",
                ", ".join(
                    f"pid {worker.pid} owns {worker.owned_objects} and has {size(worker.anonymous)}"
                    for worker in owners
                ),
                advice="Return the value from the task instead of a reference from ray.put, or "
                "delete the reference (a global, a cache) when it is no longer used.",
                where=node.name,
            )


def above_limit(facts: Facts) -> Iterator[Finding]:
    """Ray does not end the idle workers above the limit, and no other check says why."""
    for node in facts.nodes:
        if node.lasting is None:
            continue
        above = facts.idle_above_limit(node)
        if above > 0:
            yield Finding(
                "idle-workers-above-limit",
                Severity.WARNING,
                "1 idle worker more than the limit does not end."
                if above == 1
                else f"{above:g} idle workers more than the limit do not end.",
                f"Ray asks those above {_LIMIT} (as many as CPUs that are not in use, if it is "
                "-1) to exit; one that owns objects, or that holds references, refuses.",
                f"{len(node.lasting)} stayed idle, {facts.idle_limit(node):g} may; pids "
                + ", ".join(map(str, sorted(node.lasting)))
                + ".",
                advice="Look for globals and caches in tasks that hold ObjectRefs or actor "
                "handles, or decorate such tasks with @ray.remote(max_calls=1).",
                where=node.name,
            )


def burn_cpu(facts: Facts) -> Iterator[Finding]:
    """Idle workers use CPU time."""
    for node in facts.nodes:
        busy = [worker for worker in node.idle if worker.is_busy]
        if busy:
            yield Finding(
                "idle-workers-burn-cpu",
                Severity.WARNING,
                f"{_count(busy, 'uses', 'use')} CPU time.",
                "Ray calls a worker idle when no task runs in it; a thread that a task has started "
                "and not ended runs on.",
                ", ".join(
                    f"pid {worker.pid} uses {worker.cpu:.0%} of a CPU"
                    + (
                        f", and would use {worker.wanted_cpu:.0%} of it"
                        if worker.wanted_cpu >= MAX_WANTED_CPU
                        else ""
                    )
                    for worker in busy
                ),
                advice="End such threads before the task returns, or decorate the task with "
                "@ray.remote(max_calls=1); `py-spy dump --pid PID` shows what runs.",
                where=node.name,
            )


def hold_memory(facts: Facts) -> Iterator[Finding]:
    """Idle workers hold much memory."""
    for node in facts.nodes:
        large = [worker for worker in node.idle if worker.anonymous > _MAX_IDLE_BYTES]
        held = sum(worker.anonymous for worker in node.idle)
        share = held / node.total if node.total else 0.0
        if large or share > _MAX_IDLE_SHARE:
            chosen = large or list(node.idle)
            is_to_keep_none = share > _MAX_IDLE_SHARE and facts.setting(_LIMIT, node) != 0
            of_chosen = size(sum(worker.anonymous for worker in chosen))
            yield Finding(
                "idle-workers-hold-memory",
                Severity.WARNING if share > _MAX_IDLE_SHARE else Severity.NOTE,
                f"{_count(chosen, 'holds', 'hold')} {of_chosen}.",
                "A worker keeps its module globals, caches and imports until it exits, and below "
                f"{_LIMIT} nothing ends it.",
                ", ".join(f"pid {worker.pid} has {size(worker.anonymous)}" for worker in chosen)
                + (f"; all idle workers have {share:.0%} of the memory" if node.total else ""),
                (Remedy(_LIMIT, 0),) if is_to_keep_none else (),
                advice="Clear globals before the task returns, or decorate the task with "
                "@ray.remote(max_calls=1), which ends its worker.",
                where=node.name,
            )


CHECKS = (never_ended, kept_long, many_allowed, own_objects, above_limit, burn_cpu, hold_memory)


def _idle_in_words(nodes: list[NodeFacts]) -> str:
    seen = [node for node in nodes if node.is_here]
    if not seen:
        return "The setting; the processes of these nodes were not read."
    idle = [worker for node in seen for worker in node.idle]
    cpus = sum(node.cpus for node in seen)
    held = size(sum(worker.anonymous for worker in idle))
    return f"{len(idle)} idle workers on {cpus:g} CPUs hold {held}."


def _count(workers: list[WorkerFacts], one: str, several: str) -> str:
    """The number of idle workers, with a verb."""
    count = len(workers)
    return f"1 idle worker {one}" if count == 1 else f"{count} idle workers {several}"


def _names(facts: Facts, nodes: list[NodeFacts]) -> str:
    return "" if len(nodes) == len(facts.nodes) else ", ".join(node.name for node in nodes)
