"""Profiles of real trials: the line that allocated, kills, reused actors, and no memray at all."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ray import tune

from ray_tune_memguard import MemGuard, MemrayProfiler, TrialMemoryReporter, read_profiles
from ray_tune_memguard.report.memray_file import Line
from ray_tune_memguard.report.profile_records import TrialProfile
from tests.integration import profiled_trials, sweeps
from tests.integration.profiled_trials import KINDS, LINE, SIZE, Hider, InSteps, uses_memory

pytest.importorskip("memray", reason="profiles need memray")
from ray_tune_memguard.report.memray_file import read_peak

pytestmark = pytest.mark.latest_only

HERE = Path(profiled_trials.__file__).name


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    with caplog.at_level(logging.INFO, logger="ray_tune_memguard"):
        yield lambda: [record.getMessage() for record in caplog.records]


def fit(
    trainable: Any, storage: Path, callbacks: list[tune.Callback], numbers: int, **options: Any
) -> tune.ResultGrid:
    return sweeps.fit(
        trainable,
        storage,
        callbacks,
        samples=1,
        space={"number": tune.grid_search(list(range(numbers)))},
        concurrent=1,
        **options,
    )


def outcomes(grid: tune.ResultGrid) -> list[object]:
    return [(sweeps.stable(result.metrics), sweeps.error_text(result.error)) for result in grid]


def line_of(grid: tune.ResultGrid, profile: TrialProfile) -> tuple[Line, float]:
    """The line that has most of a profile, in the trial's directory."""
    peak = read_peak(Path(grid.experiment_path, profile.file))
    [logged] = [Path(profile.path)] if profile.path else []
    assert logged.parent.name == "logs"
    assert logged.read_bytes() == Path(grid.experiment_path, profile.file).read_bytes()
    return peak.lines[0], peak.bytes


@pytest.mark.slow
@pytest.mark.parametrize("survive_kill", [False, True])
def test_the_line_of_each_trial_that_is_profiled(
    storage: Path, lines: Callable[[], list[str]], survive_kill: bool
) -> None:
    profiler = MemrayProfiler(4, survive_kill=survive_kill)
    grid = fit(uses_memory, storage, [MemGuard(), profiler], len(KINDS))
    if not survive_kill:
        alone = fit(uses_memory, storage, [MemGuard()], len(KINDS), name="alone")
        assert outcomes(grid) == outcomes(alone)
    profiles = read_profiles(grid.experiment_path)
    assert [one.state for one in profiles] == ["completed", "error", "error", "completed"]
    readable = [one for one in profiles if one.file]
    assert len(readable) == (4 if survive_kill else 3)
    for one in readable:
        line, total = line_of(grid, one)
        assert (Path(line.file).name, line.line, line.by) == (HERE, LINE, "ones")
        assert line.bytes >= 0.9 * SIZE
        assert line.share >= 0.9
        assert total < 1.1 * SIZE
    if not survive_kill:
        assert "its process was killed" in profiles[2].note
    # The trial's own tracker got its turn.
    assert "the trial's code uses memray itself" in profiles[3].note
    assert [line for line in lines() if "MemrayProfiler" in line or "not profiled" in line] == []
    assert profiler._state is None


def test_a_class_that_pauses(storage: Path) -> None:
    """It is profiled until it pauses for the first time, also where actors are not reused."""

    class Pausing(tune.schedulers.FIFOScheduler):
        def __init__(self) -> None:
            super().__init__()
            self.has_paused = False

        def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
            if self.has_paused:
                return self.CONTINUE
            self.has_paused = True
            return self.PAUSE

    grid = fit(
        InSteps,
        storage,
        [MemrayProfiler(2)],
        2,
        tune_config={"reuse_actors": False, "scheduler": Pausing(), "metric": None, "mode": None},
    )
    assert grid.num_errors == 0
    profiles = read_profiles(grid.experiment_path)
    assert sorted(one.state for one in profiles) == ["completed", "paused"]
    for one in profiles:
        line, _ = line_of(grid, one)
        assert (line.line, line.share >= 0.9) == (LINE, True)


@pytest.mark.slow
def test_a_trial_that_is_retried_is_profiled_once(storage: Path) -> None:
    """And its results are as without it."""
    options: dict[str, Any] = {
        "samples": 6,
        "concurrent": 1,
        "run_config": {"failure_config": tune.FailureConfig(max_failures=2)},
    }
    profiler = MemrayProfiler(lambda trial: True, keep=6)
    grid = sweeps.fit(sweeps.fails_first_time, storage, [MemGuard(), profiler], **options)
    alone = sweeps.fit(sweeps.fails_first_time, storage, [MemGuard()], name="alone", **options)
    assert outcomes(grid) == outcomes(alone)
    assert grid.num_errors == 0
    profiles = read_profiles(grid.experiment_path)
    failed = [bool(config["nested"]["c"] % 2) for config in (one.config for one in grid)]
    assert [one.state for one in profiles] == ["error" if it else "completed" for it in failed]
    assert True in failed
    assert False in failed
    assert all(one.file for one in profiles)


def test_population_based_training(storage: Path) -> None:
    """Trials pause and take each other's checkpoints; each is profiled in its first stretch."""
    scheduler = tune.schedulers.PopulationBasedTraining(
        time_attr="training_iteration",
        perturbation_interval=2,
        hyperparam_mutations={"a": tune.uniform(0, 1)},
        synch=True,
    )
    grid = sweeps.fit(
        sweeps.Stepwise,
        storage,
        [MemGuard(), MemrayProfiler(4, keep=4)],
        samples=4,
        tune_config={"scheduler": scheduler},
        run_config={"stop": {"training_iteration": 6}},
    )
    assert (len(grid), grid.num_errors) == (4, 0)
    assert {result.metrics["training_iteration"] for result in grid} == {6}
    profiles = read_profiles(grid.experiment_path)
    assert len({one.trial_id for one in profiles}) == len(profiles) == 4
    assert {one.state for one in profiles} <= {"paused", "completed"}
    for one in profiles:
        assert read_peak(Path(grid.experiment_path, one.file)).bytes > 0


def test_the_largest_is_found(storage: Path) -> None:
    grid = fit(
        uses_memory,
        storage,
        [TrialMemoryReporter(trial_memory_every_seconds=0.1), MemrayProfiler("largest")],
        2,
    )
    # Of the first nothing is known yet; the next may be as large.
    [one] = read_profiles(grid.experiment_path)
    assert one.trial_id.endswith("1")


def test_trials_without_memray_are_one_line(storage: Path, lines: Callable[[], list[str]]) -> None:
    grid = fit(Hider, storage, [MemrayProfiler()], 5, tune_config={"reuse_actors": False})
    assert sorted(result.metrics["score"] for result in grid) == [0, 1, 2, 3, 4]
    assert read_profiles(grid.experiment_path) == []
    [line] = lines()
    assert "memray is not installed in its environment on node " in line
    assert line.endswith("The run continues.")
