"""The private names of Ray's core that this package uses, and what needs them.

``adapter/contract.py`` includes these rows in its table. The names of Ray Tune are there.
"""

from __future__ import annotations

from ray_tune_memguard.private_names import PrivateName, rows_of

RAY_PROCESSES = "ray_processes"
CLUSTER_STATE = "cluster_state"
CLUSTER_BY_ADDRESS = "cluster_by_address"
OBJECT_OWNERS = "object_owners"
STORE_SIZE = "store_size"
TRIAL_MEMORY = "trial_memory"
TRIAL_PROFILES = "trial_profiles"

#: What is different in a run without the capability.
WITHOUT: dict[str, str] = {
    RAY_PROCESSES: "other processes of Ray are not measured",
    CLUSTER_STATE: "nothing is read from Ray's control service, such as why a process ended",
    CLUSTER_BY_ADDRESS: "`memguard doctor` and `memguard objects` cannot look at a running cluster",
    OBJECT_OWNERS: "nothing tells which process owns or holds objects",
    STORE_SIZE: "`memguard doctor` works out itself how large a new object store would be",
    TRIAL_MEMORY: "the memory of trials is not measured",
    TRIAL_PROFILES: "trials are not profiled",
}

_STATE = "ray._private.state:GlobalState"
_ACCESSOR = "ray._raylet:GlobalStateAccessor"
_MESSAGES = "ray.core.generated.gcs_pb2"

_BOTH = (CLUSTER_STATE, TRIAL_MEMORY)

NAMES: tuple[PrivateName, ...] = (
    *rows_of("ray._private.worker", (RAY_PROCESSES, TRIAL_PROFILES), "_global_node"),
    # The control service (GCS). Older: 2.50 to 2.52.
    *rows_of("ray._private.state", _BOTH, "state"),
    *rows_of(_STATE, _BOTH, "_connect_and_get_accessor()", older="_check_connected"),
    *rows_of(_ACCESSOR, _BOTH, "get_actor_info"),
    *rows_of(_ACCESSOR, CLUSTER_STATE, "get_worker_info"),
    *rows_of(_ACCESSOR, CLUSTER_STATE, "get_node_table", "get_system_config"),
    *rows_of(_MESSAGES, _BOTH, "ActorTableData"),
    *rows_of(_MESSAGES, CLUSTER_STATE, "WorkerTableData"),
    *rows_of("ray.actor:ActorHandle", _BOTH, "_actor_id"),
    *rows_of("ray.core.generated.common_pb2", CLUSTER_STATE, "WorkerExitType"),
    *rows_of(_STATE, CLUSTER_BY_ADDRESS, "_initialize_global_state(gcs_options)", "disconnect()"),
    *rows_of(_STATE, CLUSTER_BY_ADDRESS, "available_resources_per_node()"),
    *rows_of("ray._raylet", CLUSTER_BY_ADDRESS, "GcsClientOptions"),
    # Older: tokens if the user asks for them, or none.
    *rows_of(
        "ray._private.authentication.authentication_token_setup",
        CLUSTER_BY_ADDRESS,
        "maybe_enable_token_auth_if_token_available",
        optional=True,
        older="ensure_token_if_auth_enabled",
    ),
    # The size of a new object store. Older: 2.50 has the rule in another function.
    *rows_of("ray._private.utils", STORE_SIZE, "estimate_available_memory()"),
    *rows_of(
        "ray._private.utils",
        STORE_SIZE,
        "resolve_object_store_memory(available_memory_bytes)",
        older="get_shared_memory_bytes",
    ),
    # The raylets.
    *rows_of(
        "ray._private.internal_api",
        OBJECT_OWNERS,
        "node_stats(node_manager_address, node_manager_port, include_memory_info)",
    ),
)
