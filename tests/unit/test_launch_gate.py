"""What the callback makes of its options, of Ray's monitor and of the memory of a run."""

from __future__ import annotations

import logging
from collections.abc import Collection
from types import SimpleNamespace
from typing import Any

import pytest

from ray_tune_memguard import LaunchGate
from ray_tune_memguard.callbacks import launch_gate as module
from ray_tune_memguard.gate.interfaces import TrialUsage
from ray_tune_memguard.system.node_memory import (
    MACHINE,
    MemoryLimits,
    MonitorSettings,
    NodeMemory,
)

TOTAL = 1000


class FakeRun:
    """A run on one node, whose memory the test sets."""

    def __init__(self, monitor: MonitorSettings | None = None) -> None:
        self.monitor = monitor or MonitorSettings()
        self.used = 100
        self.cgroup: NodeMemory | None = None
        self.launches = SimpleNamespace(gate=None, live=lambda: self.live)
        self.live: list[tuple[str | None, str]] = []
        self.usages: dict[str, TrialUsage] = {}
        self.can_pause = True
        self.paused: list[Collection[str]] = []
        self.ended = 0
        self.released = 0
        self.is_first = True

    # Of the run's handle.

    def claim(self, job: str, owner: object) -> bool:
        return self.is_first

    def memory_of_nodes(self, user: object) -> Any:
        return self.monitor, self

    def release_nodes(self, user: object) -> None:
        self.released += 1

    def watch_launches(self, nodes: object) -> Any:
        return self.launches

    def open_gate(self) -> None:
        self.launches.gate = None

    def gate_memory(self, own_node: str) -> Any:
        return self

    def can_pause_trials(self) -> bool:
        return self.can_pause

    def pause_newest(self, trial_ids: Collection[str]) -> str | None:
        self.paused.append(sorted(trial_ids))
        return "newest"

    def end_resumably(self) -> bool:
        self.ended += 1
        return True

    def report_path(self, trials: object, kind: str, suffix: str) -> None:
        return None

    # The memory of nodes and trials.

    own_node = "node"

    def nodes(self) -> list[str]:
        return ["node"]

    def limits_of_own_node(self) -> MemoryLimits:
        return MemoryLimits(NodeMemory(self.used, TOTAL, MACHINE), self.cgroup)

    def limits(self, node: str) -> list[NodeMemory]:
        return self.limits_of_own_node().known()

    def running(self) -> dict[str, TrialUsage]:
        return self.usages

    def finished_peaks(self) -> list[int]:
        return []


def begin(run: FakeRun, **options: Any) -> LaunchGate:
    gate = LaunchGate(**options)
    as_handle: Any = run
    gate.begin_run(as_handle)
    return gate


def rules(run: FakeRun) -> Any:
    return run.launches.gate.rules


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "ray_tune_memguard")
    return caplog


@pytest.mark.parametrize(
    ("monitor", "options", "pause", "resume"),
    [
        (MonitorSettings(), {}, 0.9, 0.8),
        (MonitorSettings(threshold=0.7), {}, 0.65, 0.55),
        (MonitorSettings(min_free_bytes=20), {}, 0.93, 0.83),
        (MonitorSettings(threshold=0.06), {}, 0.03, 0.015),
        (MonitorSettings(), {"pause": 0.5}, 0.5, 0.4),
        (MonitorSettings(), {"pause": 0.5, "resume": 0.45}, 0.5, 0.45),
        (MonitorSettings(), {"resume": 0.85}, 0.9, 0.85),
        (MonitorSettings(), {"resume": 0.95}, 0.9, 0.8),
        (MonitorSettings(), {"stop_at": 0.8}, 0.8, 0.7),
        (MonitorSettings(), {"stop_at": 0.93}, 0.9, 0.8),
        (MonitorSettings(is_on=False), {"pause": 0.6}, 0.6, 0.5),
        (MonitorSettings(is_on=False), {"stop_at": 0.9}, 0.9, 0.8),
    ],
)
def test_thresholds(
    monitor: MonitorSettings, options: dict[str, Any], pause: float, resume: float
) -> None:
    run = FakeRun(monitor)
    begin(run, **options)
    assert rules(run).pause == pytest.approx(pause)
    assert rules(run).resume == pytest.approx(resume)


