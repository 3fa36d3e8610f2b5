"""Who holds objects: the references of all processes, grouped by process, kind and call site."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import ray

from ray_tune_memguard.cluster import gcs, raylet
from ray_tune_memguard.cluster.raylet import RayletReport, WorkerObjects
from ray_tune_memguard.report.sizes import size

#: If a node has more references than this, only their number is told.
MAX_REFERENCES = 10_000
_MAX_CALL_SITE = 120
_RAYS_OWN = "-packages/ray/"
#: So many are named in a line.
MAX_NAMED = 3
#: And only those that hold this share of what the first one holds.
_MIN_SHARE = 0.05

#: What the kinds of references mean.
KINDS = {
    raylet.PINNED: "its value is in use: a NumPy array or a buffer that was read from the store",
    raylet.PENDING: "it is an argument of a task that has not finished",
    raylet.LOCAL: "a Python variable, a list or an attribute holds the reference",
    raylet.CAPTURED: "its reference is inside another object that is held",
}

HolderKind = Literal["trial", "driver", "actor", "task worker"]


@dataclass(frozen=True)
class Holder:
    """A process that holds objects.

    Attributes:
        kind: what it is.
        name: the same in words, with its process.
    """

    kind: HolderKind
    name: str


@dataclass(frozen=True)
class Holding:
    """Objects that one process holds in one way.

    Attributes:
        holder: the process.
        node: the id of its node.
        kind: why it holds them, a key of :data:`KINDS`.
        call_site: the line that created the references; empty unless Ray records it.
        count: the number of objects.
        size: their bytes.
    """

    holder: Holder
    node: str
    kind: str
    call_site: str
    count: int
    size: int

    def __str__(self) -> str:
        made = f", created at {self.call_site}" if self.call_site else ""
        objects = f"{self.count:,} object{'s' if self.count > 1 else ''}"
        return f"{self.holder.name} {size(self.size)} in {objects} ({self.kind}){made}"


def read_references(node: str) -> RayletReport | None:
    """What the raylet of the node that this process runs on says of all its workers.

    Args:
        node: the id of the node.
    """
    for row in ray.nodes():
        if row["NodeID"] == node:
            address, port = row["NodeManagerAddress"], row["NodeManagerPort"]
            return raylet.report(address, port, MAX_REFERENCES)
    return None


def holdings(
    reports: Mapping[str, RayletReport], holder_of: Callable[[str, WorkerObjects], Holder]
) -> list[Holding]:
    """Who holds how much, the largest first.

    An object that several processes hold counts for each of them. One that a process keeps only
    because others have a reference counts for these alone.

    Args:
        reports: what the raylets say, by the id of the node.
        holder_of: names a process of a node.
    """
    rows = [
        (node, worker, reference)
        for node, report in reports.items()
        for worker in report.workers
        for reference in worker.references
    ]
    # Who borrows an object does not know its size.
    sizes: dict[str, int] = defaultdict(int)
    for _, _, reference in rows:
        sizes[reference.object_id] = max(sizes[reference.object_id], reference.size)
    groups: dict[tuple[str, int, str, str], list[int]] = defaultdict(list)
    workers = {(node, worker.pid): worker for node, worker, _ in rows}
    for node, worker, reference in rows:
        bytes_held = sizes[reference.object_id]
        # Handles of actors have no bytes.
        if bytes_held and reference.kind in KINDS:
            groups[node, worker.pid, reference.kind, reference.call_site].append(bytes_held)
    holders = {key: holder_of(key[0], worker) for key, worker in workers.items()}
    found = [
        Holding(holders[node, pid], node, kind, _shortened(call_site), len(amounts), sum(amounts))
        for (node, pid, kind, call_site), amounts in groups.items()
    ]
    return sorted(found, key=lambda holding: -holding.size)


def unlisted(reports: Mapping[str, RayletReport]) -> int:
    """The number of references on nodes that have too many to be listed."""
    return sum(
        sum(worker.in_scope for worker in report.workers)
        for report in reports.values()
        if not any(worker.references for worker in report.workers)
    )


def holder_of(worker: WorkerObjects, trial: str = "") -> Holder:
    """Name a process.

    Args:
        worker: the process.
        trial: the trial that runs in it, if any.
    """
    process = f"(pid {worker.pid})"
    if trial:
        return Holder("trial", f"trial {trial} {process}")
    if worker.is_driver:
        return Holder("driver", f"driver {process}")
    if not worker.actor_id:
        return Holder("task worker", f"worker of tasks {process}")
    try:
        actor = gcs.actor_info(worker.actor_id)
    except gcs.ClusterStateError:
        actor = None
    if actor is None:
        return Holder("actor", f"actor {process}")
    name = f"{actor.name!r} " if actor.name else ""
    return Holder("actor", f"actor {name}of class {actor.class_name} {process}")


def advice(held: list[Holding], too_many: int, is_told: bool) -> str:
    """Who holds most, and what to do about it.

    Args:
        held: who holds how much, the largest first.
        too_many: the number of references that were not listed.
        is_told: whether any raylet was asked and has answered.
    """
    if not is_told and raylet.is_available():
        return (
            "Who holds the objects is not known: this Ray does not tell, or did not in time. "
            "Delete references when a trial ends."
        )
    if not is_told:
        return (
            'Who holds the objects is told with grpcio: pip install "ray-tune-memguard[objects]". '
            "Delete references when a trial ends."
        )
    if not held:
        why = f"{too_many:,} references are too many to list" if too_many else "no process tells"
        return f"Who holds the objects is not known: {why}. Delete references when a trial ends."
    large = [one for one in held if one.size >= _MIN_SHARE * held[0].size]
    most = "; ".join(map(str, large[:MAX_NAMED]))
    text = f"Who holds most: {most}{'; …' if len(large) > MAX_NAMED else ''}. "
    text += f"{held[0].kind} means that {KINDS[held[0].kind]}. Delete it when a trial ends."
    if not held[0].call_site:
        text += " RAY_record_ref_creation_sites=1 before Ray starts names the lines that made them."
    return text


def _shortened(call_site: str) -> str:
    """A call site in one line, without Ray's own calls.

    Examples:
        >>> _shortened("(put object)  | /site-packages/ray/hook.py:wrapper:134 | train.py:run:15")
        'train.py:run:15 (put object)'
    """
    what, *calls = (part.strip() for part in call_site.split("|"))
    line = " < ".join(call for call in calls if call and _RAYS_OWN not in call)
    line = f"{line} {what}".strip()
    return line if len(line) <= _MAX_CALL_SITE else f"{line[: _MAX_CALL_SITE - 1]}…"
