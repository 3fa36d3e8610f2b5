"""Experiments that were moved or copied, with a trial store that is not in their directory."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from ray.tune import ExperimentAnalysis

from ray_tune_memguard import MemGuard
from tests.integration.test_restore import SAMPLES, At, begin, copied, interrupt, ran, restore

pytestmark = pytest.mark.usefixtures("spilled_in_their_step")


def test_a_copy_leaves_the_originals_store_alone(tmp_path: Path) -> None:
    begin(tmp_path, [MemGuard(spill_dir=tmp_path / "fast"), At(7, interrupt)])
    path = copied(tmp_path / "sweep", tmp_path / "elsewhere")
    [store] = (tmp_path / "fast").glob("*.sqlite")
    assert len(restore(path, True, tmp_path / "ran").fit()) == SAMPLES
    assert store.exists()


@pytest.mark.slow
def test_a_copy_that_is_older_than_the_originals_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNE_GLOBAL_CHECKPOINT_S", "0")
    elsewhere = tmp_path / "elsewhere"
    copy = At(5, lambda: copied(tmp_path / "sweep", elsewhere))
    begin(tmp_path, [MemGuard(spill_dir=tmp_path / "fast"), copy])
    grid = restore(elsewhere / "sweep", True, tmp_path / "ran").fit()
    assert len(grid) == SAMPLES
    assert len(ran(tmp_path / "ran")) >= 4, "what the original did later was taken for its own"


def test_a_moved_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(tmp_path, [MemGuard(spill_dir=tmp_path / "fast"), At(7, interrupt)])
    moved = (tmp_path / "sweep").rename(tmp_path / "moved")
    trials = ExperimentAnalysis(str(moved)).trials
    done = {trial.config["number"] for trial in trials if trial.is_finished()}
    assert len(restore(moved, True, tmp_path / "ran").fit()) == SAMPLES
    assert len(done) >= 7
    assert not done & set(ran(tmp_path / "ran"))


def test_a_copy_of_a_killed_sweep_has_what_finished_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNE_GLOBAL_CHECKPOINT_S", "1000")
    fast, elsewhere = tmp_path / "fast", tmp_path / "elsewhere"

    def kill() -> None:
        copied(tmp_path / "sweep", elsewhere)
        shutil.copytree(fast, tmp_path / "killed")

    begin(tmp_path, [MemGuard(spill_dir=fast), At(7, kill)])
    shutil.rmtree(fast)
    (tmp_path / "killed").rename(fast)
    assert len(restore(elsewhere / "sweep", True, tmp_path / "ran").fit()) == SAMPLES
    assert len(ran(tmp_path / "ran")) <= SAMPLES - 7
