"""Facts of this machine: what a Ray that starts here would see."""

from __future__ import annotations

import os
from contextlib import suppress

import ray

from ray_tune_memguard.cluster import settings
from ray_tune_memguard.cluster.doctor.facts import (
    Facts,
    HeadFacts,
    MemoryFacts,
    NodeFacts,
    PlanFacts,
)
from ray_tune_memguard.system.node_memory import MACHINE, NodeMemoryReader

# What Ray gives the object store: this share of the free memory, at most so many bytes and so much
# of the shared memory, of which it takes less only below so many bytes.
_STORE_SHARE = 0.3
_MAX_STORE = 200 * 10**9
_SHARED_SHARE = 0.95
_MIN_SHARED = 10**10
_SHARED_MEMORY = "/dev/shm"
_MIB = 2**20


def of_machine(plan: PlanFacts) -> Facts:
    """Facts of this machine and of the variables that a Ray started here would get."""
    given = settings.given_in(dict(os.environ))
    machine = memory_facts(None)
    node = NodeFacts(
        name="this machine",
        is_head=True,
        is_here=True,
        cpus=float(os.cpu_count() or 1),
        object_store=_new_store(machine),
        environment=given,
        slurm_memory=slurm_memory(dict(os.environ)),
        machine=machine,
    )
    return Facts(
        ray_version=settings.version_of(ray.__version__),
        nodes=(node,),
        head=HeadFacts(environment=given),
        plan=plan,
        is_cluster=False,
        unknown_settings=tuple(settings.unknown_to_ray(given)),
    )


def _new_store(machine: MemoryFacts) -> int | None:
    """The size of the object store that a Ray started here now would make."""
    try:
        from ray._private.utils import estimate_available_memory, resolve_object_store_memory

        return int(resolve_object_store_memory(estimate_available_memory()))
    except (ImportError, AttributeError, TypeError, OSError):
        return _store_by_rule(machine)


def _store_by_rule(machine: MemoryFacts) -> int | None:
    """The same by Ray's rule, for a Ray that has it elsewhere."""
    if machine.ray_total is None:
        return None
    store = min(_STORE_SHARE * (machine.ray_total - machine.ray_used), _MAX_STORE)
    with suppress(OSError, AttributeError):  # Only Linux has it.
        shared = os.statvfs(_SHARED_MEMORY)
        store = min(store, max(_MIN_SHARED, _SHARED_SHARE * shared.f_bsize * shared.f_bavail))
    return int(store)


def memory_facts(pid: int | None) -> MemoryFacts:
    """Memory of this machine, with the cgroups of a process; None for this one."""
    reader = NodeMemoryReader(pid=pid)
    limits, swapped = reader.read(), reader.swapped()
    seen, cgroup = limits.ray, limits.cgroup
    # Ray's own view may be the same cgroup.
    if cgroup is not None and seen is not None and cgroup.source == seen.source:
        cgroup = None
    return MemoryFacts(
        ray_total=None if seen is None else seen.total_bytes,
        ray_used=0 if seen is None else seen.used_bytes,
        limit=None if cgroup is None else cgroup.total_bytes,
        limit_used=0 if cgroup is None else cgroup.used_bytes,
        limit_from=MACHINE if cgroup is None else f"the cgroup {cgroup.source}",
        swap_used=0 if swapped is None else swapped.used_bytes,
        swapped_memory=None if swapped is None else swapped.memory_bytes,
    )


def slurm_memory(environment: dict[str, str]) -> int | None:
    """What a Slurm job may use on a node; Slurm writes MiB."""
    text = environment.get("SLURM_MEM_PER_NODE", "")
    if text.isdigit() and int(text) > 0:
        return int(text) * _MIB
    per_cpu, cpus = environment.get("SLURM_MEM_PER_CPU", ""), environment.get("SLURM_CPUS_ON_NODE")
    if per_cpu.isdigit() and cpus is not None and cpus.isdigit():
        return int(per_cpu) * int(cpus) * _MIB or None
    return None
