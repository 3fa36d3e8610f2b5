"""Reads the facts of a running cluster, by its address.

Nothing is started, and no driver is registered: the control service (GCS) answers questions about
nodes and settings, ``/proc`` those about processes on this machine, and, with ``grpcio``, the
raylets those about objects.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import psutil
import ray

from ray_tune_memguard.cluster import gcs, raylet, settings
from ray_tune_memguard.cluster.doctor.facts import (
    IDLE_TITLE,
    Facts,
    HeadFacts,
    NodeFacts,
    PlanFacts,
    WorkerFacts,
)
from ray_tune_memguard.cluster.doctor.machine import memory_facts, slurm_memory
from ray_tune_memguard.cluster.doctor.processes import (
    argument,
    children,
    environment_of,
    has_dashboard,
    is_titled,
    local_raylets,
    named,
)
from ray_tune_memguard.cluster.gcs import NodeInfo
from ray_tune_memguard.system.process import ThreadTime, memory_of, thread_times

#: How long CPU time is counted.
_CPU_WINDOW_S = 0.3
#: For idle workers that use some: how often it is counted again, and how long each time.
_MORE_LOOKS, _MORE_S = 3, 0.7
#: Idle workers above the limit are watched for at most so long, if Ray's settings end them sooner.
#: On a healthy node of two CPUs that had eight, the last one ended after 3.3 s.
_MAX_WATCH_S, _MAX_WAIT_S = 5.0, 3.0
_LOOK_S = 0.25
#: CPU time that an idle worker may use meanwhile: twice what one takes that has no tasks at all.
_MAX_RESTING_S = 0.1
_HEAD_RESOURCE = "node:__internal_head__"


class CpuReading(NamedTuple):
    """The CPU times of a process's threads, and when they were read, by ``time.monotonic()``."""

    at: float
    threads: dict[int, ThreadTime]

    @classmethod
    def of(cls, pid: int) -> CpuReading:
        return cls(time.monotonic(), thread_times(pid))

    def shares_since(self, then: CpuReading) -> tuple[float, float]:
        """Shares of one CPU since an earlier reading.

        Returns:
            What all threads used, and for which part of the time the busiest one ran or waited for
            a CPU.
        """
        seconds = self.at - then.at
        both = then.threads.keys() & self.threads.keys()
        if seconds <= 0 or not both:
            return 0.0, 0.0
        ran = {thread: self.threads[thread].ran - then.threads[thread].ran for thread in both}
        waited = {
            thread: self.threads[thread].waited - then.threads[thread].waited for thread in both
        }
        busiest = max(ran[thread] + waited[thread] for thread in both)
        return sum(ran.values()) / seconds, busiest / seconds


def of_cluster(address: str, plan: PlanFacts) -> Facts:
    """Facts of a running cluster.

    Args:
        address: of its control service, ``host:port``.
        plan: what the user plans.

    Raises:
        ClusterStateError: no cluster answers at the address.
    """
    with gcs.connected_to(address):
        alive = [node for node in gcs.nodes() if node.is_alive]
        config = gcs.system_config()
        raylets = local_raylets()
        here = {node.node_id: raylets[node.node_id] for node in alive if node.node_id in raylets}
        before = {pid: CpuReading.of(pid) for process in here.values() for pid in children(process)}
        began = time.monotonic()
        owned = {
            node.node_id: raylet.owned_objects(node.address, node.port)
            for node in alive
            if node.node_id in here
        }
        head = _head(here.values())
        time.sleep(max(0.0, _CPU_WINDOW_S - (time.monotonic() - began)))
        nodes = []
        for node, free in zip(alive, _free_cpus(alive), strict=True):
            facts = NodeFacts(
                name=node.address,
                is_head=_HEAD_RESOURCE in node.resources,
                cpus=node.resources.get("CPU", 0.0),
                free_cpus=free,
                object_store=_whole(node.resources.get("object_store_memory")),
            )
            process = here.get(node.node_id)
            if process is not None:
                facts = _with_processes(facts, process, before, owned[node.node_id])
            nodes.append(facts)
        nodes = _with_lasting_use_of_cpu(nodes)
        nodes = _with_lasting(nodes, config, lambda: _free_cpus(alive))
    environments = [*(facts.environment for facts in nodes), head.environment]
    given = {name for environment in environments for name in environment or ()}
    return Facts(
        ray_version=settings.version_of(ray.__version__),
        system_config=config,
        nodes=tuple(nodes),
        head=head,
        plan=plan,
        unknown_settings=tuple(settings.unknown_to_ray(given)),
        unseen=tuple(_unseen(nodes, head)),
    )


def _with_processes(
    facts: NodeFacts,
    process: psutil.Process,
    before: dict[int, CpuReading],
    owned: dict[int, int] | None,
) -> NodeFacts:
    """The facts with those of the node's processes, which run on this machine."""
    environment = environment_of(process)
    workers = []
    for pid, child in children(process).items():
        try:
            title = child.cmdline()[0]
        except (psutil.Error, IndexError):
            continue
        memory = memory_of(pid)
        if memory is None:
            continue
        now = CpuReading.of(pid)
        used, wanted = now.shares_since(before.get(pid, now))
        workers.append(
            WorkerFacts(
                pid,
                title,
                anonymous=memory.anonymous,
                cpu=used,
                wanted_cpu=wanted,
                owned_objects=None if owned is None else owned.get(pid, 0),
            )
        )
    return dataclasses.replace(
        facts,
        is_here=True,
        environment=None if environment is None else settings.given_in(environment),
        slurm_memory=slurm_memory(environment or {}),
        workers=tuple(worker for worker in workers if worker.title.startswith("ray::")),
        machine=memory_facts(process.pid),
    )


