"""Who holds the memory, in real sweeps: named, measured, written down, and left alone.

``python -m tests.acceptance planted`` plants a dozen leaks one by one, and judges their slopes.
"""

from __future__ import annotations

import gc
import logging
import queue
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ray import tune
from ray.tune import Callback, ResultGrid

from ray_tune_memguard import (
    MemGuard,
    ObjectGrowthTracker,
    TrialPruner,
    read_diagnosis,
    read_growth,
)
from ray_tune_memguard.adapter import contract
from ray_tune_memguard.diagnostics import references, sampler, type_growth
from ray_tune_memguard.diagnostics.deep_size import DeepSizer
from ray_tune_memguard.diagnostics.diagnosis import Diagnosis
from ray_tune_memguard.lazy.cache import TrialCache
from ray_tune_memguard.report.series_file import SeriesFile

#: What it measures is the whole machine.
pytestmark = pytest.mark.alone

#: Enough for a trend: warm-up is 100 of them, and the shortest span 200.
TRIALS = 330
PAYLOAD = 2000
CACHE: dict[str, bytes] = {}


def train(config: dict[str, Any]) -> None:
    tune.report({"score": config["x"]})


def run(storage: Path, callbacks: list[Callback], trials: int = TRIALS) -> ResultGrid:
    return tune.Tuner(
        train,
        param_space={"x": tune.uniform(0, 1)},
        tune_config=tune.TuneConfig(
            metric="score",
            mode="max",
            num_samples=trials,
            reuse_actors=True,
            # Else 200 trials wait, and a short sweep is over when it would have come to rest.
            max_concurrent_trials=4,
        ),
        run_config=tune.RunConfig(
            name="sweep", storage_path=str(storage), verbose=0, callbacks=callbacks
        ),
    ).fit()


class Node:
    def __init__(self) -> None:
        self.payload = [float(n) for n in range(10)]


def keep_in_a_running_function(nodes: queue.SimpleQueue[Node | None]) -> None:
    """Keep nodes where no attribute and no global leads to them."""
    kept = []
    while (node := nodes.get()) is not None:
        kept.append(node)


class Leaky(Callback):
    """Keeps trials, and blobs in two places."""

    def __init__(self) -> None:
        self.trials: list[Any] = []
        self.blobs: list[bytes] = []

    def on_trial_complete(self, *, trial: Any, **info: Any) -> None:
        self.trials.append(trial)
        self.blobs.append(bytes([len(self.blobs) % 256]) * (2 * PAYLOAD))
        CACHE[trial.trial_id] = bytes([len(CACHE) % 256]) * PAYLOAD


class Asks(Callback):
    """Keeps nodes, and asks for a diagnosis near the end: from another thread and from a hook."""

    def __init__(self, tracker: ObjectGrowthTracker) -> None:
        self.tracker = tracker
        self.finished = 0
        self.answers: list[Diagnosis] = []

    def setup(self, **info: Any) -> None:
        self.nodes: queue.SimpleQueue[Node | None] = queue.SimpleQueue()
        keeper = threading.Thread(
            target=keep_in_a_running_function, args=(self.nodes,), daemon=True
        )
        keeper.start()

    def on_trial_complete(self, **info: Any) -> None:
        self.nodes.put(Node())
        self.finished += 1
        if self.finished == TRIALS - 5:
            another = threading.Thread(target=self.ask)
            another.start()
            another.join()
            self.ask()

    def ask(self) -> None:
        self.answers.append(self.tracker.diagnosis())

    def on_experiment_end(self, **info: Any) -> None:
        self.nodes.put(None)


@dataclass
class Guarded:
    """A guarded sweep with leaks, what woke ghosts while it ran, and what was asked meanwhile."""

    guard: MemGuard
    grid: ResultGrid
    woken: list[str]
    asked_by_thread: Diagnosis
    asked_by_hook: Diagnosis


def measure_whole(patched: pytest.MonkeyPatch) -> None:
    """Let a sample take its time: on a busy machine it is partial otherwise, and two differ."""
    for module in (sampler, references, type_growth):
        for limit in ("MAX_SAMPLE_S", *(name for name in vars(module) if "_SECONDS" in name)):
            patched.setattr(module, limit, 60.0, raising=False)


