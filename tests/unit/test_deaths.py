"""The record of a death: who used the memory, what to do, and how it is read again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError, RayTaskError

from ray_tune_memguard import TrialDeathReporter, read_deaths
from ray_tune_memguard.cluster import gcs
from ray_tune_memguard.cluster.gcs import ActorInfo, NodeInfo
from ray_tune_memguard.cluster.probe import Answer
from ray_tune_memguard.cluster.trial_memory import TrialUse
from ray_tune_memguard.diagnostics.deaths import driver, evidence
from ray_tune_memguard.diagnostics.deaths.advice import advise
from ray_tune_memguard.diagnostics.deaths.evidence import NodeEvidence, Place
from ray_tune_memguard.diagnostics.deaths.investigation import Inquiry, Investigation
from ray_tune_memguard.diagnostics.deaths.record import Death, MemoryUser
from ray_tune_memguard.diagnostics.deaths.report import Sizes, make_record, summarize
from ray_tune_memguard.diagnostics.deaths.verdict import DeathFacts, judge
from ray_tune_memguard.report.driver_record import BEGIN, END, DriverRecord, interrupted_run
from ray_tune_memguard.report.records import RecordFile
from ray_tune_memguard.report.series import RssPoint
from ray_tune_memguard.report.series_file import SeriesFile
from ray_tune_memguard.system.kernel_log import KernelEvidence, KernelWatch, OomKill

GIB = 2**30
VICTIM, HOG = 101, 102
TEXT = (
    "Task was killed due to the node running low on memory.\nMemory on the node (IP: 1, ID: 2) "
    "where the lease (lease ID: 3, name=A, pid=101, memory used=0.50GB) was running was 9.00GB / "
    "10.00GB (0.9), which exceeds the memory usage threshold of 0.9. Top 10 memory users:\n"
    "PID\tMEM(GB)\tCOMMAND\n102\t6.00\tray::ImplicitFunc.train\n101\t0.50\tray::ImplicitFunc\n"
    "7\t0.40\tpython driver.py\nRefer to the documentation"
)
TRIALS = {VICTIM: ("v", "train_v"), HOG: ("h", "train_h")}
NEW = Death(1.0, "v", "train_v", "unknown", "unknown")


def record(facts: DeathFacts, sizes: Sizes | None = None) -> Death:
    verdict = judge(facts)
    assert verdict is not None
    return make_record(NEW, facts, verdict, sizes or Sizes(), TRIALS)


def test_the_victim_is_not_the_culprit() -> None:
    death = record(DeathFacts(TEXT, pid=VICTIM, actor=ActorInfo("a", VICTIM, "n", "w", "DEAD")))
    assert (death.pid, death.node_id, death.size_bytes) == (VICTIM, "n", GIB // 2)
    assert death.culprit == MemoryUser(HOG, 6 * GIB, "train_h", "h")
    assert not death.is_culprit
    assert [user.name for user in death.largest] == ["train_h", "train_v", "python driver.py"]
    assert death.summary.startswith(
        "Trial train_v was killed by Ray's memory monitor (certain: Ray's error says "
    )
    assert "It used 512 MiB." in death.summary
    assert "Most on its node was used by trial train_h (process 102): 6.0 GiB." in death.summary
    assert "The limit is 9.0 GiB." in death.summary
    # 2.5 GiB are used by others.
    assert death.advice == (
        "One trial of 6.0 GiB, with a tenth to spare, does not fit into the 6.5 GiB that are left "
        "for trials: make it smaller, or use a node with more memory."
    )


def test_growth_is_named_if_it_was_measured() -> None:
    sizes = Sizes(
        MemoryUser(VICTIM, GIB // 3, "v", "v"),
        (MemoryUser(HOG, 5 * GIB, "train_h", "h", growth=0.3 * GIB),),
    )
    death = record(DeathFacts(TEXT, pid=VICTIM), sizes)
    assert death.culprit is not None
    assert death.culprit.growth == 0.3 * GIB
    assert "6.0 GiB, growing by 307 MiB/s." in death.summary


def test_of_a_cgroup_its_trials_count() -> None:
    kill = OomKill(1.0, VICTIM, "ray::Im", GIB, "/job", 2 * GIB)
    facts = DeathFacts("…", pid=VICTIM, kernel=KernelEvidence((kill,)))
    sizes = Sizes(processes=(MemoryUser(9, 50 * GIB, "database"),), limit_bytes=99 * GIB)
    death = record(facts, sizes)
    assert (death.size_bytes, death.size_source) == (GIB, "the kernel's log")
    assert death.is_culprit
    assert (death.used_bytes, death.limit_bytes) == (2 * GIB, 2 * GIB)
    assert "at the limit of cgroup /job" in death.summary


def test_a_sigkill_has_no_culprit() -> None:
    kernel = KernelEvidence(counter_rise=0)
    text = "Worker exit detail: … End of file."
    facts = DeathFacts(text, pid=VICTIM, kernel=kernel, stderr_tail="")
    death = record(facts, Sizes(processes=(MemoryUser(9, GIB, "database"),)))
    assert death.cause == "sigkill_or_exit"
    assert death.culprit is None
    assert "OOM" not in death.summary.partition("kernel's log has no")[0]


@pytest.mark.parametrize(
    ("count", "each", "limit", "used", "expected"),
    [
        (8, 3.25, 23.5, 26.0, "8 such trials of 3.2 GiB need 26.0 GiB of 23.5 GiB: run at most 6"),
        (2, 1.0, 9.0, 9.0, "2 such trials of 1.0 GiB need 2.0 GiB of 2.0 GiB: run at most 1 "),
        (1, 1.0, 9.0, 9.0, "One trial of 1.0 GiB, with a tenth to spare, does not fit into the 1"),
        (1, 2.0, 9.0, 9.5, "One trial of 2.0 GiB does not fit into the 1.5 GiB that are left"),
        (2, 1.0, 9.0, 6.0, "2 such trials of 1.0 GiB would have fitted into 5.0 GiB"),
        (0, 1.0, 9.0, 6.0, "Run fewer trials at once"),
        (
            1,
            0.1,
            5.5,
            5.6,
            "Trials use 102 MiB of the 5.6 GiB in use: the rest are other processes",
        ),
    ],
)
def test_the_advice_has_numbers(
    count: int, each: float, limit: float, used: float, expected: str
) -> None:
    death = replace(
        NEW,
        cause="ray_memory_monitor",
        limit_bytes=int(limit * GIB),
        used_bytes=int(used * GIB),
    )
    trials = [MemoryUser(n, int(each * GIB), str(n), str(n)) for n in range(count)]
    assert advise(death, trials).startswith(expected)


def killed_by_the_kernel(sizes: Sizes) -> Death:
    """The record of a kill for which the whole machine was full, as its log tells."""
    kill = OomKill(1.0, VICTIM, "ray::Im", 7 * GIB)
    return record(DeathFacts("…", pid=VICTIM, kernel=KernelEvidence((kill,))), sizes)


def test_the_machine_was_full_when_the_kernel_killed() -> None:
    # What is measured is what the kill has left.
    left = (MemoryUser(HOG, 7 * GIB, "ray::ImplicitFunc.train"),)
    death = killed_by_the_kernel(Sizes(processes=left, used_bytes=9 * GIB, limit_bytes=16 * GIB))
    assert (death.used_bytes, death.limit_bytes) == (16 * GIB, 16 * GIB)
    assert death.advice.startswith(
        "2 such trials of 7.0 GiB need 14.0 GiB of 14.0 GiB: run at most 1 at once"
    )


def test_the_advice_counts_all_trials_of_the_node() -> None:
    # Ray and the list of processes name the ten largest processes.
    trials = tuple(MemoryUser(n, GIB, str(n), str(n)) for n in range(1000, 1019))
    text = TEXT.partition("102\t")[0].replace("10.00GB", "22.00GB").replace("9.00GB", "20.00GB")
    listed = "".join(f"{user.pid}\t1.00\tray::ImplicitFunc.train\n" for user in trials[:10])
    names = {user.pid: (user.trial_id, user.name) for user in trials}
    facts = DeathFacts(text + listed, pid=VICTIM)
    verdict = judge(facts)
    assert verdict is not None
    death = make_record(NEW, facts, verdict, Sizes(trials=trials), names)
    assert len(death.largest) == 10
    # 0.5 GiB are those of the victim, and 0.5 GiB of others.
    assert death.advice.startswith("20 such trials of 1.0 GiB need 20.0 GiB of 19.3 GiB: run at ")


def test_who_used_most_is_not_known_without_the_size_of_the_victim() -> None:
    kernel = KernelEvidence(cgroup_rise=1, absent=("kernel log (…)",))
    facts = DeathFacts("…", pid=VICTIM, kernel=kernel)
    death = record(facts, Sizes(processes=(MemoryUser(9, GIB, "database"),)))
    assert (death.cause, death.size_bytes) == ("kernel_oom", None)
    assert death.culprit is None


class FakeRun:
    """A run whose trials were measured: by trial id, process, node and bytes."""

    capabilities: tuple[str, ...] = ()

    def __init__(self, **measured: tuple[int, str, int]) -> None:
        self._uses = {
            trial_id: TrialUse(trial_id, node, pid, size, size, size, size, 0.0, 1, 0.0, 0.0)
            for trial_id, (pid, node, size) in measured.items()
        }

    def trial_memory(self) -> FakeRun:
        return self

    def of(self, trial_id: str) -> TrialUse | None:
        return self._uses.get(trial_id)

    def running(self, node: str | None) -> list[TrialUse]:
        return [use for use in self._uses.values() if node in (None, use.node)]

    def trials_by_pid(self, node: str | None) -> dict[int, tuple[str, str]]:
        return {use.pid: (use.trial_id, f"train_{use.trial_id}") for use in self.running(node)}


def investigation(
    run: FakeRun, monkeypatch: pytest.MonkeyPatch, watch: KernelWatch | None = None
) -> Any:
    place = Place("own", "192.0.2.2", "", None)
    monkeypatch.setattr(Place, "of_driver", lambda: place)
    as_handle: Any = run
    return Investigation(as_handle, watch or KernelWatch(Path("/nowhere")), None)


class FakeTrial:
    def __init__(self, trial_id: str) -> None:
        self.trial_id = trial_id

    def __str__(self) -> str:
        return f"train_{self.trial_id}"


def test_a_trial_that_is_refused_memory_may_be_the_largest_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = FakeRun(v=(VICTIM, "far", 4 * GIB), h=(HOG, "far", GIB), x=(HOG, "other", 9 * GIB))
    error = RayTaskError("train", "Traceback\nMemoryError", MemoryError())
    inquiry = investigation(run, monkeypatch).investigate(FakeTrial("v"), error, None)
    death = inquiry.death
    assert (death.cause, death.pid, death.size_bytes) == ("memory_error", VICTIM, 4 * GIB)
    assert death.is_culprit
    # And only what is on its node.
    assert [user.name for user in death.largest] == ["train_v", "train_h"]


def test_the_kernel_kills_two_trials_before_the_run_is_told_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vmstat = tmp_path / "proc" / "vmstat"
    vmstat.parent.mkdir()
    vmstat.write_text("oom_kill 0\n")
    huge = 2**50  # Larger than all processes of this machine.
    run = FakeRun(v=(VICTIM, "own", huge), h=(HOG, "own", huge))
    asked = investigation(run, monkeypatch, KernelWatch(tmp_path))
    vmstat.write_text("oom_kill 2\n")
    for trial_id, pid in (("v", VICTIM), ("h", HOG)):
        text = f"It died.\n\tpid: {pid}\n\tip: 192.0.2.2\nWorker exit detail: End of file."
        died = RayActorError(error_msg=text)
        death = asked.investigate(FakeTrial(trial_id), died, None).death
        assert (death.cause, death.certainty) == ("kernel_oom", "likely")


def test_what_is_written_is_read(tmp_path: Path) -> None:
    user = MemoryUser(3, 4, "five", "six", 7.0)
    later = replace(
        NEW, time=2.0, culprit=user, largest=(user, user), evidence=("a",), absent=("b",)
    )
    RecordFile(tmp_path / ".memguard" / "deaths-2.jsonl").add(NEW)
    RecordFile(tmp_path / ".memguard" / "deaths-1.jsonl").add(later)
    assert read_deaths(tmp_path) == [NEW, later]
    (tmp_path / "empty").mkdir()
    assert read_deaths(tmp_path / "empty") == []
    with pytest.raises(FileNotFoundError, match="no experiment at"):
        read_deaths(tmp_path / "nothing")


def inquiry(answer: Answer[NodeEvidence] | None) -> Inquiry:
    """Of a trial on another node, whose process is gone without a word."""
    facts = DeathFacts(
        "Worker exit detail: … End of file.", pid=VICTIM, absent=(evidence.OTHER_KERNEL,)
    )
    return Inquiry(record(facts), facts, Sizes(), TRIALS, answer, time.monotonic() + 60)


def test_another_node_is_asked_and_not_waited_for() -> None:
    answer: Answer[NodeEvidence] = Answer("n")
    asked = inquiry(answer)
    assert not asked.is_over()
    kill = OomKill(1.0, VICTIM, "ray::Im", GIB)
    answer.resolve(NodeEvidence(KernelEvidence((kill,)), ""))
    assert asked.is_over()
    death = asked.conclusion()
    assert (death.cause, death.certainty, death.absent) == ("kernel_oom", "certain", ())


def test_a_node_that_does_not_answer_is_named() -> None:
    asked = inquiry(Answer("n"))
    asked.until = 0.0
    assert asked.is_over()
    death = asked.conclusion()
    assert (death.cause, death.certainty) == ("unknown", "unknown")
    assert death.absent == (evidence.OTHER_KERNEL, "its node (Node n has not answered yet.)")


def test_a_node_that_ray_counts_as_dead_a_moment_later(monkeypatch: pytest.MonkeyPatch) -> None:
    living = NodeInfo("n", True, "192.0.2.9", 1, {})
    facts = DeathFacts("Worker exit detail: …", pid=VICTIM, node=living)
    assert record(facts).cause == "unknown"
    asked = Inquiry(record(facts), facts, Sizes(), TRIALS, None, time.monotonic() + 60)
    assert not asked.is_over()
    asked.until = 0.0
    monkeypatch.setattr(gcs, "nodes", lambda: [living])
    assert asked.conclusion() == asked.death
    dead = replace(living, is_alive=False, death_message="health check failed")
    monkeypatch.setattr(gcs, "nodes", lambda: [dead])
    death = asked.conclusion()
    assert (death.cause, death.certainty) == ("node_died", "certain")
    assert "health check failed" in death.evidence[0]


@pytest.mark.parametrize(("address", "is_here"), [("192.0.2.2", True), ("192.0.2.9", False)])
def test_without_the_control_service_the_error_tells_process_and_machine(
    address: str, is_here: bool, tmp_path: Path
) -> None:
    died = RayActorError(error_msg="It died.\n\tpid: 25136\n\tip: 192.0.2.2\nEnd of file.")
    place = Place("", address, "", None)
    facts = evidence.facts_of(died, None, place, KernelWatch(tmp_path), asks_ray=False)
    assert facts.pid == 25136
    assert (facts.kernel is not None) == is_here
    assert (evidence.OTHER_KERNEL in facts.absent) != is_here


def test_the_line_at_the_end() -> None:
    line = summarize({"crash": 1, "kernel_oom": 3}, Path("/results/sweep/.memguard/deaths-1.jsonl"))
    assert line == (
        "Deaths of trials in this run: 4 (3 by the kernel's OOM killer, 1 by a crash). "
        "ray_tune_memguard.read_deaths('/results/sweep') has them."
    )


@pytest.fixture
def ended() -> DriverRecord:
    """A driver that was killed on this machine, as it recorded its begin."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    os.kill(child.pid, signal.SIGKILL)
    child.communicate()
    return replace(DriverRecord.now(BEGIN, 100.0), pid=child.pid)


