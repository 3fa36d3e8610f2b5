"""The OOM killer: its log in the forms of several kernels, counters, and what is absent."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_tune_memguard.system import kernel_log
from ray_tune_memguard.system.kernel_log import (
    KernelEvidence,
    KernelLogError,
    KernelWatch,
    OomKill,
    kills_in,
    read_log,
)

MIB = 2**20
CGROUP_KILL = [
    "ray::ImplicitFu invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=1000",
    "memory: usage 358400kB, limit 358400kB, failcnt 12",
    "oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,"
    "oom_memcg=/job_7,task_memcg=/job_7/step,task=ray::ImplicitFu,pid=30114,uid=0",
    "Memory cgroup out of memory: Killed process 30114 (ray::ImplicitFu) total-vm:2825800kB, "
    "anon-rss:530460kB, file-rss:70660kB, shmem-rss:24kB, UID:0 pgtables:1700kB "
    "oom_score_adj:1000",
]
MACHINE_KILL = [
    "oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,global_oom,"
    "task_memcg=/user.slice,task=python,pid=77,uid=1000",
    "Out of memory: Killed process 77 (python) total-vm:100kB, anon-rss:1024kB, file-rss:0kB, "
    "shmem-rss:0kB, UID:1000 pgtables:1kB oom_score_adj:0",
]
OLD_KERNEL = ["Killed process 78 (a (b) c) total-vm:9kB, anon-rss:2048kB, file-rss:1024kB"]


def records(lines: list[str]) -> list[tuple[float, str]]:
    return [(float(number), line) for number, line in enumerate(lines)]


def write_kmsg(root: Path, lines: list[str]) -> None:
    path = root / "dev" / "kmsg"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(f"6,{n},{n * 1_000_000},-;{line}\n KEY=v\n" for n, line in enumerate(lines, 1))
    path.write_text(text)


def write_count(root: Path, count: int) -> None:
    path = root / "proc" / "vmstat"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"nr_free_pages 1\noom_kill {count}\n")


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (
            CGROUP_KILL,
            OomKill(3.0, 30114, "ray::ImplicitFu", 601144 * 1024, "/job_7", 350 * MIB),
        ),
        (MACHINE_KILL, OomKill(1.0, 77, "python", MIB)),
        (OLD_KERNEL, OomKill(0.0, 78, "a (b) c", 3 * MIB)),
    ],
)
def test_kills_are_read_from_the_log(lines: list[str], expected: OomKill) -> None:
    noise = ["oom_reaper: reaped process 5 (x), now anon-rss:0kB", "usb 1: new device"]
    assert list(kills_in(records(lines) + records(noise))) == [expected]


def test_a_watch_tells_what_came_since(tmp_path: Path) -> None:
    write_kmsg(tmp_path, MACHINE_KILL)
    write_count(tmp_path, 3)
    watch = KernelWatch(tmp_path)
    assert watch.evidence() == KernelEvidence(counter_rise=0, pids_are_ours=False)
    write_kmsg(tmp_path, MACHINE_KILL + CGROUP_KILL)
    write_count(tmp_path, 4)
    evidence = watch.evidence()
    assert [kill.pid for kill in evidence.kills] == [30114]
    assert evidence.counter_rise == 1
    assert evidence.has_log
    watch.explain(evidence.kills[0])
    assert watch.evidence() == KernelEvidence(counter_rise=0, pids_are_ours=False)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the clock shows."""
    now = [1000.0]
    monkeypatch.setattr(kernel_log.time, "monotonic", lambda: now[0])
    return now


def test_of_kills_that_come_together_each_explains_one_death(
    tmp_path: Path, clock: list[float]
) -> None:
    write_count(tmp_path, 3)
    watch = KernelWatch(tmp_path)
    write_count(tmp_path, 5)
    for left in (2, 1):
        assert watch.evidence().counter_rise == left
        watch.explain(None)
    assert watch.evidence().counter_rise == 0
    # Another kill, of which no trial dies, is not held against a later death.
    write_count(tmp_path, 6)
    assert watch.evidence().counter_rise == 1
    clock[0] += kernel_log.TOGETHER_S
    assert watch.evidence().counter_rise == 0
    write_count(tmp_path, 7)
    assert watch.evidence().counter_rise == 1


def test_in_a_container_an_old_kill_is_none_of_a_later_death(
    tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_kmsg(tmp_path, [])
    watch = KernelWatch(tmp_path)
    write_kmsg(tmp_path, CGROUP_KILL)
    assert len(watch.evidence().kills) == 1
    clock[0] += kernel_log.TOGETHER_S
    assert watch.evidence().kills == ()
    # Where the log has our numbers, it names the process.
    monkeypatch.setattr(kernel_log, "sees_machine_pids", lambda root: True)
    write_kmsg(tmp_path, CGROUP_KILL + MACHINE_KILL)
    for _ in range(2):
        assert [kill.pid for kill in watch.evidence().kills] == [77]
        clock[0] += kernel_log.TOGETHER_S


def test_of_a_node_that_was_not_watched_the_last_minutes_count(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    kills = [OomKill(at, pid, "ray::Im", MIB) for at, pid in ((300.0, 1), (900.0, 2))]
    monkeypatch.setattr(kernel_log, "kills_of_log", lambda: kills)
    assert [kill.pid for kill in kernel_log.recent_evidence().kills] == [2]


def test_a_kill_counts_once_however_many_cgroups_are_above(tmp_path: Path) -> None:
    counts = {}
    for version, file in ((1, "memory.oom_control"), (2, "memory.events")):
        cgroups = [
            kernel_log.MemoryCgroup(tmp_path / f"{version}{name}", version) for name in ("/a", "")
        ]
        for cgroup in cgroups:
            cgroup.directory.mkdir(parents=True, exist_ok=True)
            (cgroup.directory / file).write_text("oom_kill 1\n")
        counts[version] = kernel_log._oom_kills_of(cgroups)
    # Only those of version 2 count what is below them.
    assert counts == {1: 2, 2: 1}


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    evidence = KernelWatch(tmp_path).evidence()
    assert evidence.counter_rise is None
    assert evidence.absent == (
        "kernel log (/dev/kmsg: No such file or directory)",
        "/proc/vmstat",
    )
    assert not evidence.has_log
    with pytest.raises(KernelLogError, match="No such file"):
        read_log(tmp_path)


def test_no_permission_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> list[tuple[float, str]]:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(kernel_log, "_read_device", refuse)
    monkeypatch.setattr(kernel_log, "_read_ring_buffer", lambda: None)
    with pytest.raises(KernelLogError, match="/dev/kmsg: Operation not permitted"):
        read_log()
    line = f"<6>[   12.500000] {MACHINE_KILL[1]}\n[   13.000000][    T1] other"
    monkeypatch.setattr(kernel_log, "_read_ring_buffer", lambda: line)
    assert [at for at, _ in read_log()] == [12.5, 13.0]
    [kill] = kernel_log.kills_of_log()
    assert (kill.pid, kill.kernel_time_s) == (77, 12.5)


def test_counters_of_both_versions_of_cgroups(tmp_path: Path) -> None:
    for version, file in ((1, "memory.oom_control"), (2, "memory.events")):
        cgroup = kernel_log.MemoryCgroup(tmp_path / str(version), version)
        assert kernel_log.oom_kills_of_cgroup(cgroup) is None
        cgroup.directory.mkdir()
        (cgroup.directory / file).write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 5\n")
        assert kernel_log.oom_kills_of_cgroup(cgroup) == 5
