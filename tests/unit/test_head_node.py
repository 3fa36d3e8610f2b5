"""The processes of a head node: which they are, and what is advised about them."""

from __future__ import annotations

import os
import subprocess
import sys

import psutil
import pytest

from ray_tune_memguard.cluster import head_node
from ray_tune_memguard.system import process, ray_processes
from ray_tune_memguard.system.process import memory_of, thread_times
from ray_tune_memguard.system.ray_processes import RayProcesses

SESSION = "session_2026-11-26_10-00-00_000000_1"
COMMANDS = {
    1: ["/ray/core/src/ray/gcs/gcs_server", f"--session-name={SESSION}"],
    2: ["/ray/core/src/ray/raylet/raylet", f"--session-name={SESSION}", "--node_id=other"],
    3: ["/ray/core/src/ray/raylet/raylet", f"--session-name={SESSION}", "--node_id=head"],
    4: ["python", "-u", "/ray/autoscaler/_private/monitor.py", f"--logs-dir=/tmp/ray/{SESSION}"],
    5: ["python", "/ray/dashboard/dashboard.py", f"--session-dir=/tmp/ray/{SESSION}"],
    6: ["python", "-u", "/ray/_private/log_monitor.py", f"--session-dir=/tmp/ray/{SESSION}"],
    7: ["/ray/core/src/ray/gcs/gcs_server", "--session-name=session_of_another"],
    8: ["vim", f"/tmp/ray/{SESSION}/logs/raylet.out"],
    31: ["ray::DashboardAgent"],
    32: ["ray::RuntimeEnvAgent"],
    33: ["ray::IDLE"],
}


class Process:
    def __init__(self, pid: int) -> None:
        self.pid = pid

    def ppid(self) -> int:
        return self.pid // 10

    def children(self) -> list[Process]:
        return [Process(pid) for pid in COMMANDS if pid // 10 == self.pid]

    def is_running(self) -> bool:
        return self.pid in COMMANDS


@pytest.fixture(autouse=True)
def processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "pids", lambda: list(COMMANDS))
    monkeypatch.setattr(psutil, "Process", Process)
    monkeypatch.setattr(ray_processes, "_command", lambda pid: COMMANDS[pid])
    monkeypatch.setattr(
        ray_processes, "memory_of", lambda pid: ray_processes.ProcessMemory(100 * pid, pid)
    )


def test_the_processes_of_a_head() -> None:
    found = {
        name: memory.anonymous for name, memory in RayProcesses(SESSION, "head").memory().items()
    }
    assert found == {
        "gcs_server": 1,
        "raylet": 3,
        "autoscaler monitor": 4,
        "dashboard": 5,
        "log monitor": 6,
        "dashboard agent": 31,
        "runtime env agent": 32,
    }


def test_workers_and_agents_count_together() -> None:
    found = RayProcesses(SESSION, "head").rss()
    assert found == {"gcs_server": 100, "raylet": 300, "workers": 3100 + 3200 + 3300}


def test_one_that_has_ended_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    processes = RayProcesses(SESSION, "head")
    assert "dashboard" in processes.memory()
    monkeypatch.delitem(COMMANDS, 5)
    assert "dashboard" not in processes.memory()


def test_without_a_session_there_is_nothing() -> None:
    assert RayProcesses(None).memory() == {}


def test_the_advice_has_the_figure_and_fits_the_settings() -> None:
    text = head_node.advice("gcs_server", 16_000, {})
    assert "15.6 KiB a trial" in text
    assert "RAY_task_events_report_interval_ms=0" in text
    assert "reuse_actors" not in text
    assert "reuse_actors=True" in head_node.advice("gcs_server", 60_000, {})
    followed = head_node.advice("gcs_server", 60_000, {"task_events_report_interval_ms": 0})
    assert "task_events" not in followed
    assert "RAY_maximum_gcs_destroyed_actor_cached_count=10000" in followed
    assert "include_dashboard=False" in head_node.advice("dashboard", 5000, {})
    # `ray.init(log_to_driver=False)` decides only whether the driver prints.
    assert "ray start --include-log-monitor=false" in head_node.advice("log monitor", 5000, {})


def test_what_was_advised_and_done_is_not_advised_again() -> None:
    capped = {"task_events_max_num_task_in_gcs": 1000}
    early = head_node.advice("gcs_server", 8192, capped, trials=100)
    assert "It keeps the events of every task" in early
    late = head_node.advice("gcs_server", 8192, capped, trials=400)
    assert late.startswith(
        "It grows by 8.0 KiB a trial although it keeps the events of no more than 1,000 tasks. "
        "Dead actors take a part"
    )


def test_who_reuses_actors_is_not_told_to() -> None:
    for name in ("gcs_server", "raylet", "log monitor"):
        assert "reuse_actors=True" in head_node.advice(name, 60_000, {})
        advised = head_node.advice(name, 60_000, {}, reuses_actors=True)
        assert "reuse_actors" not in advised
        assert advised.endswith(".")
        assert "(" not in advised or ")" in advised


def test_this_process_has_memory_and_takes_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    memory = memory_of(os.getpid())
    assert memory is not None
    assert memory.rss == pytest.approx(psutil.Process().memory_info().rss, rel=0.05)
    assert 0 < memory.anonymous < memory.rss
    assert sum(time.ran for time in thread_times(os.getpid()).values()) > 0
    assert memory_of(2**22 - 1) is None
    assert thread_times(2**22 - 1) == {}


@pytest.mark.skipif(sys.platform != "linux", reason="the processes read /proc")
def test_a_process_that_is_ending_has_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    # It ends between the opening of the file and the reading.
    with open(f"/proc/{child.pid}/statm", "rb") as file:
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert memory_of(child.pid) is None  # Its parent does not know yet.
        child.communicate()
        monkeypatch.setattr(process, "open", lambda *_: file, raising=False)
        assert memory_of(child.pid) is None