def test_the_last_driver_was_killed_by_the_kernel(
    ended: DriverRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "driver-2026-11-26_10-00-00.jsonl"
    RecordFile(file).add(ended)
    points = [RssPoint(n, 100 * n, 100 * n, 0, n * GIB) for n in (1, 2)]
    SeriesFile(tmp_path / "rss-2026-11-26_10-00-00.csv", RssPoint).add(points)
    assert interrupted_run(tmp_path, None) == (ended, file)
    assert interrupted_run(tmp_path, file) is None
    kills = [OomKill(99.0, 1, "x", 1), OomKill(101.0, ended.pid, "python", 21 * GIB)]
    monkeypatch.setattr(driver, "kills_of_log", lambda: tuple(kills))
    monkeypatch.setattr(driver, "sees_machine_pids", lambda: True)
    assert driver.what_ended_it(ended, file) == (
        f"The kernel's OOM killer killed the driver of the last run (process {ended.pid}), when it "
        "used 21.0 GiB (certain: the kernel's log). Its last report: trial#200  RSS 2048 MiB  "
        "(+10485.8 KiB/trial over the last 100)."
    )
    # Another kill, another time, another boot, or a run that recorded its end.
    assert driver.what_ended_it(replace(ended, pid=2), file) is None
    assert driver.what_ended_it(replace(ended, kernel_time_s=103.0), file) is None
    assert driver.what_ended_it(replace(ended, boot_id="another"), file) is None
    RecordFile(file).add(replace(ended, event=END))
    assert interrupted_run(tmp_path, None) is None


def test_without_the_log_only_the_counter_tells(
    ended: DriverRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> tuple[OomKill, ...]:
        raise driver.KernelLogError("/dev/kmsg: Operation not permitted")

    monkeypatch.setattr(driver, "kills_of_log", refuse)
    monkeypatch.setattr(driver, "sees_machine_pids", lambda: True)
    monkeypatch.setattr(driver, "oom_kills_of_machine", lambda: 3)
    assert driver.what_ended_it(replace(ended, oom_kills=3), tmp_path / "driver-1.jsonl") is None
    sentence = driver.what_ended_it(replace(ended, oom_kills=2), tmp_path / "driver-1.jsonl")
    assert "cannot be told (/dev/kmsg: Operation not permitted)" in (sentence or "")


def test_in_a_container_the_log_does_not_name_the_driver(
    ended: DriverRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A process of another container has the number there that the driver had here.
    kill = OomKill(101.0, ended.pid, "python", GIB)
    monkeypatch.setattr(driver, "kills_of_log", lambda: (kill,))
    monkeypatch.setattr(driver, "sees_machine_pids", lambda: False)
    monkeypatch.setattr(driver, "oom_kills_of_machine", lambda: 3)
    file = tmp_path / "driver-1.jsonl"
    assert driver.what_ended_it(replace(ended, oom_kills=3), file) is None
    sentence = driver.what_ended_it(replace(ended, oom_kills=2), file) or ""
    assert "certain" not in sentence
    assert "cannot be told (the kernel's log has other process numbers" in sentence


def test_a_damaged_record_of_the_last_driver_does_not_turn_reports_off(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "ray_tune_memguard")
    for number, line in enumerate(('{"event": "begin"}', '{"event": "begin", "time": "x"}')):
        (tmp_path / "driver-1.jsonl").write_text(f"{line}\n")
        run: Any = SimpleNamespace(
            claim=lambda job, owner: True,
            report_path=lambda trials, kind, suffix: tmp_path / f"{kind}-2{suffix}",
            observe_failures=lambda observer: None,
            node_probes=lambda user: None,
        )
        reporter = TrialDeathReporter()
        reporter.begin_run(run)
        reporter.on_step_begin(0, [])
        assert reporter.active
        assert caplog.text.count("The record of the last run's driver cannot be read") == number + 1