def _with_lasting_use_of_cpu(nodes: list[NodeFacts]) -> list[NodeFacts]:
    """Look again at idle workers that use CPU time: one that starts, or ends a task, soon rests."""
    for _ in range(_MORE_LOOKS):
        busy = [worker.pid for node in nodes for worker in node.idle if worker.is_busy]
        if not busy:
            break
        before = {pid: CpuReading.of(pid) for pid in busy}
        time.sleep(_MORE_S)
        nodes = [
            dataclasses.replace(
                node, workers=tuple(_with_less_cpu(worker, before) for worker in node.workers)
            )
            for node in nodes
        ]
    return nodes


def _with_less_cpu(worker: WorkerFacts, before: dict[int, CpuReading]) -> WorkerFacts:
    if worker.pid not in before:
        return worker
    if not is_titled(worker.pid, IDLE_TITLE):  # It has a task now, or has ended.
        return dataclasses.replace(worker, cpu=0.0, wanted_cpu=0.0)
    used, wanted = CpuReading.of(worker.pid).shares_since(before[worker.pid])
    return dataclasses.replace(
        worker, cpu=min(worker.cpu, used), wanted_cpu=min(worker.wanted_cpu, wanted)
    )


def _with_lasting(
    nodes: list[NodeFacts],
    config: dict[str, object],
    free_cpus: Callable[[], list[float | None]],
) -> list[NodeFacts]:
    """Watch idle workers above the limit, if there are any and Ray soon ends them.

    Args:
        nodes: the nodes.
        config: the settings that the head was started with.
        free_cpus: reads the free CPUs of each of the nodes.
    """
    facts = Facts(system_config=config)
    watched = {
        number: {worker.pid: CpuReading.of(worker.pid) for worker in node.idle}
        for number, node in enumerate(nodes)
        if facts.idle_above_limit(node) > 0 and _ends_soon(facts, node)
    }
    found = list(nodes)
    ends = time.monotonic() + _MAX_WATCH_S
    while watched:
        free = free_cpus()
        for number, before in list(watched.items()):
            rests = {pid: then for pid, then in before.items() if _has_rested(pid, then)}
            found[number] = node = dataclasses.replace(
                nodes[number], lasting=frozenset(rests), free_cpus=free[number]
            )
            watched[number] = rests
            if facts.idle_above_limit(node) <= 0:
                del watched[number]
        if time.monotonic() >= ends:
            break
        if watched:
            time.sleep(_LOOK_S)
    return found


def _ends_soon(facts: Facts, node: NodeFacts) -> bool:
    """Whether Ray ends idle workers of a node while they are watched."""
    interval = facts.setting("kill_idle_workers_interval_ms", node)
    after = facts.setting("idle_worker_killing_time_threshold_ms", node)
    # One for each look, and one for the time that a worker takes to exit.
    return bool(interval) and (after + 3 * interval) / 1000 <= _MAX_WAIT_S


def _has_rested(pid: int, then: CpuReading) -> bool:
    """Whether a worker is idle, and has been so since a reading."""
    now = CpuReading.of(pid)
    used, _ = now.shares_since(then)
    return used * (now.at - then.at) <= _MAX_RESTING_S and is_titled(pid, IDLE_TITLE)


def _free_cpus(nodes: Iterable[NodeInfo]) -> list[float | None]:
    free = gcs.available_resources()
    return [free[node.node_id].get("CPU", 0.0) if node.node_id in free else None for node in nodes]


def _head(raylets: Iterable[psutil.Process]) -> HeadFacts:
    """The head's processes; empty if the head is on another machine."""
    sessions = {argument(process, "--session-name=") for process in raylets}
    for server in named("gcs_server"):
        session = argument(server, "--session-name=")
        if session and session in sessions:
            environment, memory = environment_of(server), memory_of(server.pid)
            return HeadFacts(
                has_dashboard=has_dashboard(session),
                gcs_rss=None if memory is None else memory.rss,
                environment=None if environment is None else settings.given_in(environment),
            )
    return HeadFacts()


def _unseen(nodes: list[NodeFacts], head: HeadFacts) -> list[str]:
    found = []
    elsewhere = [node.name for node in nodes if not node.is_here]
    if elsewhere:
        found.append(
            f"The processes of {len(elsewhere)} nodes on other machines were not read "
            f"({', '.join(elsewhere[:5])}{', …' if len(elsewhere) > 5 else ''}): run the same "
            "command there."
        )
    unread = [
        *(
            f"the raylet of {node.name}"
            for node in nodes
            if node.is_here and node.environment is None
        ),
        *(["gcs_server"] if head.gcs_rss is not None and head.environment is None else []),
    ]
    if unread:
        found.append(
            f"The environment of {', '.join(unread)} was not read, so that settings which were "
            "given by variables are not known here: run the command as the user that runs Ray."
        )
    if not raylet.is_available():
        found.append(
            "Which objects idle workers own was not read: that needs grpcio "
            '(pip install "ray-tune-memguard[objects]").'
        )
    return found


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
