"""The doctor's checks on facts, and the forms in which it prints settings."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from ray._private import utils

from ray_tune_memguard.cluster.doctor import checks, gather, machine, plans
from ray_tune_memguard.cluster.doctor.facts import (
    Facts,
    HeadFacts,
    MemoryFacts,
    NodeFacts,
    PlanFacts,
    WorkerFacts,
)
from ray_tune_memguard.cluster.doctor.findings import Finding, Place, Remedy, Severity
from ray_tune_memguard.cluster.doctor.fixes import FORMS, Fix
from ray_tune_memguard.system.process import ThreadTime

MIB, GIB = 2**20, 2**30
IDLE = WorkerFacts(11, "ray::IDLE", anonymous=58 * MIB, cpu=0.005, owned_objects=0)
MACHINE = MemoryFacts(ray_total=64 * GIB)


def worker(**changes: Any) -> WorkerFacts:
    return WorkerFacts(**{**vars(IDLE), **changes})


def node(*workers: WorkerFacts, **changes: Any) -> NodeFacts:
    given: dict[str, Any] = {
        "name": "10.0.0.5",
        "is_head": True,
        "is_here": True,
        "cpus": 2.0,
        "object_store": 19 * GIB,
        "workers": workers,
        "machine": MACHINE,
    }
    return NodeFacts(**{**given, **changes})


def facts(*nodes: NodeFacts, **changes: Any) -> Facts:
    return Facts(nodes=nodes or (node(IDLE, IDLE),), **changes)


def names(found: list[Finding]) -> list[str]:
    return [finding.check for finding in found]


def only(given: Facts, check: str) -> Finding:
    [finding] = checks.examine(given)
    assert finding.check == check
    return finding


def test_a_healthy_cluster_has_no_findings() -> None:
    trials = WorkerFacts(12, "ray::ImplicitFunc.train", 8 * GIB, 1.0, 500)
    head = HeadFacts(has_dashboard=True, gcs_rss=60 * MIB, environment={})
    assert checks.examine(facts(node(IDLE, IDLE, trials), head=head)) == []
    others = node(IDLE, is_head=False, name="10.0.0.6")
    assert checks.examine(facts(node(cpus=0.0), others)) == []


def test_interval_zero_means_never() -> None:
    config: dict[str, object] = {"kill_idle_workers_interval_ms": 0}
    found = only(facts(node(*[IDLE] * 7), system_config=config), "idle-workers-never-end")
    assert found.evidence == "7 idle workers on 2 CPUs hold 406 MiB."
    [remedy] = found.remedies
    assert remedy == Remedy("kill_idle_workers_interval_ms", 200, is_in_system_config=True)
    variable = node(environment={"kill_idle_workers_interval_ms": "0"})
    assert only(facts(variable), "idle-workers-never-end").severity is Severity.WARNING
    # The head's setting wins.
    config = {"kill_idle_workers_interval_ms": 100}
    assert checks.examine(facts(variable, system_config=config)) == []


@pytest.mark.parametrize(
    ("setting", "value", "check"),
    [
        ("kill_idle_workers_interval_ms", 10_000, "idle-workers-end-late"),
        ("idle_worker_killing_time_threshold_ms", 10_000, "idle-workers-end-late"),
        ("num_workers_soft_limit", 32, "idle-workers-limit"),
        ("memory_monitor_refresh_ms", 0, "memory-monitor-off"),
        ("memory_usage_threshold", 0.99, "memory-monitor-late"),
        ("worker_killing_policy_by_group", True, "memory-monitor-old-policy"),
        ("task_events_max_num_task_in_gcs", -1, "head-keeps-records"),
    ],
)
def test_settings_that_cost_memory(setting: str, value: object, check: str) -> None:
    found = only(facts(system_config={setting: value}), check)
    # What the head was started with can be mended there only.
    assert all("RAY_" not in str(remedy) for remedy in found.remedies if remedy.name == setting)
    mended = {setting: value, **{remedy.name: remedy.value for remedy in found.remedies}}
    assert mended[setting] != value
    assert checks.examine(facts(system_config=mended)) == []


def test_an_idle_worker_that_owns_objects() -> None:
    owner = worker(pid=7, owned_objects=3)
    within = only(facts(node(owner)), "idle-workers-own-objects")
    assert within.severity is Severity.NOTE
    above = only(facts(node(owner, IDLE, IDLE)), "idle-workers-own-objects")
    assert above.severity is Severity.WARNING
    assert "pid 7 owns 3" in above.evidence


def test_idle_workers_that_ray_does_not_end() -> None:
    several = [worker(pid=pid) for pid in range(1, 7)]
    lasting = frozenset(range(1, 6))
    found = only(facts(node(*several, lasting=lasting)), "idle-workers-above-limit")
    assert found.what == "3 idle workers more than the limit do not end."
    # They end in the meantime.
    assert checks.examine(facts(node(*several, lasting=frozenset({1, 2})))) == []
    owners = [worker(pid=pid, owned_objects=1) for pid in range(1, 4)]
    given = facts(node(*owners, *several[3:], lasting=lasting))
    assert names(checks.examine(given)) == ["idle-workers-own-objects"]
    busy = facts(node(*several, lasting=frozenset({1, 2}), free_cpus=0.0))
    assert names(checks.examine(busy)) == ["idle-workers-above-limit"]


def test_an_idle_worker_that_uses_cpu_time() -> None:
    found = only(facts(node(IDLE, worker(pid=8, cpu=0.97))), "idle-workers-burn-cpu")
    assert found.evidence == "pid 8 uses 97% of a CPU"


def test_an_idle_worker_that_would_use_cpu_time_on_a_busy_machine() -> None:
    found = only(facts(node(worker(pid=8, cpu=0.03, wanted_cpu=0.99))), "idle-workers-burn-cpu")
    assert found.evidence == "pid 8 uses 3% of a CPU, and would use 99% of it"
    assert checks.examine(facts(node(worker(pid=8, cpu=0.03, wanted_cpu=0.4)))) == []


def test_idle_workers_that_hold_memory() -> None:
    found = only(facts(node(IDLE, worker(pid=9, anonymous=118 * MIB))), "idle-workers-hold-memory")
    assert found.severity is Severity.NOTE
    assert "pid 9 has 118 MiB" in found.evidence
    many = facts(node(*[worker(anonymous=90 * MIB)] * 40, machine=MemoryFacts(ray_total=16 * GIB)))
    found = only(many, "idle-workers-hold-memory")
    assert found.severity is Severity.WARNING
    assert found.remedies == (Remedy("num_workers_soft_limit", 0),)


def test_workers_for_spilling_are_not_idle_workers() -> None:
    spills = worker(title="ray::IDLE_SpillWorker", anonymous=GIB, cpu=1.0)
    assert checks.examine(facts(node(spills))) == []


def test_a_limit_that_ray_does_not_see() -> None:
    machine = MemoryFacts(ray_total=64 * GIB, limit=16 * GIB, limit_from="the cgroup /job_7")
    found = checks.examine(facts(node(IDLE, machine=machine)))
    assert set(names(found)) == {"memory-limit-unseen", "object-store-too-large"}
    unseen = next(finding for finding in found if finding.check == "memory-limit-unseen")
    assert unseen.severity is Severity.SEVERE
    assert "the cgroup /job_7 allows 16.0 GiB" in unseen.what
    # 0.95 of the limit, as a share of what Ray sees.
    assert unseen.remedies[0] == Remedy("memory_usage_threshold", 0.23)
    mended = node(
        IDLE,
        machine=machine,
        object_store=unseen.remedies[1].value,
        environment={"memory_usage_threshold": "0.23"},
    )
    assert checks.examine(facts(mended)) == []


def test_a_limit_on_a_machine_that_others_use() -> None:
    machine = MemoryFacts(
        ray_total=64 * GIB,
        ray_used=40 * GIB,
        limit=16 * GIB,
        limit_used=8 * GIB,
        limit_from="the cgroup /job_7",
    )
    shared = only(facts(node(machine=machine, object_store=4 * GIB)), "memory-limit-unseen")
    # Ray would compare what all use, 40 GiB, with 15 GiB.
    assert shared.remedies == ()
    assert "others use 32.0 GiB of the machine" in shared.evidence
    assert "--exclusive" in shared.advice
    alone = replace(machine, ray_used=11 * GIB)
    found = only(facts(node(machine=alone, object_store=4 * GIB)), "memory-limit-unseen")
    assert found.remedies == (Remedy("memory_usage_threshold", 0.23),)
    assert "nobody else" in found.advice
    # A job that nothing enforces has no cgroup that tells its use.
    slurm = MemoryFacts(ray_total=64 * GIB, ray_used=11 * GIB)
    trial = worker(title="ray::ImplicitFunc.train", anonymous=8 * GIB)
    for workers, remedies in (((trial,), 1), ((), 0)):
        given = node(*workers, machine=slurm, slurm_memory=16 * GIB, object_store=4 * GIB)
        assert len(only(facts(given), "memory-limit-unseen").remedies) == remedies


@pytest.mark.parametrize("limit", [16 * GIB, 300 * MIB])
def test_the_settings_for_a_limit_mend_it_whatever_was_set(limit: int) -> None:
    machine = MemoryFacts(ray_total=64 * GIB, limit=limit, limit_from="the cgroup /job_7")
    # Below this share nothing is killed while 2 GiB are free.
    given = {"memory_usage_threshold": "0.1", "min_memory_free_bytes": str(2 * GIB)}
    found = checks.examine(facts(node(machine=machine, environment=given, object_store=1)))
    [unseen] = found
    assert unseen.check == "memory-limit-unseen"
    assert "The monitor acts at 62.0 GiB" in unseen.evidence
    given.update((remedy.name, str(remedy.value)) for remedy in unseen.remedies)
    assert checks.examine(facts(node(machine=machine, environment=given, object_store=1))) == []


@pytest.mark.parametrize("has_rays_own", [True, False])
@pytest.mark.parametrize(
    ("total", "used", "shared", "expected"),
    [
        (64 * GIB, 44 * GIB, 32 * GIB, 6 * GIB),
        # At most 0.95 of the shared memory, where that is 10 GB or more.
        (64 * GIB, 4 * GIB, 12 * GIB, int(0.95 * 12 * GIB)),
        (64 * GIB, 4 * GIB, 64 * MIB, 10**10),
        (2048 * GIB, 4 * GIB, 1024 * GIB, 200 * 10**9),
    ],
)
def test_the_object_store_is_the_one_that_ray_would_make(
    total: int,
    used: int,
    shared: int,
    expected: int,
    has_rays_own: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    blocks = SimpleNamespace(f_bsize=4096, f_bavail=shared // 4096)
    monkeypatch.setattr(machine.os, "statvfs", lambda path: blocks)
    monkeypatch.setattr(machine.os, "fstatvfs", lambda number: blocks)
    monkeypatch.setattr(utils, "estimate_available_memory", lambda: total - used)
    if not has_rays_own:
        monkeypatch.delattr(utils, "resolve_object_store_memory", raising=False)
    seen = MemoryFacts(ray_total=total, ray_used=used)
    monkeypatch.setattr(machine, "memory_facts", lambda pid: seen)
    [node] = machine.of_machine(PlanFacts()).nodes
    assert node.object_store == expected


def test_a_slurm_job_that_nothing_enforces() -> None:
    found = checks.examine(facts(node(slurm_memory=8 * GIB)))
    assert set(names(found)) == {"memory-limit-unseen", "object-store-too-large"}
    assert all("the Slurm job" in finding.what for finding in found)
    assert {finding.severity for finding in found} == {Severity.SEVERE}


def test_swap_in_use() -> None:
    machine = MemoryFacts(ray_total=16 * GIB, swap_used=4 * GIB, swapped_memory=16 * GIB)
    assert only(facts(node(machine=machine, object_store=4 * GIB)), "swap-in-use")
    # A container on a machine that swaps, and that does not tell what the container has of it.
    machine = MemoryFacts(ray_total=16 * GIB, swap_used=4 * GIB, swapped_memory=64 * GIB)
    assert checks.examine(facts(node(machine=machine, object_store=4 * GIB))) == []


def test_a_head_that_runs_trials() -> None:
    others = node(is_head=False, name="10.0.0.6")
    found = only(facts(node(cpus=8.0), others), "head-runs-trials")
    assert found.where == "10.0.0.5"
    assert found.remedies == (Remedy("num-cpus", 0, is_start_argument=True, place=Place.HEAD),)


def test_what_the_head_will_keep() -> None:
    few = facts(plan=PlanFacts(trials=500))
    assert checks.examine(few) == []
    many = facts(plan=PlanFacts(trials=50_000))
    found = only(many, "head-keeps-records")
    assert found.severity is Severity.NOTE
    assert "those of 20,000 trials at 16 KB are 305 MiB" in found.evidence
    assert Remedy("maximum_gcs_dead_worker_cached_count", 10_000) in found.remedies
    older = only(facts(plan=PlanFacts(trials=50_000), ray_version=(2, 50)), "head-keeps-records")
    assert "maximum_gcs_dead_worker_cached_count" not in {one.name for one in older.remedies}
    # With a cap, or without task events, it is well.
    for name, value in (
        ("task_events_max_num_task_in_gcs", 10_000),
        ("task_events_report_interval_ms", 0),
    ):
        assert (
            checks.examine(facts(plan=PlanFacts(trials=50_000), system_config={name: value})) == []
        )
    grown = facts(head=HeadFacts(gcs_rss=3 * GIB, environment={}))
    assert only(grown, "head-keeps-records").severity is Severity.WARNING


def test_a_large_head_without_task_events() -> None:
    given = facts(
        head=HeadFacts(gcs_rss=3 * GIB, environment={}),
        system_config={"task_events_report_interval_ms": 0},
    )
    found = only(given, "head-keeps-records")
    assert found.what == "gcs_server keeps records of dead actors and workers."
    assert "tasks" not in f"{found.why} {found.evidence.replace('task_events_report', '')}"
    assert {remedy.name for remedy in found.remedies} == {
        "maximum_gcs_destroyed_actor_cached_count",
        "maximum_gcs_dead_worker_cached_count",
    }


def test_an_environment_that_cannot_be_read_is_named() -> None:
    head = HeadFacts(gcs_rss=60 * MIB)
    nodes = [node(environment={}), node(name="10.0.0.6")]
    unread, *_ = gather._unseen(nodes, head)
    assert unread.startswith("The environment of the raylet of 10.0.0.6, gcs_server was not read")
    read = gather._unseen([node(environment={})], HeadFacts(gcs_rss=1, environment={}))
    assert not any("environment" in sentence for sentence in read)


def test_cpu_time_counts_over_the_time_between_its_readings() -> None:
    before = gather.CpuReading(10.0, {1: ThreadTime(5.0, 1.0), 2: ThreadTime(0.0, 0.0)})
    after = gather.CpuReading(12.0, {1: ThreadTime(6.0, 1.5), 2: ThreadTime(0.5, 0.0)})
    assert after.shares_since(before) == (0.75, 0.75)
    assert after.shares_since(after) == (0.0, 0.0)


def test_a_worker_that_uses_cpu_time_for_a_moment_is_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def reading_of(pid: int) -> gather.CpuReading:
        # Worker 8 runs on, worker 9 has ended its task after a second.
        ran = now[0] if pid != 9 else min(now[0], 1.0)
        return gather.CpuReading(now[0], {pid: ThreadTime(ran, 0.0)})

    monkeypatch.setattr(gather.CpuReading, "of", reading_of)
    # Worker 10 has got a task meanwhile.
    monkeypatch.setattr(gather, "is_titled", lambda pid, title: pid != 10)
    monkeypatch.setattr(gather.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    [found] = gather._with_lasting_use_of_cpu(
        [node(worker(pid=7), *(worker(pid=pid, cpu=0.97) for pid in (8, 9, 10)))]
    )
    assert [one.pid for one in found.workers if one.is_busy] == [8]
    now[0] = 0.0
    gather._with_lasting_use_of_cpu([node(worker(pid=7))])
    assert now[0] == 0.0


@pytest.mark.parametrize(
    ("tasks", "expected"), [(1_000, None), (10_000, None), (20_000, 10_000), (-1, 10_000)]
)
def test_no_remedy_lets_the_head_keep_more(tasks: int, expected: int | None) -> None:
    given = facts(
        head=HeadFacts(gcs_rss=3 * GIB, environment={}),
        system_config={
            "task_events_max_num_task_in_gcs": tasks,
            "maximum_gcs_destroyed_actor_cached_count": 500,
            "maximum_gcs_dead_worker_cached_count": 500,
        },
    )
    found = only(given, "head-keeps-records")
    assert [remedy.value for remedy in found.remedies] == ([expected] if expected else [])
    assert bool(found.advice) == (expected is None)


def test_no_remedy_is_set_already() -> None:
    machine = MemoryFacts(ray_total=16 * GIB)
    many = node(*[worker(anonymous=90 * MIB)] * 40, machine=machine)
    [found] = checks.examine(facts(many, system_config={"num_workers_soft_limit": 0}))
    assert found.check == "idle-workers-hold-memory"
    assert found.remedies == ()


@pytest.mark.parametrize(
    ("given", "total", "names"),
    [
        # So much must be free that the threshold does not matter.
        ({"min_memory_free_bytes": "0"}, 64 * GIB, ["min_memory_free_bytes"]),
        ({"min_memory_free_bytes": "0"}, None, ["min_memory_free_bytes"]),
        ({"min_memory_free_bytes": str(GIB)}, 256 * GIB, ["min_memory_free_bytes"]),
        ({"min_memory_free_bytes": str(GIB)}, 32 * GIB, []),
        ({"min_memory_free_bytes": str(GIB)}, None, []),
        (
            {"min_memory_free_bytes": "0", "memory_usage_threshold": "0.99"},
            64 * GIB,
            ["memory_usage_threshold", "min_memory_free_bytes"],
        ),
    ],
)
def test_a_monitor_that_acts_too_late(
    given: dict[str, str], total: int | None, names: list[str]
) -> None:
    machine = MemoryFacts(ray_total=total)
    found = checks.examine(facts(node(machine=machine, environment=given)))
    assert [finding.check for finding in found] == (["memory-monitor-late"] if names else [])
    remedies = [remedy for finding in found for remedy in finding.remedies]
    assert [remedy.name for remedy in remedies] == names
    mended = {**given, **{remedy.name: str(remedy.value) for remedy in remedies}}
    assert checks.examine(facts(node(machine=machine, environment=mended))) == []


class Watched:
    """A node whose workers end, run tasks and rest, by a clock of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        #: When each worker ends; how much CPU time it uses in a second.
        self.ends: dict[int, float] = {}
        self.uses: dict[int, float] = {}
        self.free_cpus = 2.0
        monkeypatch.setattr(gather.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(gather.time, "sleep", self.sleep)
        monkeypatch.setattr(gather.CpuReading, "of", self.reading)
        monkeypatch.setattr(gather, "is_titled", lambda pid, title: self.now < self.ends[pid])

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def reading(self, pid: int) -> gather.CpuReading:
        used = self.now * self.uses.get(pid, 0.005)
        return gather.CpuReading(self.now, {1: ThreadTime(used, 0.0)})

    def findings(self, *idle: WorkerFacts, **config: object) -> list[str]:
        nodes = gather._with_lasting([node(*idle)], config, lambda: [self.free_cpus])
        return names(checks.examine(facts(*nodes, system_config=config)))


EIGHT = [worker(pid=pid) for pid in range(1, 9)]


def test_idle_workers_of_a_healthy_node_end_in_a_few_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watched = Watched(monkeypatch)
    # As measured after tasks had ended: five are left after 1.3 s, two after 3.3 s.
    watched.ends = dict(zip(range(1, 9), (1.2, 1.2, 1.2, 2.2, 2.2, 3.2, 99, 99), strict=True))
    assert watched.findings(*EIGHT) == []
    assert watched.now == pytest.approx(3.25)
    # Two are no more than the limit.
    watched.now = 0.0
    assert watched.findings(*EIGHT[:2]) == []
    assert watched.now == 0.0


def test_idle_workers_that_stay_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    watched.ends = dict.fromkeys(range(1, 9), 99.0)
    assert watched.findings(*EIGHT) == ["idle-workers-above-limit"]
    assert watched.now == 5.0
    # Those that own objects are named as such, and not waited for.
    watched.now = 0.0
    owners = [worker(pid=pid, owned_objects=1) for pid in range(1, 7)]
    assert watched.findings(*owners, *EIGHT[6:]) == ["idle-workers-own-objects"]
    assert watched.now == 0.0
    # Ray takes longer than one waits here.
    threshold: dict[str, Any] = {"idle_worker_killing_time_threshold_ms": 9_000}
    assert watched.findings(*EIGHT, **threshold) == []
    assert watched.now == 0.0


def test_workers_that_run_tasks_between_two_looks_are_not_idle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watched = Watched(monkeypatch)
    watched.ends = dict.fromkeys(range(1, 9), 99.0)
    watched.uses = dict.fromkeys(range(1, 7), 0.2)
    assert watched.findings(*EIGHT) == []
    assert watched.now < 1.0


def test_the_free_cpus_are_those_of_the_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    watched.ends = dict.fromkeys(range(1, 9), 99.0)
    watched.free_cpus = 8.0
    # Two CPUs were free when it began.
    given = [node(*EIGHT, cpus=8.0, free_cpus=2.0)]
    found = gather._with_lasting(given, {}, lambda: [watched.free_cpus])
    assert checks.examine(facts(*found)) == []
    watched.free_cpus = 0.0
    found = gather._with_lasting(given, {}, lambda: [watched.free_cpus])
    assert "8 stayed idle, 0 may" in only(facts(*found), "idle-workers-above-limit").evidence


def test_a_dashboard_beside_many_trials() -> None:
    given = facts(head=HeadFacts(has_dashboard=True), plan=PlanFacts(trials=20_000))
    assert "dashboard-on" in names(checks.examine(given))


@pytest.mark.parametrize(
    ("version", "severity"), [((2, 60), Severity.SEVERE), ((2, 55), Severity.NOTE)]
)
def test_calls_that_name_an_owner(
    version: tuple[int, int], severity: Severity, tmp_path: Path
) -> None:
    (tmp_path / "train.py").write_text(
        "import ray\n\nray.put(1)\nref = ray.put(2, _owner=keeper)\n"
    )
    (tmp_path / "broken.py").write_text("def (")
    plan = plans.plan(None, None, [str(tmp_path)])
    found = only(facts(plan=plan, ray_version=version), "owner-removed")
    assert found.severity is severity
    assert found.evidence == f"{tmp_path / 'train.py'}:4"


@pytest.mark.parametrize(
    ("free", "expected"),
    [(50_000, Severity.SEVERE), (100_000, Severity.WARNING), (10_000_000, None), (None, None)],
)
def test_inodes_for_the_planned_trials(free: int | None, expected: Severity | None) -> None:
    plan = PlanFacts(trials=10_000, storage="/data", free_inodes=free)
    config: dict[str, object] = {"task_events_report_interval_ms": 0}
    found = checks.examine(facts(plan=plan, system_config=config))
    assert [finding.severity for finding in found] == ([] if expected is None else [expected])


def test_settings_and_versions_that_are_not_known() -> None:
    given = facts(unknown_settings=("no_such_thing",), ray_version=(2, 99))
    assert names(checks.examine(given)) == ["setting-unknown", "ray-version-unknown"]


SETTINGS = (
    Remedy("kill_idle_workers_interval_ms", 200),
    Remedy("task_events_max_num_task_in_gcs", 10_000),
    Remedy("worker_killing_policy_by_group", False),
    Remedy("num-cpus", 0, is_start_argument=True, place=Place.HEAD),
    Remedy("object-store-memory", GIB, is_start_argument=True, place=Place.NODE),
)


def fix(*remedies: Remedy) -> Fix:
    return Fix([Finding("check", Severity.NOTE, "", "", "", remedies)])


def test_variables_of_the_head_are_for_the_head() -> None:
    text = fix(*SETTINGS).text("env")
    head, nodes = text.split("# On every node")
    assert "export RAY_task_events_max_num_task_in_gcs=10000" in head
    assert "export RAY_kill_idle_workers_interval_ms=200" in nodes
    assert "export RAY_worker_killing_policy_by_group=0" in nodes
    assert "ray start --head --num-cpus=0" in text


def test_a_system_config_is_for_the_head_only() -> None:
    text = fix(*SETTINGS).text("system-config")
    [head] = [line for line in text.splitlines() if line.startswith("ray start --head")]
    assert json.loads(head.split("'")[1]) == {
        "kill_idle_workers_interval_ms": 200,
        "task_events_max_num_task_in_gcs": 10_000,
        "worker_killing_policy_by_group": False,
    }
    assert head.endswith("--num-cpus=0")
    assert f"\nray start --object-store-memory={GIB}" in text


def test_kuberay_gets_yaml_with_a_quoted_system_config() -> None:
    found = yaml.safe_load(fix(*SETTINGS).text("kuberay"))["spec"]
    head = found["headGroupSpec"]["rayStartParams"]
    assert head["num-cpus"] == "0"
    # KubeRay writes it into a shell command as it is.
    assert json.loads(head["system-config"].strip("'"))["kill_idle_workers_interval_ms"] == 200
    [workers] = found["workerGroupSpecs"]
    assert workers["rayStartParams"] == {"object-store-memory": str(GIB)}


def test_slurm_gets_lines_of_a_batch_script() -> None:
    text = fix(*SETTINGS).text("slurm")
    [head] = [line for line in text.splitlines() if "--head" in line]
    assert "env RAY_task_events_max_num_task_in_gcs=10000 ray start --head" in head
    assert "export RAY_kill_idle_workers_interval_ms=200" in text
    assert f"--object-store-memory={GIB}" in text.splitlines()[-1]


def test_a_setting_of_the_head_is_mended_at_the_head() -> None:
    config: dict[str, object] = {
        "memory_monitor_refresh_ms": 0,
        "task_events_max_num_task_in_gcs": -1,
    }
    variable = {"kill_idle_workers_interval_ms": "0"}
    found = checks.examine(facts(node(environment=variable), system_config=config))
    said = {str(remedy) for finding in found for remedy in finding.remedies}
    at_head = "--system-config at the head)"
    assert said >= {
        f"memory_monitor_refresh_ms=250 (change it in, or remove it from, {at_head}",
        # Without it Ray's default holds, which is not what is advised.
        f"task_events_max_num_task_in_gcs=10000 (change it in {at_head}",
        "RAY_kill_idle_workers_interval_ms=200",
    }
    kinds = {one["name"]: one["kind"] for each in found for one in each.as_dict()["remedies"]}
    assert kinds["memory_monitor_refresh_ms"] == "system-config"
    assert kinds["kill_idle_workers_interval_ms"] == "setting"
    for form in ("env", "slurm"):
        text = Fix(found).text(form)
        [head] = [line for line in text.splitlines() if "ray start --head" in line]
        assert json.loads(head.split("'")[1]) == {
            "memory_monitor_refresh_ms": 250,
            "task_events_max_num_task_in_gcs": 10_000,
        }
        assert "RAY_memory_monitor_refresh_ms" not in text
        assert "RAY_task_events_max_num_task_in_gcs" not in text
        assert "export RAY_kill_idle_workers_interval_ms=200" in text
        assert "wins over variables" in text


@pytest.mark.parametrize("form", FORMS)
def test_nothing_to_set(form: str) -> None:
    assert fix().text(form) == "# Nothing to set."


def test_the_smaller_of_two_values_holds() -> None:
    low, high = (Remedy("memory_usage_threshold", share) for share in (0.5, 0.95))
    assert "RAY_memory_usage_threshold=0.5\n" in fix(high, low).text("env") + "\n"
