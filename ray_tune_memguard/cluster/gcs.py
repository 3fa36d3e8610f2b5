"""Reads Ray's control service (GCS): actors, workers, nodes and settings, of all nodes.

This needs neither the dashboard nor ``grpcio``, unlike ``ray.util.state``. A call takes less than
1 ms. All ids are hexadecimal text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ray_tune_memguard.cluster.listening import why_no_cluster

#: Exit type of a worker that Ray's memory monitor has killed.
NODE_OUT_OF_MEMORY = "NODE_OUT_OF_MEMORY"


class ClusterStateError(RuntimeError):
    """Ray's control service cannot be asked, or its answer cannot be read."""


@dataclass(frozen=True)
class ActorInfo:
    """One actor.

    Attributes:
        actor_id: its id.
        pid: the process of its worker, on its node; 0 before the worker is there.
        node_id: its node; empty before it has one.
        worker_id: its worker; empty before it has one.
        state: ``DEPENDENCIES_UNREADY``, ``PENDING_CREATION``, ``ALIVE``, ``RESTARTING`` or
            ``DEAD``.
        death_reason: for a dead actor ``WORKER_DIED``, ``OWNER_DIED``, ``NODE_DIED``,
            ``RAY_KILL``, ``OUT_OF_SCOPE``, ``REF_DELETED``, ``OUT_OF_MEMORY``, ``UNSPECIFIED``, or
            what else Ray names; empty for a living one.
        name: the name that its user gave it, or empty.
        class_name: the name of its class.
    """

    actor_id: str
    pid: int
    node_id: str
    worker_id: str
    state: str
    death_reason: str = ""
    name: str = ""
    class_name: str = ""


@dataclass(frozen=True)
class WorkerInfo:
    """One worker process.

    Attributes:
        worker_id: its id.
        pid: its process, on its node.
        node_id: its node.
        is_alive: whether it runs.
        exit_type: for a dead worker ``SYSTEM_ERROR``, ``INTENDED_SYSTEM_EXIT``, ``USER_ERROR``,
            ``INTENDED_USER_EXIT`` or ``NODE_OUT_OF_MEMORY``; empty for a living one.
        exit_detail: what Ray says about the exit.
    """

    worker_id: str
    pid: int
    node_id: str
    is_alive: bool
    exit_type: str
    exit_detail: str


@dataclass(frozen=True)
class NodeInfo:
    """One node.

    Attributes:
        node_id: its id.
        is_alive: whether Ray counts it as alive.
        address: its IP address.
        port: the port of its raylet.
        resources: total amounts by name (``memory`` and ``object_store_memory`` in bytes).
        death_message: why Ray counts it as dead; empty for a living one.
    """

    node_id: str
    is_alive: bool
    address: str
    port: int
    resources: dict[str, float]
    death_message: str = ""


@contextmanager
def connected_to(address: str) -> Iterator[None]:
    """Ask the control service at an address, from a process that is no driver.

    A driver asks its own cluster without this; for another one it must not be used.

    Args:
        address: ``host:port``.

    Raises:
        ClusterStateError: nothing answers there, or this process is a driver of another cluster.
    """
    import ray

    if ray.is_initialized():
        if ray.get_runtime_context().gcs_address != address:
            raise ClusterStateError(f"This process is a driver of another cluster than {address}.")
        yield
        return
    if reason := why_no_cluster(address):
        raise ClusterStateError(reason)
    with _failures_named("anything"):
        _use_token()
        from ray._private.state import state
        from ray._raylet import GcsClientOptions  # type: ignore[attr-defined]

        state._initialize_global_state(
            GcsClientOptions.create(
                address, None, allow_cluster_id_nil=True, fetch_cluster_id_if_nil=False
            )
        )
    try:
        yield
    finally:
        state.disconnect()


def _use_token() -> None:
    """Let this process show its user's token, as ``ray.init(address=…)`` does.

    From Ray 2.60 on, a cluster that ``ray.init()`` starts asks for it by default. An older Ray has
    no tokens, or needs the user to ask for them.
    """
    try:
        from ray._private.authentication import authentication_token_setup as setup

        show = setup.maybe_enable_token_auth_if_token_available
    except (ImportError, AttributeError):
        return
    # It warns that tokens are used, which is said when a cluster starts.
    before, setup.logger.disabled = setup.logger.disabled, True
    try:
        show(warn_if_disabled=False)
    finally:
        setup.logger.disabled = before


