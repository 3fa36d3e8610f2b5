"""Facts of this machine: what a Ray that starts here would see."""

from __future__ import annotations

import os

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

# What Ray gives the object store.
_STORE_SHARE = 0.3
_MIB = 2**20


def of_machine(plan: PlanFacts) -> Facts:
    """Facts of this machine and of the variables that a Ray started here would get."""
    given = settings.given_in(dict(os.environ))
    machine = memory_facts(None)
    total = machine.ray_total
    node = NodeFacts(
        name="this machine",
        is_head=True,
        is_here=True,
        cpus=float(os.cpu_count() or 1),
        object_store=None if total is None else int(_STORE_SHARE * total),
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
