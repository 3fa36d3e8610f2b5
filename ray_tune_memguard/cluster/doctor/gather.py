"""Reads the facts of a running cluster, by its address.

Nothing is started, and no driver is registered: the control service (GCS) answers questions about
nodes and settings, ``/proc`` those about processes on this machine, and, with ``grpcio``, the
raylets those about objects.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable

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
from ray_tune_memguard.cluster.doctor.machine import memory_of, slurm_memory
from ray_tune_memguard.cluster.doctor.processes import (
    argument,
    children,
    environment_of,
    has_dashboard,
    is_titled,
    local_raylets,
    named,
)
from ray_tune_memguard.system.process import ThreadTime, thread_times

#: How long CPU time is counted.
_CPU_WINDOW_S = 0.3
#: How long it is watched whether idle workers above the limit end.
_MAX_WAIT_S = 3.0
_HEAD_RESOURCE = "node:__internal_head__"


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
        free = gcs.available_resources()
    raylets = local_raylets()
    here = {node.node_id: raylets[node.node_id] for node in alive if node.node_id in raylets}
    before = {pid: thread_times(pid) for process in here.values() for pid in children(process)}
    began = time.monotonic()
    owned = {
        node.node_id: raylet.owned_objects(node.address, node.port)
        for node in alive
        if node.node_id in here
    }
    head = _head(here.values())
    time.sleep(max(0.0, _CPU_WINDOW_S - (time.monotonic() - began)))
    seconds = time.monotonic() - began
    nodes = []
    for node in alive:
        facts = NodeFacts(
            name=node.address,
            is_head=_HEAD_RESOURCE in node.resources,
            cpus=node.resources.get("CPU", 0.0),
            free_cpus=free[node.node_id].get("CPU", 0.0) if node.node_id in free else None,
            object_store=_whole(node.resources.get("object_store_memory")),
        )
        process = here.get(node.node_id)
        if process is not None:
            facts = _with_processes(facts, process, before, seconds, owned[node.node_id])
        nodes.append(facts)
    nodes = _with_lasting(nodes, config)
    given = {name for facts in nodes for name in facts.environment} | set(head.environment or {})
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
    before: dict[int, dict[int, ThreadTime]],
    seconds: float,
    owned: dict[int, int] | None,
) -> NodeFacts:
    """The facts with those of the node's processes, which run on this machine."""
    environment = environment_of(process) or {}
    workers = []
    for pid, child in children(process).items():
        try:
            title = child.cmdline()[0]
            memory = child.memory_info()
        except (psutil.Error, IndexError):
            continue
        used, wanted = _cpu(before.get(pid, {}), thread_times(pid))
        workers.append(
            WorkerFacts(
                pid,
                title,
                # Linux alone tells what is shared.
                anonymous=memory.rss - getattr(memory, "shared", 0),
                cpu=used / seconds,
                wanted_cpu=wanted / seconds,
                owned_objects=None if owned is None else owned.get(pid, 0),
            )
        )
    return dataclasses.replace(
        facts,
        is_here=True,
        environment=settings.given_in(environment),
        slurm_memory=slurm_memory(environment),
        workers=tuple(worker for worker in workers if worker.title.startswith("ray::")),
        machine=memory_of(process.pid),
    )


def _cpu(then: dict[int, ThreadTime], now: dict[int, ThreadTime]) -> tuple[float, float]:
    """Seconds that the threads ran, and for which the busiest one ran or waited for a CPU."""
    both = then.keys() & now.keys()
    ran = {thread: now[thread].ran - then[thread].ran for thread in both}
    waited = {thread: now[thread].waited - then[thread].waited for thread in both}
    return sum(ran.values()), max((ran[thread] + waited[thread] for thread in both), default=0.0)


def _with_lasting(nodes: list[NodeFacts], config: dict[str, object]) -> list[NodeFacts]:
    """Wait until Ray has ended idle workers above the limit, if there are any and it soon does."""
    facts = Facts(system_config=config)
    waits = {}
    for number, node in enumerate(nodes):
        interval = facts.setting("kill_idle_workers_interval_ms", node)
        after = facts.setting("idle_worker_killing_time_threshold_ms", node)
        # One for each look, and one for the time that a worker takes to exit.
        wait = (after + 3 * interval) / 1000
        if len(node.idle) > facts.idle_limit(node) and interval and wait <= _MAX_WAIT_S:
            waits[number] = wait
    if not waits:
        return nodes
    time.sleep(max(waits.values()))
    found = list(nodes)
    for number in waits:
        pids = (worker.pid for worker in nodes[number].idle)
        lasting = frozenset(pid for pid in pids if is_titled(pid, IDLE_TITLE))
        found[number] = dataclasses.replace(nodes[number], lasting=lasting)
    return found


def _head(raylets: Iterable[psutil.Process]) -> HeadFacts:
    """The head's processes; empty if the head is on another machine."""
    sessions = {argument(process, "--session-name=") for process in raylets}
    for server in named("gcs_server"):
        session = argument(server, "--session-name=")
        if session and session in sessions:
            environment = environment_of(server)
            return HeadFacts(
                has_dashboard=has_dashboard(session),
                gcs_rss=server.memory_info().rss,
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
    if head.gcs_rss is not None and head.environment is None:
        found.append(
            "Ray runs as another user, so that its environment and its processes' memory were not "
            "read: run the command as this user."
        )
    if not raylet.is_available():
        found.append(
            "Which objects idle workers own was not read: that needs grpcio "
            '(pip install "ray-tune-memguard[objects]").'
        )
    return found


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
