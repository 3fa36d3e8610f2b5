"""Asks a node's raylet about its workers and objects. This needs ``grpcio`` (extra ``objects``).

The answer may take up to 30 s if one of the node's workers hangs, so no hook waits for it.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

#: Kinds of references, as ``ray memory`` names them.
PINNED = "PINNED_IN_MEMORY"
PENDING = "USED_BY_PENDING_TASK"
LOCAL = "LOCAL_REFERENCE"
CAPTURED = "CAPTURED_IN_OBJECT"
#: An owner keeps the object because another process has a reference.
BORROWED = "BORROWED"
_DRIVER = 1


@dataclass(frozen=True)
class Reference:
    """What one process knows of one object.

    Attributes:
        object_id: the object, in hexadecimal digits.
        size: in bytes; 0 if this process does not know it.
        kind: why the process keeps the object.
        call_site: the line that created the reference; empty unless Ray records it.
    """

    object_id: str
    size: int
    kind: str
    call_site: str


@dataclass(frozen=True)
class WorkerObjects:
    """The objects of one worker, or of a driver.

    Attributes:
        pid: its process.
        is_driver: whether it is a driver.
        actor_id: the id of its actor; empty if it runs tasks.
        owned: the number of objects that it owns.
        in_scope: the number of references that it has.
        references: these, if they were asked for.
    """

    pid: int
    is_driver: bool
    actor_id: str
    owned: int
    in_scope: int
    references: tuple[Reference, ...]


@dataclass(frozen=True)
class StoreStats:
    """What a raylet says of its node's store, in bytes.

    Attributes:
        capacity: what the store may hold in memory.
        used: what it holds in memory, copies that were made for reading included.
        fallback: in files, because it did not fit even after spilling.
        objects: the number of objects in memory.
        created: of all objects since the node's start, restored copies included.
        spilled: written to disk since the node's start.
        restored: read back since the node's start.
    """

    capacity: int
    used: int
    fallback: int
    objects: int
    created: int
    spilled: int
    restored: int


@dataclass(frozen=True)
class RayletReport:
    """What a raylet says of its node."""

    store: StoreStats
    workers: tuple[WorkerObjects, ...]


def is_available() -> bool:
    """Whether raylets can be asked, because ``grpcio`` is installed."""
    return importlib.util.find_spec("grpc") is not None


def report(address: str, port: int, max_references: int = 0) -> RayletReport | None:
    """What the raylet of a node says of its store and its workers.

    Args:
        address: the node's IP address.
        port: the port of its raylet.
        max_references: references are listed if there are no more of them on the node.

    Returns:
        None without ``grpcio`` or without an answer.
    """
    if not is_available():
        return None
    try:
        found = _ask(address, port, with_references=False)
        in_scope = sum(worker.in_scope for worker in found.workers)
        # What is in use although nothing refers to its object is in no scope.
        is_any = in_scope > 0 or found.store.objects > 0
        if is_any and in_scope <= max_references > 0:
            found = _ask(address, port, with_references=True)
    except Exception:
        # grpc's errors, for a node that has just gone; a caller can do nothing but go without.
        return None
    return found


def owned_objects(address: str, port: int) -> dict[int, int] | None:
    """The number of objects that each worker of a node owns, by process.

    Args:
        address: the node's IP address.
        port: the port of its raylet.

    Returns:
        The numbers, or None without ``grpcio`` or without an answer.
    """
    found = report(address, port)
    return None if found is None else {worker.pid: worker.owned for worker in found.workers}


def _ask(address: str, port: int, with_references: bool) -> RayletReport:
    from ray._private.internal_api import node_stats

    reply: Any = node_stats(address, port, include_memory_info=with_references)
    store = reply.store_stats
    return RayletReport(
        StoreStats(
            # Ray's name for it is misleading.
            capacity=store.object_store_bytes_avail,
            used=store.object_store_bytes_used,
            fallback=store.object_store_bytes_fallback,
            objects=store.num_local_objects,
            created=store.cumulative_created_bytes,
            spilled=store.spilled_bytes_total,
            restored=store.restored_bytes_total,
        ),
        tuple(map(_worker, reply.core_workers_stats)),
    )


def _worker(row: Any) -> WorkerObjects:
    actor_id = row.actor_id.hex()
    return WorkerObjects(
        pid=row.pid,
        is_driver=row.worker_type == _DRIVER,
        actor_id="" if actor_id.strip("f") == "" else actor_id,
        owned=row.num_owned_objects,
        in_scope=row.num_object_refs_in_scope,
        references=tuple(map(_reference, row.object_refs)),
    )


def _reference(row: Any) -> Reference:
    if row.pinned_in_memory:
        kind = PINNED
    elif row.submitted_task_ref_count:
        kind = PENDING
    elif row.local_ref_count:
        kind = LOCAL
    elif row.contained_in_owned:
        kind = CAPTURED
    else:
        kind = BORROWED
    return Reference(row.object_id.hex(), max(0, row.object_size), kind, row.call_site)
