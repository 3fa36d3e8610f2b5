"""A restored sweep that is killed again, at once or later, and then restored by whomever."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray.tune import Callback, ExperimentAnalysis
from ray.tune.search import ConcurrencyLimiter

from ray_tune_memguard import MemGuard
from ray_tune_memguard.adapter.paths import calling_controller
from ray_tune_memguard.store.snapshot import Snapshot
from ray_tune_memguard.store.trial_store import TrialStore
from tests.integration.test_restore import At, Counted, begin, copied, ran, restore

pytestmark = pytest.mark.usefixtures("spilled_in_their_step")

SAMPLES = 20


class First(Callback):
    """Does something once, in the first step: before its checkpoint or after it."""

    def __init__(self, act: Callable[[], object], before: bool) -> None:
        self.act: Callable[[], object] | None = act
        self.before = before

    def __reduce__(self) -> Any:
        return Callback, ()

    def _once(self) -> None:
        act, self.act = self.act, None
        if act is not None:
            act()

    def on_step_begin(self, **_: Any) -> None:
        if self.before:
            self._once()

    def on_step_end(self, **_: Any) -> None:
        if not self.before:
            self._once()


def again(path: Path, log: Path, *callbacks: Callback) -> Any:
    tuner = restore(path, True, log)
    tuner._local_tuner._run_config.callbacks += callbacks
    return tuner.fit()


def finished(path: Path) -> set[int]:
    trials = ExperimentAnalysis(str(path)).trials
    return {trial.config["number"] for trial in trials if trial.is_finished()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "searcher", "guarded"),
    [
        ("before its checkpoint", "variants", True),
        ("after its checkpoint", "limited", True),
        ("later", "limited", True),
        ("later", "variants", False),
    ],
)
def test_killed_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, searcher: str, guarded: bool
) -> None:
    monkeypatch.setenv("TUNE_GLOBAL_CHECKPOINT_S", "1000")
    first, second = tmp_path / "first kill", tmp_path / "second kill"
    search = {
        "variants": lambda: None,
        "limited": lambda: ConcurrencyLimiter(Counted(), max_concurrent=2),
    }[searcher]()
    kill = At(6, lambda: copied(tmp_path / "sweep", first))
    begin(tmp_path, [MemGuard(), kill], search, samples=SAMPLES)
    done = finished(first / "sweep")
    assert len(done) >= 6

    def kill_again() -> None:
        copied(first / "sweep", second)

    killing: Callback = At(4, kill_again)
    if moment != "later":
        killing = First(kill_again, before="before" in moment)
    again(first / "sweep", tmp_path / "second", killing)
    path = second / "sweep"
    still = finished(path)
    assert still >= done
    assert len(still) >= len(done) + 4 * (moment == "later")

    grid = restore(path, guarded, tmp_path / "third").fit()
    numbers = sorted(result.config["number"] for result in grid)
    step = 10 if searcher == "limited" else 1
    if guarded:
        assert numbers == list(range(0, SAMPLES * step, step))
        assert not set(ran(tmp_path / "third")) & still
    assert len(numbers) == SAMPLES
    assert all(result.metrics["score"] == result.config["number"] for result in grid)


def test_files_that_were_never_uploaded_outlive_a_second_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNE_GLOBAL_CHECKPOINT_S", "1000")
    killed, staged = tmp_path / "killed", tmp_path / "staged"
    late: set[str] = set()

    def kill() -> None:
        path = copied(tmp_path / "sweep", killed)
        controller: Any = calling_controller()
        shutil.copytree(controller._storage.experiment_driver_staging_path, staged)
        # The next run is in another Ray session, with a staging directory of its own.
        [store] = (path / ".memguard").glob("trials-*.sqlite")
        with sqlite3.connect(store) as connection:
            connection.execute("UPDATE meta SET value = ? WHERE key = 'staging'", (str(staged),))
        connection.close()
        late.update(name.name for name in staged.glob("train_*"))

    begin(tmp_path, [MemGuard(), At(6, kill)])
    unsent: set[str] = set()

    def look() -> None:
        controller: Any = calling_controller()
        unsent.update(controller._checkpoint_manager._storage.syncer.unsent())

    grid = again(killed / "sweep", tmp_path / "second", First(look, before=True))
    assert len(unsent) >= 6
    assert unsent <= late
    assert all(len(result.metrics_dataframe) == 1 for result in grid)


def test_a_whole_sweep_leaves_nothing_to_upload_again(tmp_path: Path) -> None:
    begin(tmp_path, [MemGuard()])
    [path] = (tmp_path / "sweep" / ".memguard").glob("trials-*.sqlite")
    store = TrialStore.open(path)
    assert Snapshot.load(store).unsent == []
    store.close()
