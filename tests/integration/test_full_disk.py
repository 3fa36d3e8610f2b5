"""Looking at an experiment on a full disk costs no trial."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray import tune
from ray.tune import ResultGrid, Tuner

from ray_tune_memguard import MemGuard, open_experiment

SAMPLES = 12
FINISHED = 6


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(disk)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


class CopiesTheExperiment(tune.Callback):
    """Copies it once some trials are over, in place of a kill."""

    def __init__(self, source: Path, target: Path) -> None:
        self.source, self.target = source, target
        self.finished = 0

    def on_trial_complete(self, **_: Any) -> None:
        self.finished += 1

    def on_step_end(self, **_: Any) -> None:
        if self.finished >= FINISHED and not self.target.exists():
            ignored = shutil.ignore_patterns(".*.part")
            shutil.copytree(self.source, self.target, ignore=ignored)

    def __reduce__(self) -> Any:
        return tune.Callback, ()


def fill(disk: Path) -> Path:
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        while _takes_more(file):
            pass
    return filler


def _takes_more(file: Any) -> bool:
    try:
        return bool(file.write(b"x" * 512))
    except OSError:
        return False


def finished(grid: ResultGrid) -> set[int]:
    trials = grid._experiment_analysis.trials
    return {trial.config["number"] for trial in trials if trial.status == "TERMINATED"}


@pytest.mark.slow
@pytest.mark.latest_only
@pytest.mark.usefixtures("spilled_in_their_step")
def test_looking_on_a_full_disk_costs_no_trial(
    tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So that the state file has none of the trials that have finished.
    monkeypatch.setenv("TUNE_GLOBAL_CHECKPOINT_S", "60")
    log = tmp_path / "ran"

    def train(config: dict[str, Any]) -> None:
        with log.open("a") as ran:
            ran.write(f"{config['number']}\n")
        tune.report({"score": config["number"]})

    experiment = small_disk / "sweep"
    Tuner(
        train,
        param_space={"number": tune.grid_search(list(range(SAMPLES)))},
        tune_config=tune.TuneConfig(reuse_actors=True),
        run_config=tune.RunConfig(
            name="sweep",
            storage_path=str(tmp_path / "results"),
            verbose=0,
            callbacks=[
                CopiesTheExperiment(tmp_path / "results" / "sweep", experiment),
                MemGuard(),
            ],
        ),
    ).fit()
    [state_file] = experiment.glob("experiment_state-*.json")
    assert "TERMINATED" not in str(json.loads(state_file.read_text())["trial_data"])
    filler = fill(small_disk)
    before = finished(open_experiment(experiment))
    assert len(before) >= FINISHED - 1
    filler.unlink()
    assert finished(open_experiment(experiment)) == before
    log.unlink()
    grid = Tuner.restore(str(experiment), trainable=train).fit()
    assert {int(line) for line in log.read_text().split()} == set(range(SAMPLES)) - before
    assert finished(grid) == set(range(SAMPLES))