def test_a_resume_that_does_not_fit_is_named(said: pytest.LogCaptureFixture) -> None:
    begin(FakeRun(), resume=0.95)
    assert "resume=0.95 is not less than pause, which is 0.90 here" in said.text


def test_the_gate_is_off_with_the_monitor(said: pytest.LogCaptureFixture) -> None:
    run = FakeRun(MonitorSettings(is_on=False))
    begin(run)
    assert run.launches.gate is None
    assert "LaunchGate is off because Ray's memory monitor is off" in said.text
    assert "Memory limit: " in said.text


def test_the_start_says_which_limit_counts(said: pytest.LogCaptureFixture) -> None:
    run = FakeRun()
    run.cgroup = NodeMemory(50, 500, "/sys/fs/cgroup/job_7")
    begin(run)
    assert "cgroup /sys/fs/cgroup/job_7" in said.messages[0]
    assert "the kernel kills before Ray's monitor acts" in said.messages[1]


def test_a_second_gate_is_disabled(said: pytest.LogCaptureFixture) -> None:
    run = FakeRun()
    run.is_first = False
    begin(run)
    assert run.launches.gate is None
    assert "Another LaunchGate is already active" in said.text


def test_the_run_is_stopped_once(
    said: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_EVERY_S", 0.0)
    run = FakeRun()
    gate = begin(run, stop_at=0.93)
    gate.on_step_end(1, [])
    assert not run.ended
    run.used = 940
    gate.on_step_end(2, [])
    gate.on_step_end(3, [])
    assert run.ended == 1
    assert "LaunchGate: the run ends and can be resumed: 940 B of 1000 B" in said.text
    assert "not below 93% (stop_at)" in said.text
    run.live = [("a", "node")]
    assert not run.launches.gate.admits("node")
    gate.on_experiment_end([])
    assert gate.number_by_action() == {"stop": 1, "pause": 1}
    assert run.released == 1


def test_a_pause_that_the_end_of_the_run_closes_is_recorded_and_not_said(
    said: pytest.LogCaptureFixture,
) -> None:
    run = FakeRun()
    gate = begin(run)
    run.used, run.live = 990, [("a", "node")]
    assert not run.launches.gate.admits("node")
    gate.on_experiment_end([])
    assert gate.number_by_action() == {"pause": 1, "resume": 1}
    assert "trials start again" not in said.text
    assert run.released == 1


def test_the_newest_trial_is_shed_but_not_the_last_one(
    said: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_EVERY_S", 0.0)
    run = FakeRun()
    gate = begin(run, shed=True)
    run.live = [("a", "node")]
    run.used = 950
    gate.on_step_end(1, [])
    assert not run.paused
    run.live = [("a", "node"), ("b", "node")]
    # Halfway between 0.90 and 0.95.
    run.used = 920
    gate.on_step_end(2, [])
    assert not run.paused
    run.used = 930
    gate.on_step_end(3, [])
    gate.on_step_end(4, [])
    assert run.paused == [["a", "b"]]
    assert "trial newest goes on from its checkpoint" in said.text


def test_a_scheduler_that_waits_for_paused_trials_is_named(
    said: pytest.LogCaptureFixture,
) -> None:
    run = FakeRun()
    run.can_pause = False
    begin(run, shed=True)
    assert "shed=True has no effect in this run" in said.text


def test_after_an_error_all_trials_start() -> None:
    run = FakeRun()
    gate = begin(run)
    gate.disable(RuntimeError("planned"))
    assert run.launches.gate is None
    gate.on_step_end(1, [])