def actor_info(actor_id: str) -> ActorInfo | None:
    """One actor, alive or dead; None if the control service does not know it.

    Raises:
        ClusterStateError: the control service cannot be asked.
    """
    with _failures_named("the actor"):
        import ray

        raw = _accessor().get_actor_info(ray.ActorID(bytes.fromhex(actor_id)))
        return None if raw is None else _actor(_messages().ActorTableData.FromString(raw))


def actor_id_or_none(handle: object) -> str | None:
    """The id of an actor of which this process has a handle; None without one, or without an id."""
    try:
        found: Any = handle
        return None if handle is None else str(found._actor_id.hex())
    except Exception:
        return None


def worker_info(worker_id: str) -> WorkerInfo | None:
    """One worker, alive or dead; None if the control service does not know it.

    Raises:
        ClusterStateError: the control service cannot be asked.
    """
    with _failures_named("the worker"):
        import ray

        raw = _accessor().get_worker_info(ray.WorkerID(bytes.fromhex(worker_id)))
        return None if raw is None else _worker(_messages().WorkerTableData.FromString(raw))


def nodes() -> list[NodeInfo]:
    """All nodes that the control service knows, alive and dead.

    Raises:
        ClusterStateError: the control service cannot be asked.
    """
    with _failures_named("the nodes"):
        return [_node(row) for row in _accessor().get_node_table()]


def available_resources() -> dict[str, dict[str, float]]:
    """What each node has not given away, by the id of the node; resources that are used up lack.

    Raises:
        ClusterStateError: the control service cannot be asked.
    """
    with _failures_named("the available resources"):
        from ray._private.state import state

        found: dict[str, dict[str, float]] = state.available_resources_per_node()
        return found


def system_config() -> dict[str, object]:
    """The settings that the head was started with (``_system_config``), by name.

    They win over environment variables ``RAY_<name>``, which win over Ray's defaults.

    Raises:
        ClusterStateError: the control service cannot be asked.
    """
    with _failures_named("the settings"):
        found: dict[str, object] = json.loads(_accessor().get_system_config() or "{}")
        return found


def _accessor() -> Any:
    from ray._private.state import state

    if hasattr(state, "_connect_and_get_accessor"):
        return state._connect_and_get_accessor()
    older: Any = state
    older._check_connected()
    return older.global_state_accessor


def _messages() -> Any:
    from ray.core.generated import gcs_pb2

    return gcs_pb2


def _common_messages() -> Any:
    from ray.core.generated import common_pb2

    return common_pb2


@contextmanager
def _failures_named(what: str) -> Iterator[None]:
    # Ray raises its own errors, RuntimeError, ValueError or, for a message of another version,
    # AttributeError; a caller can do nothing but go without.
    try:
        yield
    except Exception as error:
        raise ClusterStateError(
            f"Ray's control service does not tell {what}: {type(error).__name__}: {error}"
        ) from error


def _actor(row: Any) -> ActorInfo:
    return ActorInfo(
        actor_id=row.actor_id.hex(),
        pid=row.pid,
        node_id=row.address.node_id.hex() or row.node_id.hex(),
        worker_id=row.address.worker_id.hex(),
        state=type(row).ActorState.Name(row.state),
        death_reason=_death_reason(row.death_cause),
        name=row.name,
        class_name=row.class_name,
    )


def _death_reason(cause: Any) -> str:
    """The reason of an actor's death cause; empty if there is none."""
    kind = cause.WhichOneof("context")
    if kind is None:
        return ""
    if kind == "oom_context":
        return "OUT_OF_MEMORY"
    if kind == "actor_died_error_context":
        context = cause.actor_died_error_context
        return str(type(context).Reason.Name(context.reason))
    return str(kind.upper().removesuffix("_CONTEXT"))


def _worker(row: Any) -> WorkerInfo:
    return WorkerInfo(
        worker_id=row.worker_address.worker_id.hex(),
        pid=row.pid,
        node_id=row.worker_address.node_id.hex(),
        is_alive=row.is_alive,
        exit_type="" if row.is_alive else _common_messages().WorkerExitType.Name(row.exit_type),
        exit_detail=row.exit_detail,
    )


def _node(row: dict[str, Any]) -> NodeInfo:
    return NodeInfo(
        node_id=row["NodeID"],
        is_alive=row["Alive"],
        address=row["NodeManagerAddress"],
        port=row["NodeManagerPort"],
        resources=dict(row["Resources"]),
        death_message=row.get("DeathReasonMessage", ""),
    )
