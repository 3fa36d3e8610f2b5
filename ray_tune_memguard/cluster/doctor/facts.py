"""What the checks know: plain values, so that a check can be tried without a cluster.

Amounts of memory are in bytes. None means that it could not be read.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ray_tune_memguard.cluster.monitor import settings_from
from ray_tune_memguard.cluster.settings import NEWEST_KNOWN, Value, Version, effective
from ray_tune_memguard.system.node_memory import MonitorSettings

#: What the raylet, `gcs_server`, the dashboard, the agents and a driver take, about.
_OF_RAY_ITSELF = 2**30
IDLE_TITLE = "ray::IDLE"
#: Share of one CPU; an idle worker takes less than 0.01.
_MAX_IDLE_CPU = 0.1
#: On a busy machine a thread that never rests gets little, because Ray's workers are nice.
MAX_WANTED_CPU = 0.7


@dataclass(frozen=True)
class WorkerFacts:
    """One worker process of Ray.

    Attributes:
        pid: its process.
        title: its title (``ray::IDLE``).
        anonymous: the memory that belongs to it alone.
        cpu: used share of one CPU while the doctor looked; the lowest of several looks.
        wanted_cpu: share of one CPU that its busiest thread would have used on a free machine.
        owned_objects: objects that it owns; None without ``grpcio``.
    """

    pid: int
    title: str
    anonymous: int
    cpu: float = 0.0
    wanted_cpu: float = 0.0
    owned_objects: int | None = None

    @property
    def is_idle(self) -> bool:
        # Workers for spilling are `ray::IDLE_SpillWorker`; Ray keeps them.
        return self.title == IDLE_TITLE

    @property
    def is_busy(self) -> bool:
        return self.cpu >= _MAX_IDLE_CPU or self.wanted_cpu >= MAX_WANTED_CPU


@dataclass(frozen=True)
class MemoryFacts:
    """Memory of a machine.

    Attributes:
        ray_total, ray_used: what Ray takes for the machine's memory, and for its use.
        limit: the tightest cgroup limit above Ray's processes; None if there is none.
        limit_used: what is used of it.
        limit_from: what sets the limit.
        swap_used: bytes in swap.
        swapped_memory: the memory (RAM) of those whose swap this is.
    """

    ray_total: int | None = None
    ray_used: int = 0
    limit: int | None = None
    limit_used: int = 0
    limit_from: str = ""
    swap_used: int = 0
    swapped_memory: int | None = None


@dataclass(frozen=True)
class NodeFacts:
    """One node.

    Attributes:
        name: its address, for messages.
        is_head: whether the head runs on it.
        is_here: whether it runs on this machine, so that its processes could be read.
        cpus, free_cpus: CPUs that Ray may give away, and that it had not given away at the last
            look at its workers.
        object_store: the size of its object store.
        environment: the settings in the environment of its raylet; None if it was not read.
        slurm_memory: what its Slurm job may use (``SLURM_MEM_PER_NODE``).
        workers: its workers.
        lasting: pids of idle workers that stayed idle while they were watched, until they were no
            more than the limit or Ray had had the time to end them; None if they were not watched.
        machine: the memory of its machine.
    """

    name: str
    is_head: bool = False
    is_here: bool = False
    cpus: float = 0.0
    free_cpus: float | None = None
    object_store: int | None = None
    environment: dict[str, str] | None = None
    slurm_memory: int | None = None
    workers: tuple[WorkerFacts, ...] = ()
    lasting: frozenset[int] | None = None
    machine: MemoryFacts = MemoryFacts()

    @property
    def idle(self) -> tuple[WorkerFacts, ...]:
        """Its idle workers."""
        return tuple(worker for worker in self.workers if worker.is_idle)

    @property
    def staying(self) -> list[WorkerFacts]:
        """Its idle workers, without those that were not idle any more when they were watched."""
        return [one for one in self.idle if self.lasting is None or one.pid in self.lasting]

    @property
    def used_by_others(self) -> int:
        """What is used on its machine outside of its limit.

        Without a cgroup it is known only roughly: the object store counts as if it were full.
        """
        machine = self.machine
        if machine.limit is not None:
            return max(0, machine.ray_used - machine.limit_used)
        in_workers = sum(worker.anonymous for worker in self.workers)
        ours = in_workers + (self.object_store or 0) + _OF_RAY_ITSELF
        return max(0, machine.ray_used - ours)

    @property
    def total(self) -> int | None:
        """The memory that its processes may use, as far as that is known."""
        known = (self.machine.ray_total, self.machine.limit, self.slurm_memory)
        return min((value for value in known if value is not None), default=None)


@dataclass(frozen=True)
class HeadFacts:
    """The head's own processes.

    Attributes:
        has_dashboard: whether it serves the dashboard (Ray runs its process in any case).
        gcs_rss: resident memory of ``gcs_server``.
        environment: the settings in the environment of ``gcs_server``; None if it was not read.
    """

    has_dashboard: bool | None = None
    gcs_rss: int | None = None
    environment: dict[str, str] | None = None


@dataclass(frozen=True)
class PlanFacts:
    """What the user plans.

    Attributes:
        trials: how many trials.
        storage: where their results go.
        free_inodes: free inodes there; None if the file system does not count them.
        owner_calls: places of the user's code that give ``_owner`` to ``ray.put``.
    """

    trials: int | None = None
    storage: str = ""
    free_inodes: int | None = None
    owner_calls: tuple[str, ...] = ()


@dataclass(frozen=True)
class Facts:
    """Everything that the checks know.

    Attributes:
        ray_version: the version of Ray.
        system_config: the settings that the head was started with.
        nodes: the nodes that are alive; without a cluster, this machine as one that has not begun.
        head: the head's processes.
        plan: what the user plans.
        is_cluster: whether a cluster was examined.
        unknown_settings: settings that were given and that Ray does not have.
        unseen: sentences that say what could not be read, and what would help.
    """

    ray_version: Version = NEWEST_KNOWN
    system_config: dict[str, object] = field(default_factory=dict)
    nodes: tuple[NodeFacts, ...] = ()
    head: HeadFacts = HeadFacts()
    plan: PlanFacts = PlanFacts()
    is_cluster: bool = True
    unknown_settings: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()

    def setting(self, name: str, node: NodeFacts) -> Value:
        """The value of a setting for a node's raylet."""
        return effective(name, self.system_config, node.environment or {})

    def monitor(self, node: NodeFacts) -> MonitorSettings:
        """The settings of the memory monitor of a node."""
        return settings_from(self.system_config, node.environment or {})

    def idle_limit(self, node: NodeFacts) -> float:
        """The idle workers that a node may keep; Ray ends others."""
        limit = self.setting("num_workers_soft_limit", node)
        if limit >= 0:
            return limit
        return node.cpus if node.free_cpus is None else node.free_cpus

    def idle_above_limit(self, node: NodeFacts) -> float:
        """The idle workers above the limit that Ray could end; one that owns objects refuses."""
        return sum(not worker.owned_objects for worker in node.staying) - self.idle_limit(node)

    def head_setting(self, name: str) -> Value:
        """The value of a setting for ``gcs_server``."""
        return effective(name, self.system_config, self.head.environment or {})
