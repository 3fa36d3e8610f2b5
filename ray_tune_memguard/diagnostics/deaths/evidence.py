"""Gathers what is known about one death: of Ray, of the kernel, of files. It judges nothing."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import ray
from ray.exceptions import RayActorError, RayTaskError

from ray_tune_memguard.cluster import gcs
from ray_tune_memguard.cluster.gcs import ActorInfo, ClusterStateError, NodeInfo, WorkerInfo
from ray_tune_memguard.cluster.session import logs_directory
from ray_tune_memguard.diagnostics.deaths.verdict import DeathFacts
from ray_tune_memguard.system.kernel_log import KernelEvidence, KernelWatch, recent_evidence

#: Absent, of a trial on another node.
OTHER_KERNEL = "the kernel of the trial's node"
#: Ray's control service may learn of a worker's exit a moment after the driver.
MAX_WAIT_S = 0.02
_WAIT_STEP_S = 0.004
#: A stack of a crash is at the end of the error stream; with many libraries it is 20 KB long.
_TAIL_BYTES = 2**16
#: A worker that was started in advance belongs to no job.
_NO_JOB = "ffffffff"
# In the text of ActorDiedError, for where the control service cannot be asked.
_PID = re.compile(r"^\tpid: (\d+)$", re.MULTILINE)
_ADDRESS = re.compile(r"^\tip: (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class Place:
    """Where the driver runs.

    Attributes:
        node_id: its node.
        address: the node's IP address.
        job_id: the driver's job.
        logs: the directory of the session's logs; None if there is none on this machine.
    """

    node_id: str
    address: str
    job_id: str
    logs: Path | None

    @classmethod
    def of_driver(cls) -> Place:
        context = ray.get_runtime_context()
        return cls(
            _if_told(context.get_node_id),
            ray.util.get_node_ip_address(),
            _if_told(context.get_job_id),
            logs_directory(),
        )


def _if_told(ask: Callable[[], str]) -> str:
    try:
        return ask()
    except Exception:  # A driver over Ray Client has none; which error that is depends on Ray.
        return ""


@dataclass(frozen=True)
class NodeEvidence:
    """What another node says about a process of its own.

    Attributes:
        kernel: what its kernel says.
        stderr_tail: the end of what the process wrote to its error stream; None if not read.
    """

    kernel: KernelEvidence
    stderr_tail: str | None


def of_this_node(worker_id: str, job_id: str, pid: int) -> NodeEvidence:
    """Runs on the trial's node.

    Args:
        worker_id: the worker.
        job_id: the driver's job.
        pid: the worker's process.
    """
    logs = logs_directory()
    tail = None if logs is None else stderr_tail(logs, worker_id, job_id, pid)
    return NodeEvidence(recent_evidence(), tail)


def is_about_a_process(exception: Exception) -> bool:
    """Whether an error may tell of a process that died or ran out of memory."""
    return isinstance(exception, (RayActorError, RayTaskError))


def facts_of(
    exception: Exception,
    actor_id: str | None,
    place: Place,
    watch: KernelWatch,
    asks_ray: bool,
) -> DeathFacts:
    """The facts about one death.

    Args:
        exception: what Ray gave to Tune.
        actor_id: the trial's actor; None if it is not known.
        place: where the driver runs.
        watch: the watch over this machine's kernel.
        asks_ray: whether this Ray's control service can be asked.
    """
    text = str(exception)
    if isinstance(exception, RayTaskError) or getattr(exception, "actor_init_failed", False):
        cause = getattr(exception, "cause", None)
        is_memory = isinstance(exception, MemoryError) or isinstance(cause, MemoryError)
        return DeathFacts(text, is_alive=True, is_memory_error=is_memory)
    absent: list[str] = []
    actor, worker, node = None, None, None
    if asks_ray and actor_id:
        try:
            actor, worker, node = _ask(actor_id)
        except ClusterStateError as error:
            absent.append(str(error))
    facts = DeathFacts(
        text,
        pid=(worker.pid if worker else 0) or (actor.pid if actor else 0) or _pid_in(text),
        actor=actor,
        worker=worker,
        node=node,
    )
    if not _is_here(facts, place):
        absent.append(OTHER_KERNEL)
        return replace(facts, absent=tuple(absent))
    kernel = watch.evidence()
    tail = None
    if facts.pid and worker is not None and place.logs is not None:
        tail = stderr_tail(place.logs, worker.worker_id, place.job_id, facts.pid)
    if tail is None:
        absent.append("the error stream of its worker")
    return replace(facts, kernel=kernel, stderr_tail=tail, absent=(*absent, *kernel.absent))


def _ask(actor_id: str) -> tuple[ActorInfo | None, WorkerInfo | None, NodeInfo | None]:
    until = time.monotonic() + MAX_WAIT_S
    while True:
        actor = gcs.actor_info(actor_id)
        worker = gcs.worker_info(actor.worker_id) if actor and actor.worker_id else None
        is_told = actor is None or actor.state == "DEAD"
        if (is_told and not (worker and worker.is_alive)) or time.monotonic() > until:
            break
        time.sleep(_WAIT_STEP_S)
    nodes = gcs.nodes() if actor and actor.node_id else []
    node = next((node for node in nodes if actor and node.node_id == actor.node_id), None)
    return actor, worker, node


def node_of_now(node: NodeInfo) -> NodeInfo:
    """What Ray says of a node by now; what it said before, if it cannot be asked."""
    try:
        return next((one for one in gcs.nodes() if one.node_id == node.node_id), node)
    except ClusterStateError:
        return node


def _is_here(facts: DeathFacts, place: Place) -> bool:
    """Whether the process was on this machine. Several nodes may run on one machine."""
    if facts.node is not None:
        return facts.node.node_id == place.node_id or facts.node.address == place.address
    if facts.actor is not None:
        return facts.actor.node_id == place.node_id
    address = _ADDRESS.search(facts.error_text)
    return address is not None and address[1] == place.address


def _pid_in(text: str) -> int | None:
    found = _PID.search(text)
    return int(found[1]) if found else None


def stderr_tail(logs: Path, worker_id: str, job_id: str, pid: int) -> str | None:
    """The end of what a worker wrote to its error stream; None if there is no such file."""
    for job in (job_id, _NO_JOB):
        path = logs / f"worker-{worker_id}-{job}-{pid}.err"
        try:
            with path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - _TAIL_BYTES))
                return file.read().decode(errors="replace")
        except OSError:
            continue
    return None
