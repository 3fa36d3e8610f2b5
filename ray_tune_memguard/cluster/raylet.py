"""Asks a node's raylet about its workers and objects. This needs ``grpcio`` (extra ``objects``)."""

from __future__ import annotations

import importlib.util


def is_available() -> bool:
    """Whether raylets can be asked, because ``grpcio`` is installed."""
    return importlib.util.find_spec("grpc") is not None


def owned_objects(address: str, port: int) -> dict[int, int] | None:
    """The number of objects that each worker of a node owns, by process.

    Args:
        address: the node's IP address.
        port: the port of its raylet.

    Returns:
        The numbers, or None without ``grpcio`` or without an answer.
    """
    if not is_available():
        return None
    from ray._private.internal_api import node_stats

    try:
        reply = node_stats(address, port, include_memory_info=False)
    except Exception:
        # grpc's errors, for a node that has just gone; a caller can do nothing but go without.
        return None
    return {worker.pid: worker.num_owned_objects for worker in reply.core_workers_stats}
