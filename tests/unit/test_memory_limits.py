"""Memory limits as Ray's monitor counts them, and those of the cgroups above a process."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from ray_tune_memguard.system.cgroups import memory_cgroups, tightest_limit
from ray_tune_memguard.system.node_memory import (
    MACHINE,
    MemoryLimits,
    MonitorSettings,
    NodeMemory,
    NodeMemoryReader,
    Swapped,
)
from tests.unit import file_trees
from tests.unit.file_trees import GIB

OF_MACHINE = NodeMemory(4 * GIB, 64 * GIB, MACHINE)
OF_CONTAINER_V1 = NodeMemory(2 * GIB, 8 * GIB, "/sys/fs/cgroup/memory")
OF_CONTAINER_V2 = NodeMemory(2 * GIB, 8 * GIB, "/sys/fs/cgroup")
JOB_V1 = "/sys/fs/cgroup/memory/slurm/uid_1000/job_7/step_0"
JOB_V2 = "/sys/fs/cgroup/system.slice/slurmstepd.scope/job_7/step_0/user"
POD = "/sys/fs/cgroup/memory/kubepods/burstable/pod1f3c/9a7e"


@pytest.mark.parametrize(
    ("tree", "ray", "cgroup"),
    [
        (file_trees.slurm_v1, OF_MACHINE, NodeMemory(2 * GIB, 16 * GIB, JOB_V1)),
        (file_trees.slurm_v2, OF_MACHINE, NodeMemory(2 * GIB, 16 * GIB, JOB_V2)),
        (file_trees.docker_v1, OF_CONTAINER_V1, OF_CONTAINER_V1),
        (file_trees.docker_v2, OF_CONTAINER_V2, OF_CONTAINER_V2),
        (file_trees.kubernetes_v1, OF_MACHINE, NodeMemory(2 * GIB, 8 * GIB, POD)),
        (file_trees.kubernetes_v2, OF_CONTAINER_V2, OF_CONTAINER_V2),
        (
            file_trees.hybrid,
            OF_MACHINE,
            NodeMemory(2 * GIB, 8 * GIB, "/sys/fs/cgroup/memory/user.slice"),
        ),
        (file_trees.no_limit, OF_MACHINE, None),
        (file_trees.machine, OF_MACHINE, None),
    ],
)
def test_both_views_of_a_system(
    tree: Callable[[Path], None], ray: NodeMemory, cgroup: NodeMemory | None, tmp_path: Path
) -> None:
    tree(tmp_path)
    limits = NodeMemoryReader(root=tmp_path).read()
    assert limits == MemoryLimits(ray, cgroup)
    # A warning where the kernel would act before Ray's monitor.
    hidden = cgroup is not None and cgroup != ray
    assert (limits.warning(MonitorSettings()) is not None) == hidden


def test_the_cgroups_of_a_process_are_listed_from_its_own_upwards(tmp_path: Path) -> None:
    file_trees.slurm_v2(tmp_path)
    names = [cgroup.name for cgroup in memory_cgroups(root=tmp_path)]
    top = "/sys/fs/cgroup"
    assert names[0].endswith("/job_7/step_0/user/task_0")
    assert names[-2:] == [f"{top}/system.slice", top]
    assert len(names) == 7


def test_the_cgroups_of_another_process(tmp_path: Path) -> None:
    file_trees.no_limit(tmp_path)
    file_trees.process(tmp_path, "0::/ray.service\n", file_trees.V2_MOUNTS, pid="77")
    file_trees.v2_cgroup(tmp_path, "/ray.service", 8 * GIB, 3 * GIB)
    found = tightest_limit(memory_cgroups(77, tmp_path))
    assert found is not None
    assert found.bytes == 8 * GIB
    limits = NodeMemoryReader(pid=77, root=tmp_path).read()
    assert limits.cgroup == NodeMemory(3 * GIB, 8 * GIB, "/sys/fs/cgroup/ray.service")
    # A process that has ended leaves our own cgroups.
    assert NodeMemoryReader(pid=78, root=tmp_path).read().cgroup is None


def test_a_system_without_proc_has_no_limits(tmp_path: Path) -> None:
    limits = NodeMemoryReader(root=tmp_path).read()
    assert limits == MemoryLimits(None, None)
    assert "unknown" in limits.describe()
    assert limits.warning(MonitorSettings()) is None


def test_a_cgroup_that_cannot_be_read_has_no_limit(tmp_path: Path) -> None:
    file_trees.docker_v2(tmp_path)
    file_trees.write(tmp_path, {"/sys/fs/cgroup/memory.current": "much\n"})
    limits = NodeMemoryReader(root=tmp_path).read()
    assert limits.cgroup is None
    # Ray counts 0 bytes then.
    assert limits.ray == NodeMemory(0, 8 * GIB, "/sys/fs/cgroup")


def test_a_usage_above_the_limit_counts_as_the_limit(tmp_path: Path) -> None:
    file_trees.docker_v2(tmp_path)
    file_trees.v2_cgroup(tmp_path, "", 8 * GIB, 9 * GIB)
    assert NodeMemoryReader(root=tmp_path).as_ray() == NodeMemory(
        8 * GIB, 8 * GIB, "/sys/fs/cgroup"
    )


def test_a_limit_above_the_machines_memory_does_not_count_for_ray(tmp_path: Path) -> None:
    file_trees.docker_v2(tmp_path)
    file_trees.v2_cgroup(tmp_path, "", 80 * GIB, 3 * GIB)
    assert NodeMemoryReader(root=tmp_path).as_ray() == OF_MACHINE


def test_an_old_kernel_has_no_available_memory(tmp_path: Path) -> None:
    file_trees.machine(tmp_path)
    meminfo = tmp_path / "proc" / "meminfo"
    lines = meminfo.read_text().splitlines(keepends=True)
    meminfo.write_text("".join(line for line in lines if "MemAvailable" not in line))
    memory = NodeMemoryReader(root=tmp_path).as_ray()
    assert memory is not None
    assert memory.used_bytes == 34 * GIB - file_trees.MIB


@pytest.mark.parametrize(
    ("swap_max", "used", "total"),
    [(None, 7 * GIB, 74 * GIB), ("max", 7 * GIB, 74 * GIB), ("0", 4 * GIB, 64 * GIB)],
)
def test_swap_counts_if_the_monitor_counts_it(
    swap_max: str | None, used: int, total: int, tmp_path: Path
) -> None:
    file_trees.no_limit(tmp_path)
    file_trees.machine(tmp_path, swap=(10 * GIB, 7 * GIB))
    if swap_max is not None:
        file_trees.v2_cgroup(tmp_path, "", "max", 0, memory_swap_max=swap_max)
    counting = NodeMemoryReader(MonitorSettings(counts_swap=True), root=tmp_path)
    assert counting.as_ray() == NodeMemory(used, total, MACHINE)
    assert NodeMemoryReader(root=tmp_path).as_ray() == OF_MACHINE


def test_the_swap_of_a_container(tmp_path: Path) -> None:
    file_trees.docker_v2(tmp_path)
    files = {"memory.swap.max": 4 * GIB, "memory.swap.current": GIB}
    file_trees.write(tmp_path, {f"/sys/fs/cgroup/{name}": str(n) for name, n in files.items()})
    reader = NodeMemoryReader(MonitorSettings(counts_swap=True), root=tmp_path)
    assert reader.as_ray() == NodeMemory(3 * GIB, 12 * GIB, "/sys/fs/cgroup")


@pytest.mark.parametrize(
    ("settings", "kills_above"),
    [
        (MonitorSettings(), 95),
        (MonitorSettings(threshold=1.0), 100),
        (MonitorSettings(min_free_bytes=2), 98),
        (MonitorSettings(min_free_bytes=20), 95),
        (MonitorSettings(min_free_bytes=0), 100),
    ],
)
def test_the_threshold_is_rays(settings: MonitorSettings, kills_above: int) -> None:
    assert settings.kills_above(100) == kills_above


def test_the_line_and_the_warning(tmp_path: Path) -> None:
    file_trees.slurm_v1(tmp_path)
    limits = NodeMemoryReader(root=tmp_path).read()
    assert limits.describe() == (f"Memory limit: 16.0 GiB (cgroup {JOB_V1}), 2.0 GiB of it in use.")
    warning = limits.warning(MonitorSettings())
    assert warning is not None
    assert "64.0 GiB (the machine)" in warning
    assert f"cgroup {JOB_V1} allows only 16.0 GiB" in warning
    assert "RAY_memory_usage_threshold=0.23 on" in warning
    # Without the monitor there is nothing that believes in another limit.
    assert limits.warning(MonitorSettings(is_on=False)) is None


def test_no_threshold_is_advised_where_others_use_much_of_the_machine() -> None:
    # Ray's monitor compares all that the machine uses, 40 GiB, with the threshold.
    limits = MemoryLimits(
        NodeMemory(40 * GIB, 64 * GIB, MACHINE), NodeMemory(8 * GIB, 16 * GIB, JOB_V1)
    )
    warning = limits.warning(MonitorSettings()) or ""
    assert "RAY_memory_usage_threshold" not in warning
    assert "others use there as well (now 32.0 GiB): ask for the whole node" in warning


@pytest.mark.parametrize(
    ("tree", "more", "expected"),
    [
        (file_trees.machine, {}, Swapped(4 * GIB, 64 * GIB)),
        (file_trees.slurm_v2, {}, Swapped(4 * GIB, 64 * GIB)),
        # What the container has in swap, or else what the machine has.
        (file_trees.docker_v2, {"memory.swap.current": 3 * GIB}, Swapped(3 * GIB, 8 * GIB)),
        (file_trees.docker_v2, {}, Swapped(4 * GIB, 64 * GIB)),
        (
            file_trees.docker_v1,
            {"memory/memory.memsw.usage_in_bytes": 5 * GIB},
            Swapped(2 * GIB, 8 * GIB),
        ),
        (file_trees.docker_v1, {}, Swapped(4 * GIB, 64 * GIB)),
    ],
)
def test_swap_belongs_to_a_memory(
    tree: Callable[[Path], None], more: dict[str, int], expected: Swapped, tmp_path: Path
) -> None:
    tree(tmp_path)
    file_trees.machine(tmp_path, swap=(8 * GIB, 4 * GIB))
    file_trees.write(tmp_path, {f"/sys/fs/cgroup/{name}": str(n) for name, n in more.items()})
    assert NodeMemoryReader(root=tmp_path).swapped() == expected


@pytest.mark.parametrize("min_free_bytes", [-1, GIB])
def test_the_advised_threshold_holds_for_a_small_limit(min_free_bytes: int) -> None:
    limits = MemoryLimits(NodeMemory(0, 512 * GIB, MACHINE), NodeMemory(0, 2 * GIB, JOB_V1))
    warning = limits.warning(MonitorSettings(min_free_bytes=min_free_bytes))
    assert warning is not None
    advised = dict(re.findall(r"RAY_(\w+)=([-\d.]+\d)", warning))
    settings = MonitorSettings(
        threshold=float(advised["memory_usage_threshold"]),
        min_free_bytes=int(advised.get("min_memory_free_bytes", min_free_bytes)),
    )
    assert 1.8 * GIB < settings.kills_above(512 * GIB) < 2 * GIB
    assert limits.warning(settings) is None


def test_this_machine_is_measured() -> None:
    memory = NodeMemoryReader().as_ray()
    if Path("/proc/meminfo").exists():
        assert memory is not None
        assert 0 < memory.share <= 1
    else:
        assert memory is None
