"""Trials wait while they do not fit, no sweep hangs, and the results are those of Ray alone."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from ray import tune
from ray.tune.experiment import Trial

from ray_tune_memguard import LaunchGate, MemGuard, read_gate
from tests.integration import gated_sweeps
from tests.integration.gated_sweeps import comes_and_goes, memory, outcome, reports, sweep

#: What it measures is the whole machine.
pytestmark = pytest.mark.alone

GIVEN = 0.3 * gated_sweeps.TOTAL


class Concurrency(tune.Callback):
    """The most trials that ran at the same time."""

    def __init__(self) -> None:
        self.most = 0

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        self.most = max(self.most, sum(trial.status == Trial.RUNNING for trial in trials))


@pytest.mark.parametrize(
    ("scheduler", "reuse_actors", "max_concurrent", "two_shapes"),
    [
        ("fifo", True, None, True),
        ("hyperband", False, None, False),
        pytest.param("pbt-synch", True, 2, False, marks=pytest.mark.latest_only),
    ],
)
def test_no_sweep_hangs(
    storage: Path, scheduler: str, reuse_actors: bool, max_concurrent: int | None, two_shapes: bool
) -> None:
    callbacks: list[Any] = [LaunchGate(memory_per_trial=GIVEN)]
    with memory(comes_and_goes()):
        grid = sweep(
            storage,
            callbacks,
            scheduler=scheduler,
            reuse_actors=reuse_actors,
            max_concurrent=max_concurrent,
            two_shapes=two_shapes,
            trials=5,
        )
    assert len(grid) == 5
    assert not grid.errors
    if scheduler == "fifo":
        assert {result.metrics["count"] for result in grid} == {gated_sweeps.ITERATIONS}


def test_a_full_node_runs_one_trial_after_the_other_as_ray_alone_would(storage: Path) -> None:
    alone = sweep(storage / "alone", [], trials=3)
    concurrency = Concurrency()
    with memory(lambda: 0.97):
        grid = sweep(storage / "gated", [MemGuard(), concurrency], trials=3)
    assert concurrency.most == 1
    assert outcome(grid) == outcome(alone)
    actions = [record.action for record in read_gate(storage / "gated" / "gated")]
    assert actions[0] == "pause"
    record = read_gate(storage / "gated" / "gated")[0]
    assert record.used_bytes == int(0.97 * gated_sweeps.TOTAL)
    assert "not below 90%" in record.reason


def test_the_gate_can_be_turned_off(storage: Path) -> None:
    concurrency = Concurrency()
    with memory(lambda: 0.97):
        sweep(storage, [MemGuard(launch_gate=False), concurrency], trials=4, space={"sleep": 0.2})
    assert concurrency.most == 2
    assert not read_gate(storage / "gated")


@pytest.mark.latest_only
def test_slow_start_runs_one_trial_first(storage: Path) -> None:
    ended: list[int] = []

    class Watch(tune.Callback):
        def on_trial_start(self, trials: list[Trial], **info: Any) -> None:
            ended.append(sum(trial.status == Trial.TERMINATED for trial in trials))

    with memory(lambda: 0.2):
        sweep(storage, [LaunchGate(slow_start=True), Watch()], trials=2, space={"sleep": 0.2})
    assert ended == [0, 1]
    assert "slow_start" in read_gate(storage / "gated")[0].reason


@pytest.mark.latest_only
def test_a_trial_is_shed_and_goes_on_from_its_checkpoint(
    storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {"reports": 0}

    class Watch(tune.Callback):
        def on_trial_result(self, **info: Any) -> None:
            seen["reports"] += 1

    def used() -> float:
        return 0.94 if 6 <= seen["reports"] < 16 else 0.2

    with memory(used):
        grid = sweep(
            storage,
            [LaunchGate(shed=True), Watch()],
            trials=2,
            trainable=reports,
            space={"sleep": 0.3, "iterations": 12},
        )
    shed = [record for record in read_gate(storage / "gated") if record.action == "shed"]
    assert len(shed) == 1
    assert shed[0].trial_id
    assert not grid.errors
    assert [result.metrics["count"] for result in grid] == [12, 12]


@pytest.mark.latest_only
def test_the_run_ends_in_time_and_can_be_resumed(
    storage: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seen = {"ended": 0}

    class Watch(tune.Callback):
        def on_trial_complete(self, **info: Any) -> None:
            seen["ended"] += 1

    caplog.set_level(logging.INFO, "ray_tune_memguard")
    with memory(lambda: 0.94 if seen["ended"] >= 2 else 0.2):
        grid = sweep(
            storage,
            [MemGuard(stop_at=0.93), Watch()],
            trials=6,
            trainable=reports,
            space={"sleep": 0.3},
        )
    ended = [result for result in grid if result.metrics.get("count") == 6]
    assert 2 <= len(ended) < 6
    assert "the run ends and can be resumed" in caplog.text
    assert [record.action for record in read_gate(storage / "gated")][-1] == "stop"
    resumed = tune.Tuner.restore(str(storage / "gated"), reports).fit()
    assert len(resumed) == 6
    assert [result.metrics["count"] for result in resumed] == [6] * 6
