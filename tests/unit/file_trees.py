"""File trees as /proc and /sys/fs/cgroup show them on different systems."""

from __future__ import annotations

from pathlib import Path

GIB = 2**30
MIB = 2**20
#: What version 1 writes for "no limit".
V1_UNLIMITED = 9223372036854771712


def write(root: Path, files: dict[str, str]) -> None:
    """Write files, by their absolute path, below ``root``."""
    for name, text in files.items():
        path = root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def machine(
    root: Path, *, total: int = 64 * GIB, available: int = 60 * GIB, swap: tuple[int, int] = (0, 0)
) -> None:
    """``/proc/meminfo``; ``swap`` is total and free."""
    lines = [("MemTotal", total), ("MemFree", available // 2), ("MemAvailable", available)]
    lines += [("Buffers", 0), ("Cached", MIB), ("SwapTotal", swap[0]), ("SwapFree", swap[1])]
    text = "".join(f"{key}:{value // 1024:>16} kB\n" for key, value in lines)
    write(root, {"/proc/meminfo": text})


def process(root: Path, cgroup: str, mounts: list[str], pid: str = "self") -> None:
    """The cgroups of a process, and what is mounted, ``mounted point type options`` each."""
    lines = []
    for number, mount in enumerate(mounts):
        mounted, point, kind, options = mount.split()
        lines.append(
            f"{30 + number} 23 0:{28 + number} {mounted} {point} rw,relatime - {kind} {kind} "
            f"{options}\n"
        )
    write(root, {f"/proc/{pid}/cgroup": cgroup, f"/proc/{pid}/mountinfo": "".join(lines)})


def v1_cgroup(root: Path, path: str, limit: int, usage: int, cache: int = 0) -> None:
    stat = (
        f"cache {cache}\nrss {usage - cache}\ninactive_file 1\nactive_file 1\n"
        f"total_inactive_file {cache // 2}\ntotal_active_file {cache - cache // 2}\n"
    )
    directory = f"/sys/fs/cgroup/memory{path}"
    write(
        root,
        {
            f"{directory}/memory.limit_in_bytes": f"{limit}\n",
            f"{directory}/memory.usage_in_bytes": f"{usage}\n",
            f"{directory}/memory.stat": stat,
        },
    )


def v2_cgroup(
    root: Path, path: str, limit: int | str | None, usage: int, cache: int = 0, **more: str
) -> None:
    """A cgroup of version 2; the root cgroup has no limit file (None)."""
    directory = f"/sys/fs/cgroup{path}"
    stat = f"anon {usage - cache}\ninactive_file {cache // 2}\nactive_file {cache - cache // 2}\n"
    files = {f"{directory}/memory.stat": stat}
    if limit is not None:
        files[f"{directory}/memory.max"] = f"{limit}\n"
        files[f"{directory}/memory.current"] = f"{usage}\n"
    for name, text in more.items():
        files[f"{directory}/{name.replace('_', '.')}"] = f"{text}\n"
    write(root, files)


V1_MOUNTS = [
    "/ /sys/fs/cgroup/cpu,cpuacct cgroup rw,cpu,cpuacct",
    "/ /sys/fs/cgroup/memory cgroup rw,memory",
]
V2_MOUNTS = ["/ /sys/fs/cgroup cgroup2 rw,nsdelegate"]
HYBRID_MOUNTS = [*V1_MOUNTS, "/ /sys/fs/cgroup/unified cgroup2 rw"]


def slurm_v1(root: Path) -> None:
    """A job of 16 GiB on a machine of 64 GiB, cgroup version 1."""
    machine(root)
    own = "/slurm/uid_1000/job_7/step_0/task_0"
    process(root, f"4:memory:{own}\n1:cpu,cpuacct:/\n", V1_MOUNTS)
    v1_cgroup(root, "", V1_UNLIMITED, 5 * GIB)
    v1_cgroup(root, "/slurm", V1_UNLIMITED, 5 * GIB)
    v1_cgroup(root, "/slurm/uid_1000", V1_UNLIMITED, 4 * GIB)
    v1_cgroup(root, "/slurm/uid_1000/job_7", 16 * GIB, 4 * GIB, cache=3 * GIB)
    v1_cgroup(root, "/slurm/uid_1000/job_7/step_0", 16 * GIB, 4 * GIB, cache=2 * GIB)
    v1_cgroup(root, own, V1_UNLIMITED, 4 * GIB)


def slurm_v2(root: Path) -> None:
    """The same with version 2, as slurmstepd makes it."""
    machine(root)
    own = "/system.slice/slurmstepd.scope/job_7/step_0/user/task_0"
    process(root, f"0::{own}\n", V2_MOUNTS)
    v2_cgroup(root, "", None, 0)
    v2_cgroup(root, "/system.slice", "max", 9 * GIB)
    v2_cgroup(root, "/system.slice/slurmstepd.scope", "max", 5 * GIB)
    v2_cgroup(root, "/system.slice/slurmstepd.scope/job_7", 16 * GIB, 4 * GIB, cache=3 * GIB)
    v2_cgroup(root, "/system.slice/slurmstepd.scope/job_7/step_0", "max", 4 * GIB)
    v2_cgroup(root, "/system.slice/slurmstepd.scope/job_7/step_0/user", 16 * GIB, 4 * GIB, 2 * GIB)
    v2_cgroup(root, own, "max", 4 * GIB)


def docker_v1(root: Path) -> None:
    """A container of 8 GiB: paths are the host's, of which the mount shows the container's."""
    machine(root)
    process(
        root,
        "4:memory:/docker/3f2a\n1:cpu,cpuacct:/docker/3f2a\n",
        ["/docker/3f2a /sys/fs/cgroup/memory cgroup rw,memory"],
    )
    v1_cgroup(root, "", 8 * GIB, 3 * GIB, cache=GIB)


def docker_v2(root: Path) -> None:
    """A container of 8 GiB with a cgroup namespace."""
    machine(root)
    process(root, "0::/\n", V2_MOUNTS)
    v2_cgroup(root, "", 8 * GIB, 3 * GIB, cache=GIB)


def kubernetes_v1(root: Path) -> None:
    """A pod of 12 GiB with a container of 8 GiB, seen from the host."""
    machine(root)
    pod = "/kubepods/burstable/pod1f3c"
    process(root, f"4:memory:{pod}/9a7e\n", V1_MOUNTS)
    v1_cgroup(root, "", V1_UNLIMITED, 9 * GIB)
    v1_cgroup(root, "/kubepods", 60 * GIB, 9 * GIB)
    v1_cgroup(root, "/kubepods/burstable", V1_UNLIMITED, 6 * GIB)
    v1_cgroup(root, pod, 12 * GIB, 5 * GIB)
    v1_cgroup(root, f"{pod}/9a7e", 8 * GIB, 3 * GIB, cache=GIB)


def kubernetes_v2(root: Path) -> None:
    """A container of 8 GiB, whose process sees a path outside of its namespace."""
    machine(root)
    process(root, "0::/../../kubepods.slice/pod1f3c/9a7e\n", V2_MOUNTS)
    v2_cgroup(root, "", 8 * GIB, 3 * GIB, cache=GIB)


def hybrid(root: Path) -> None:
    """Both versions mounted; the memory controller belongs to version 1."""
    machine(root)
    process(root, "5:memory:/user.slice\n1:name=systemd:/\n0::/user.slice\n", HYBRID_MOUNTS)
    v1_cgroup(root, "", V1_UNLIMITED, 9 * GIB)
    v1_cgroup(root, "/user.slice", 8 * GIB, 3 * GIB, cache=GIB)
    write(root, {"/sys/fs/cgroup/unified/user.slice/cgroup.procs": "1\n"})


def no_limit(root: Path) -> None:
    """Cgroups of version 2 without a limit."""
    machine(root)
    process(root, "0::/user.slice/session-2.scope\n", V2_MOUNTS)
    v2_cgroup(root, "", None, 0)
    v2_cgroup(root, "/user.slice", "max", 3 * GIB)
    v2_cgroup(root, "/user.slice/session-2.scope", "max", 3 * GIB)