@pytest.fixture(autouse=True)
def _empty_cache() -> None:
    CACHE.clear()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Guarded:
    woken: list[str] = []
    load = TrialCache.activate

    def note(self: TrialCache, trial: Any) -> None:
        woken.append(object.__getattribute__(trial, "trial_id"))
        load(self, trial)

    guard = MemGuard(growth_budget=1.0, sample_every_trials=15)
    asks = Asks(guard.tracker)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(TrialCache, "activate", note)
        measure_whole(patched)
        patched.setenv("TUNE_WARN_SLOW_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "100")
        thresholds, frozen = gc.get_threshold(), gc.get_freeze_count()
        grid = run(tmp_path_factory.mktemp("guarded"), [Leaky(), asks, guard])
        assert (gc.get_threshold(), gc.get_freeze_count()) == (thresholds, frozen)
        return Guarded(guard, grid, list(woken), *asks.answers)


def test_leaks_are_named_with_their_slopes(guarded: Guarded) -> None:
    guard = guarded.guard
    holders = {holder.name: holder for holder in guard.tracker.diagnosis().holders}
    first, second = list(holders)[:2]
    assert first == "Leaky.blobs"
    assert second == f"{__name__}.CACHE"
    assert holders[first].bytes_per_trial == pytest.approx(2 * PAYLOAD + 48, rel=0.05)
    assert holders[second].bytes_per_trial == pytest.approx(PAYLOAD + 48 + 80, rel=0.1)
    assert holders["Leaky.trials"].bytes_per_trial < 1000
    assert holders[first].path == f"Leaky.blobs → list[{TRIALS}] → bytes"
    assert "→ Trial" in holders["Leaky.trials"].path
    assert "Your callback keeps" in holders[first].advice
    assert not {name for name in holders if name.startswith(("TuneController", "MemGuard"))}


def test_another_thread_gets_the_same_diagnosis(guarded: Guarded) -> None:
    hooks, threads = guarded.asked_by_hook, guarded.asked_by_thread
    assert f"unreachable {__name__}.Node" in {holder.name for holder in hooks.holders}
    assert [holder.name for holder in threads.holders] == [holder.name for holder in hooks.holders]
    assert [kind.name for kind in threads.types] == [kind.name for kind in hooks.types]


def test_no_ghost_was_woken(guarded: Guarded) -> None:
    assert guarded.woken == []


def test_it_is_kept_with_the_experiment(guarded: Guarded) -> None:
    guard, grid = guarded.guard, guarded.grid
    assert read_diagnosis(grid.experiment_path) == guard.tracker.diagnosis()
    frame = read_growth(grid.experiment_path)
    assert set(frame["kind"]) >= {"part", "holder", "process"}
    blobs = frame[frame["name"] == "Leaky.blobs"]
    assert len(blobs) >= 10
    assert blobs["trials"].is_monotonic_increasing
    assert (frame[frame["kind"] == "part"].groupby("name")["value"].max() >= 0).all()


def test_processes_of_ray_are_told_apart(guarded: Guarded) -> None:
    guard = guarded.guard
    names = {process.name for process in guard.tracker.diagnosis().processes}
    assert names == {"gcs_server", "raylet", "workers"}


def test_it_does_not_grow_itself(guarded: Guarded) -> None:
    guard = guarded.guard
    assert DeepSizer().measure(guard.tracker).total < 1_000_000


def test_alone_it_names_what_ray_keeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    measure_whole(monkeypatch)
    tracker = ObjectGrowthTracker(growth_budget=1.0, sample_every_trials=15)
    with caplog.at_level(logging.INFO, logger="ray_tune_memguard"):
        run(tmp_path, [tracker])
    found = tracker.diagnosis()
    named = {holder.name for holder in found.holders}
    assert found.holders[0].name == "TuneController._trials"
    assert "TuneController._stopped_trials" in named
    assert "add MemGuard()" in found.holders[0].advice
    lines = [record.getMessage() for record in caplog.records]
    assert sum("TuneController._trials grows by" in line for line in lines) >= 1
    assert str(found) in lines


def test_a_clean_sweep_names_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    guard = MemGuard(growth_budget=1.0, sample_every_trials=15)
    with caplog.at_level(logging.INFO, logger="ray_tune_memguard"):
        run(tmp_path, [guard])
    assert guard.tracker.diagnosis().holders == []
    assert not [r for r in caplog.records if "grows" in r.getMessage()]


def test_asked_in_mid_sweep_and_before(tmp_path: Path) -> None:
    guard = MemGuard()
    with pytest.raises(RuntimeError, match="has not measured anything yet"):
        guard.tracker.diagnosis()
    asked = []

    class Asks(Callback):
        def on_trial_complete(self, **info: Any) -> None:
            if not asked:
                guard.tracker.sample()
                asked.append(guard.tracker.diagnosis())

    run(tmp_path, [guard, Asks()], trials=4)
    [found] = asked
    assert found.part("rss").bytes > 50 * 2**20
    assert found.part("rss").per_trial is None


def test_it_can_be_left_out(tmp_path: Path) -> None:
    grid = run(tmp_path, [MemGuard(growth_budget=0)], trials=4)
    assert not list(Path(grid.experiment_path, ".memguard").glob("growth-*"))


def test_two_of_them_take_turns_no_more(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="ray_tune_memguard"):
        run(tmp_path, [MemGuard(), ObjectGrowthTracker()], trials=3)
    said = [r.getMessage() for r in caplog.records if "already active" in r.getMessage()]
    assert said == ["Another ObjectGrowthTracker is already active; this instance is disabled."]


def test_on_an_unknown_ray_it_measures_what_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = contract.is_there
    monkeypatch.setattr(
        contract, "is_there", lambda row, *part: row.name != "_reuse_actors" and found(row, *part)
    )
    tracker = ObjectGrowthTracker(growth_budget=1.0, sample_every_trials=1)
    grid = run(tmp_path, [tracker], trials=6)
    found = tracker.diagnosis()
    assert found.part("rss").bytes > 50 * 2**20
    assert "holders" in found.absent
    assert found.holders == []
    assert len(grid) == 6


def test_an_error_of_its_own_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("planned")

    tracker = ObjectGrowthTracker(growth_budget=1.0, sample_every_trials=1)
    monkeypatch.setattr(ObjectGrowthTracker, "_sample", fail)
    grid = run(tmp_path, [tracker, TrialPruner()], trials=6)
    assert grid.num_terminated == 6
    told = [
        r.getMessage() for r in caplog.records if "because of an unexpected error" in r.getMessage()
    ]
    assert len(told) == 1


def test_a_disk_that_takes_nothing_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SeriesFile, "add", full)
    tracker = ObjectGrowthTracker(growth_budget=1.0, sample_every_trials=1)
    grid = run(tmp_path, [tracker], trials=8)
    assert grid.num_terminated == 8
    told = [r.getMessage() for r in caplog.records if "cannot write" in r.getMessage()]
    assert len(told) == 1
    assert "No space left on device" in told[0]
    assert read_diagnosis(grid.experiment_path).trials == 8
