"""What a user sees of a guarded sweep, and what becomes of it when something goes wrong."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pandas as pd
import pyarrow.fs
import pytest
import ray
from ray import tune
from ray.tune.analysis import ExperimentAnalysis
from ray.tune.execution.tune_controller import TuneController
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    HyperBandScheduler,
    PopulationBasedTraining,
)
from ray.tune.search import ConcurrencyLimiter

from ray_tune_memguard import (
    MemGuard,
    RssReporter,
    TrialPruner,
    iter_results,
    open_experiment,
    read_results,
    read_rss_series,
)
from ray_tune_memguard.lazy.cache import TrialCache
from ray_tune_memguard.lazy.ghost import is_ghost
from ray_tune_memguard.lazy.trial_list import SpilledTrials
from ray_tune_memguard.store.trial_store import TrialStore
from tests.integration import sweeps


@pytest.fixture(autouse=True)
def _log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.INFO, logger="ray_tune_memguard"):
        yield


def is_guarded(grid: tune.ResultGrid) -> bool:
    return isinstance(grid._experiment_analysis.trials, SpilledTrials)


def said(caplog: pytest.LogCaptureFixture, *words: str) -> list[str]:
    """The messages of ours that contain all these words."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.name.startswith("ray_tune_memguard")
        and all(word in record.getMessage() for word in words)
    ]


class Probe(tune.Callback):
    """Calls a function at the end of each step, with the number of finished trials."""

    def __init__(self, act: Any) -> None:
        self.act = act

    def on_step_end(self, iteration: int, trials: Any, **_: Any) -> None:
        self.act(sum(trial.is_finished() for trial in trials), trials)

    def __reduce__(self) -> Any:
        return tune.Callback, ()


# The ways in.


def test_by_environment_variable_without_a_change_of_code(
    storage: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RAY_TUNE_CALLBACKS", "ray_tune_memguard.MemGuard")
    monkeypatch.setenv("TUNE_MEMGUARD_EVERY_TRIALS", "2")
    grid = sweeps.fit(sweeps.one_report, storage, [], samples=4)
    assert is_guarded(grid)
    assert [line.split("  ")[0] for line in said(caplog, "RSS")][:2] == ["trial#2", "trial#4"]


def test_tune_run(storage: Path) -> None:
    analysis = tune.run(
        sweeps.one_report,
        config=sweeps.SPACE,
        num_samples=4,
        metric="score",
        mode="max",
        storage_path=str(storage),
        name="run",
        verbose=0,
        callbacks=[MemGuard()],
    )
    assert type(analysis) is ExperimentAnalysis
    assert isinstance(analysis.trials, SpilledTrials)
    assert len(analysis.results_df) == 4
    assert analysis.best_result["score"] == max(analysis.results_df.score)


@pytest.mark.slow
def test_one_guard_serves_two_sweeps_in_turn(storage: Path) -> None:
    guard = MemGuard()
    first = sweeps.fit(sweeps.one_report, storage, [guard], samples=3, name="first")
    second = sweeps.fit(sweeps.one_report, storage, [guard], samples=2, name="second")
    assert is_guarded(first)
    assert is_guarded(second)
    assert [len(first), len(second)] == [3, 2]
    assert first[0].metrics["score"] == second[0].metrics["score"]


@pytest.mark.slow
def test_the_parts_alone(storage: Path, caplog: pytest.LogCaptureFixture) -> None:
    plain = sweeps.fit(
        sweeps.one_report, storage, [RssReporter(every_trials=2)], samples=4, name="reporter"
    )
    assert not is_guarded(plain)
    assert len(said(caplog, "RSS")) == 2
    caplog.clear()
    pruned = sweeps.fit(sweeps.one_report, storage, [TrialPruner()], samples=4, name="pruner")
    assert is_guarded(pruned)
    assert said(caplog, "RSS") == []


@pytest.mark.slow
@pytest.mark.parametrize("guard_first", [True, False])
def test_two_guards_the_second_steps_aside(
    storage: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    guard_first: bool,
) -> None:
    if guard_first:
        monkeypatch.setenv("RAY_TUNE_CALLBACKS", "ray_tune_memguard.MemGuard")
        callbacks: list[Any] = [MemGuard()]
    else:
        callbacks = [TrialPruner(), MemGuard(), RssReporter()]
    grid = sweeps.fit(sweeps.one_report, storage, callbacks, samples=3)
    assert is_guarded(grid)
    assert len(grid) == 3
    assert len(said(caplog, "Another TrialPruner is already active")) == 1
    assert len(said(caplog, "Another RssReporter", "already active")) == 1
    assert len(list((Path(grid.experiment_path) / ".memguard").glob("*.sqlite"))) == 1


def test_spill_dir(storage: Path, tmp_path: Path) -> None:
    spill_dir = tmp_path / "fast-disk"
    grid = sweeps.fit(sweeps.one_report, storage, [MemGuard(spill_dir=spill_dir)], samples=3)
    assert is_guarded(grid)
    assert len(list(spill_dir.glob("trials-*.sqlite"))) == 1
    assert not list(storage.rglob("*.sqlite"))


# While it runs.


def test_finished_trials_leave_every_known_holder(storage: Path) -> None:
    found: dict[str, Any] = {}

    class Look(tune.Callback):
        def on_experiment_end(self, trials: Any, **_: Any) -> None:
            frame = sys._getframe()
            while not isinstance(frame.f_locals.get("self"), TuneController):
                frame = frame.f_back
            controller = frame.f_locals["self"]
            for name, value in vars(controller).items():
                if isinstance(value, (dict, set)):
                    found[name] = len(value)
            found["resident"] = trials.resident()
            for callback in controller._callbacks._callbacks:
                for name, value in vars(callback).items():
                    if name.startswith("_trial") and isinstance(value, (dict, set)):
                        found[f"{type(callback).__name__}.{name}"] = len(value)

        def __reduce__(self) -> Any:
            return tune.Callback, ()

    sweeps.fit(sweeps.fails_sometimes, storage, [MemGuard(), Look()], samples=8)
    assert found.pop("resident") == []
    kept = {name: size for name, size in found.items() if size}
    # By resource request, not by trial.
    assert set(kept) <= {"_resources_to_pending_trials", "_class_cache"}
    assert "JsonLoggerCallback._trial_configs" in found
    assert "CSVLoggerCallback._trial_continue" in found


@pytest.mark.slow
def test_actors_that_refuse_to_be_reused(storage: Path) -> None:
    """Which actor meets which trial is a matter of luck, so there is nothing to compare with."""
    grid = sweeps.fit(
        sweeps.NotReusable, storage, [MemGuard()], samples=6, run_config={"stop": {"score": -99}}
    )
    trials = grid._experiment_analysis.trials
    assert trials.resident() == []
    assert len(grid) == 6
    assert grid.num_terminated + grid.num_errors == 6


@pytest.mark.slow
@pytest.mark.parametrize(
    "scheduler",
    [
        lambda: PopulationBasedTraining(
            time_attr="training_iteration",
            perturbation_interval=2,
            hyperparam_mutations={"a": tune.uniform(0, 1)},
        ),
        lambda: PopulationBasedTraining(
            time_attr="training_iteration",
            perturbation_interval=2,
            hyperparam_mutations={"a": tune.uniform(0, 1)},
            synch=True,
        ),
        lambda: HyperBandScheduler(max_t=6),
        lambda: AsyncHyperBandScheduler(max_t=6, grace_period=2),
    ],
    ids=["PBT", "PBT-synch", "HyperBand", "ASHA"],
)
def test_schedulers_that_pause_and_stop(storage: Path, scheduler: Any) -> None:
    """Their decisions depend on timing; what is on disk tells whether the results are right."""
    grid = sweeps.fit(
        sweeps.Stepwise,
        storage,
        [MemGuard()],
        samples=6,
        tune_config={"scheduler": scheduler()},
        run_config={"stop": {"training_iteration": 6}},
    )
    trials = grid._experiment_analysis.trials
    assert trials.resident() == []
    assert (len(grid), grid.num_errors) == (6, 0)
    for result in grid:
        lines = Path(result.path, "result.json").read_text().splitlines()
        last = json.loads(lines[-1])
        assert last["score"] == result.metrics["score"]
        assert last["training_iteration"] == result.metrics["training_iteration"] <= 6
        assert len(result.metrics_dataframe) == len(lines)


@pytest.mark.slow
def test_files_reach_the_storage_as_without_it(
    storage: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Uploads leave out finished trials, but not what is written to their directories later."""
    monkeypatch.setenv("TUNE_GLOBAL_CHECKPOINT_S", "0")

    def act(finished: int, trials: Any) -> None:
        late = Path(trials[0].local_path).parent / "late.txt"
        if finished >= 2 and not late.exists():
            late.with_name("latest").symlink_to("nowhere")
            late.write_text("a file, not a folder")
        if finished == 12:
            old = Path(trials[2].local_path, "old.txt")
            old.write_text("moved here, as it was long ago")
            os.utime(old, (1e9, 1e9))
            Path(trials[0].local_path, "note.txt").write_text("written after it had finished")
            with Path(trials[1].local_path, "result.json").open("a") as file:
                file.write("\n")
            other = Path(trials[0].local_path).parent / "own-folder" / "deeper"
            other.mkdir(parents=True, exist_ok=True)
            (other / "file.txt").write_text("the user's own")

    grid = sweeps.fit(
        sweeps.fails_sometimes,
        storage,
        [MemGuard(), Probe(act)],
        samples=24,
        space=sweeps.RARELY_FAILS,
    )
    experiment = Path(grid.experiment_path)
    staging = Path(grid._experiment_analysis.trials[0].local_path).parent
    for path in staging.rglob("*"):
        if path.is_file():
            copied = experiment / path.relative_to(staging)
            assert copied.read_bytes() == path.read_bytes(), copied
    assert (experiment / "own-folder" / "deeper" / "file.txt").exists()
    assert (Path(grid[0].path) / "note.txt").exists()
    assert (Path(grid[2].path) / "old.txt").exists()
    assert (experiment / "late.txt").is_file()
    assert not said(caplog, "failed")


@pytest.mark.slow
def test_uploads_do_not_copy_finished_trials_again(
    storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray_tune_memguard.adapter.run import uploads

    monkeypatch.setenv("TUNE_GLOBAL_CHECKPOINT_S", "0")
    copied: list[str] = []
    upload = uploads._upload

    def count(source: str, *rest: Any) -> None:
        copied.append(Path(source).name)
        upload(source, *rest)

    monkeypatch.setattr(uploads, "_upload", count)
    half = 0

    def act(finished: int, trials: Any) -> None:
        nonlocal half
        if finished >= 20 and not half:
            half = len(copied)

    grid = sweeps.fit(sweeps.one_report, storage, [MemGuard(), Probe(act)], samples=40)
    later = copied[half:]
    assert Path(grid[0].path).name not in later
    assert len([name for name in later if name.startswith("basic-variant-state")]) > 3
    assert Path(grid[39].path).name in later
    # It is written where it belongs.
    assert not [name for name in copied if name.startswith("experiment_state")]


def test_a_disk_without_hard_links(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two files cannot take turns there; the state file is then uploaded, as Ray does it."""
    monkeypatch.setenv("TUNE_GLOBAL_CHECKPOINT_S", "0")

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    grid = sweeps.fit(sweeps.one_report, storage, [MemGuard()], samples=12)
    assert is_guarded(grid)
    path = Path(grid.experiment_path)
    [state_file] = path.glob("experiment_state-*.json")
    assert len(json.loads(state_file.read_text())["trial_data"]) == 12
    assert not list(path.rglob("*.spare"))


def test_nothing_but_the_state_file_is_left_of_those_that_take_turns(
    storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNE_GLOBAL_CHECKPOINT_S", "0")
    left_by_a_kill = [
        storage / "sweep" / directory / "experiment_state-x.json.spare"
        for directory in (".memguard", "memguard")  # Earlier versions used the second name.
    ]
    for spare in left_by_a_kill:
        spare.parent.mkdir(parents=True)
        spare.touch()
    grid = sweeps.fit(sweeps.one_report, storage, [MemGuard()], samples=12)
    names = {path.name for path in Path(grid.experiment_path, ".memguard").iterdir()}
    assert not [name for name in names if name.endswith((".spare", ".retired", ".part"))]
    assert not any(spare.exists() for spare in left_by_a_kill)


def test_remote_storage(tmp_path: Path) -> None:
    """The store stays off a storage that is not a local path; what is uploaded is complete."""
    filesystem = pyarrow.fs.PyFileSystem(
        pyarrow.fs.FSSpecHandler(fsspec.filesystem("memory", skip_instance_cache=True))
    )
    grid = sweeps.fit(
        sweeps.one_report,
        Path("bucket"),
        [MemGuard(every_trials=2)],
        samples=4,
        run_config={"storage_filesystem": filesystem},
    )
    assert is_guarded(grid)
    assert [result.metrics["score"] for result in grid]
    files = [
        info.path for info in filesystem.get_file_info(pyarrow.fs.FileSelector("/", recursive=True))
    ]
    assert any("rss-" in path for path in files)
    assert not any(path.endswith(".sqlite") for path in files)
    analysis = ExperimentAnalysis("bucket/sweep", storage_filesystem=filesystem)
    assert len(analysis.trials) == 4


def test_results_are_read_while_it_runs_and_afterwards(storage: Path) -> None:
    seen: dict[str, list[Any]] = {}

    def look(finished: int, trials: Any) -> None:
        if finished >= 3 and not seen:
            for result in iter_results(storage / "sweep", columns=["training_iteration"]):
                steps = seen.setdefault(str(result["trial_id"]), [])
                steps.append(result["training_iteration"])

    grid = sweeps.fit(sweeps.three_reports, storage, [MemGuard(), Probe(look)], samples=6)
    trials = grid._experiment_analysis.trials
    # From the driver's files: nothing of this is uploaded yet.
    assert [seen[trial.trial_id] for trial in trials[:3]] == [[1, 2, 3]] * 3
    expected = pd.concat([result.metrics_dataframe for result in grid], ignore_index=True)
    frame = read_results(grid.experiment_path)
    pd.testing.assert_frame_equal(frame[expected.columns], expected, check_dtype=False)
    assert list(frame["trial_id"]) == [trial.trial_id for trial in trials for _ in range(3)]


def test_read_results_of_a_running_trial_are_let_go(storage: Path) -> None:
    most = 0

    def look(finished: int, trials: Any) -> None:
        nonlocal most
        frame = sys._getframe()
        while not isinstance(frame.f_locals.get("self"), TuneController):
            frame = frame.f_back
        manager = frame.f_locals["self"]._actor_manager
        for futures in manager._tracked_actors_to_task_futures.values():
            most = max(most, len(futures))

    def many(config: dict[str, Any]) -> None:
        for _ in range(50):
            tune.report({"score": 1.0})

    sweeps.fit(many, storage, [MemGuard(), Probe(look)], samples=1)
    assert 0 < most <= 3


def test_a_callback_that_keeps_trials_can_use_them(storage: Path) -> None:
    class Keeper(tune.Callback):
        kept: list[Any] = []  # noqa: RUF012

        def on_trial_start(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
            self.kept.append(trial)

        def on_step_end(self, iteration: int, trials: Any, **_: Any) -> None:
            for trial in self.kept:
                assert trial in trials
                assert trial.trial_id.startswith("same")

    grid = sweeps.fit(sweeps.one_report, storage, [MemGuard(), Keeper()], samples=5)
    assert len(Keeper.kept) == 5
    assert any(is_ghost(trial) for trial in Keeper.kept)
    for trial, result in zip(sorted(Keeper.kept, key=str), grid, strict=True):
        assert trial.last_result["score"] == result.metrics["score"]
        assert trial.config == result.config
        assert trial.local_path
        assert trial.path == result.path
        trial.note = "mine"
    assert [trial.note for trial in grid._experiment_analysis.trials] == ["mine"] * 5


def test_a_callback_that_raises_ends_the_sweep_as_ever(storage: Path) -> None:
    class Raises(tune.Callback):
        def on_trial_complete(self, **_: Any) -> None:
            raise RuntimeError("the user's own error")

        def on_step_end(self, iteration: int, **_: Any) -> None:
            if iteration > 5:
                raise RuntimeError("the user's own error")

    with pytest.raises(RuntimeError, match="the user's own error"):
        sweeps.fit(sweeps.one_report, storage, [MemGuard(), Raises()], samples=20)


@pytest.mark.slow
def test_the_series_counts_completed_and_errored(storage: Path) -> None:
    grid = sweeps.fit(
        sweeps.fails_sometimes, storage, [MemGuard(every_trials=1, every_seconds=None)], samples=8
    )
    series = read_rss_series(grid.experiment_path)
    last = series.iloc[-1]
    assert (last.completed, last.errored) == (grid.num_terminated, grid.num_errors)
    assert last.errored > 0
    assert last.trials == 8
    assert series.trials.is_monotonic_increasing
    assert (series.rss_bytes > 2**20).all()


def test_a_time_interval_reports_without_finished_trials(
    storage: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def slow(config: dict[str, Any]) -> None:
        import time

        for _ in range(6):
            time.sleep(0.2)
            tune.report({"score": 1.0})

    guard = RssReporter(every_trials=None, every_seconds=0.3)
    sweeps.fit(slow, storage, [guard], samples=1)
    assert said(caplog, "trial#0")


# Resume.


def test_resume_goes_on_counting_and_spilling(storage: Path) -> None:
    sweeps.fit(sweeps.fails_sometimes, storage, [MemGuard(every_trials=1)], samples=8)
    path = str(storage / "sweep")
    tuner = tune.Tuner.restore(path, trainable=sweeps.fails_sometimes, restart_errored=True)
    before = tuner.get_results()
    again = tuner.fit()
    assert is_guarded(again)
    assert len(again) == len(before) == 8
    series = read_rss_series(path)
    assert len(list(Path(path, ".memguard").glob("trials-*.sqlite"))) == 1
    assert series.trials.iloc[-1] == 8
    resumed = series[series.time > series.time.iloc[0]].trials
    assert resumed.max() == 8


@pytest.mark.slow
def test_restores_without_this_package(storage: Path) -> None:
    """Ray alone opens and resumes what a guarded sweep left, with this package not importable."""
    grid = sweeps.fit(sweeps.one_report, storage, [MemGuard()], samples=6)
    scores = sorted(result.metrics["score"] for result in grid)
    script = f"""
        import sys
        class Refuse:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] == "ray_tune_memguard":
                    raise ModuleNotFoundError(name)
        sys.meta_path.insert(0, Refuse())
        import json, ray
        from ray import tune
        from ray.tune.analysis import ExperimentAnalysis
        analysis = ExperimentAnalysis({str(storage / "sweep")!r})
        scores = sorted(trial.last_result["score"] for trial in analysis.trials)
        def one_report(config): pass
        ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
        tuner = tune.Tuner.restore({str(storage / "sweep")!r}, trainable=one_report)
        again = sorted(result.metrics["score"] for result in tuner.fit())
        assert "ray_tune_memguard" not in sys.modules
        print(json.dumps([scores, again]))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.strip().splitlines()[-1]) == [scores, scores]


def test_an_earlier_run_of_the_same_name_is_left_alone(storage: Path) -> None:
    first = sweeps.fit(sweeps.one_report, storage, [MemGuard()], samples=3)
    [store] = Path(first.experiment_path, ".memguard").glob("*.sqlite")
    del first
    before = store.read_bytes()
    second = sweeps.fit(sweeps.one_report, storage, [MemGuard()], samples=5)
    assert len(second) == 5
    assert store.read_bytes() == before


def test_a_scheduler_that_delegates_everything(storage: Path) -> None:
    class Proxy(FIFOScheduler):
        def __init__(self) -> None:
            super().__init__()
            self.inner = FIFOScheduler()

        choose_trial_to_run = property(lambda self: self.inner.choose_trial_to_run)

    grid = sweeps.fit(
        sweeps.one_report, storage, [MemGuard()], samples=4, tune_config={"scheduler": Proxy()}
    )
    assert is_guarded(grid)
    assert len(grid) == 4


def test_what_is_left_paused_can_be_resumed(storage: Path) -> None:
    """Ray's file says of trials that the end of the experiment found paused that they are."""

    class StopsSoon(tune.Stopper):
        calls = 0

        def __call__(self, trial_id: str, result: Any) -> bool:
            type(self).calls += 1
            return False

        def stop_all(self) -> bool:
            return self.calls > 15

    found = []
    for name, guards in (("plain", []), ("guarded", [MemGuard()])):
        StopsSoon.calls = 0
        sweeps.fit(
            sweeps.Stepwise,
            storage,
            guards,
            samples=8,
            name=name,
            tune_config={"scheduler": HyperBandScheduler(max_t=20), "max_concurrent_trials": 1},
            run_config={"stop": StopsSoon()},
        )
        trials = ExperimentAnalysis(str(storage / name)).trials
        found.append(sorted(trial.status for trial in trials))
    assert found[1] == found[0]


# When something goes wrong.


@pytest.mark.slow
def test_a_full_store_right_after_a_checkpoint(
    storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The experiment state stays whole when a spill fails with its spare one checkpoint behind."""
    monkeypatch.setenv("TUNE_GLOBAL_CHECKPOINT_S", "0")
    monkeypatch.setattr("ray_tune_memguard.callbacks.trial_pruner._FIRST_RETRY_S", 0.01)
    monkeypatch.setattr("ray_tune_memguard.callbacks.trial_pruner._MAX_RETRY_S", 0.01)
    put = TrialStore.put
    calls = 0

    def sometimes_full(self: Any, *row: Any) -> None:
        nonlocal calls
        calls += 1
        if calls % 3:
            raise sqlite3.OperationalError("database or disk is full")
        put(self, *row)

    monkeypatch.setattr(TrialStore, "put", sometimes_full)
    grid = sweeps.fit(sweeps.one_report, storage, [MemGuard()], samples=20)
    assert len(grid) == 20
    trials = ExperimentAnalysis(grid.experiment_path).trials
    assert len({trial.trial_id for trial in trials}) == len(trials) == 20


@pytest.mark.slow
def test_a_store_that_cannot_be_read_costs_the_report_not_the_sweep(
    storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNE_GLOBAL_CHECKPOINT_S", "0")
    select = TrialStore._select
    gone = False

    def fails(self: Any, *query: Any) -> Any:
        if gone:
            raise sqlite3.OperationalError("disk I/O error")
        return select(self, *query)

    def act(finished: int, trials: Any) -> None:
        nonlocal gone
        gone = False
        if 22 <= finished < 28:
            gone = True

    monkeypatch.setattr(TrialStore, "_select", fails)
    monkeypatch.setattr("ray.tune.experimental.output.ProgressReporter._heartbeat_freq", 0)
    probe = Probe(lambda finished, trials: None)
    probe.on_step_end = lambda iteration, trials, **_: act(  # type: ignore[method-assign]
        len(trials) - sum(not t.is_finished() for t in trials.resident()), trials
    )
    grid = sweeps.fit(
        sweeps.one_report, storage, [MemGuard(), probe], samples=40, run_config={"verbose": 1}
    )
    gone = False
    assert len(grid) == 40
    assert len(list(Path(grid.experiment_path).glob("*/result.json"))) == 40


def block_disk(guard: MemGuard) -> Any:
    """Make the guard's store full, as SQLite finds it when the disk is; returns the way back."""
    connection = guard.pruner._state.spiller._installation.store._connection
    [pages] = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count={pages}")
    return lambda: connection.execute("PRAGMA max_page_count=1000000").fetchone()


def make_read_only(guard: MemGuard) -> Any:
    connection = guard.pruner._state.spiller._installation.store._connection
    connection.execute("PRAGMA query_only=1")
    return lambda: connection.execute("PRAGMA query_only=0").fetchone()


@pytest.mark.slow
@pytest.mark.parametrize(("trouble", "words"), [(block_disk, "full"), (make_read_only, "readonly")])
@pytest.mark.parametrize("recovers", [True, False])
def test_a_disk_in_trouble_costs_no_trial(
    storage: Path,
    caplog: pytest.LogCaptureFixture,
    trouble: Any,
    words: str,
    recovers: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ray_tune_memguard.callbacks.trial_pruner._FIRST_RETRY_S", 0.05)
    monkeypatch.setattr("ray_tune_memguard.callbacks.trial_pruner._MAX_RETRY_S", 0.05)
    guard = MemGuard()
    state: dict[str, Any] = {}

    def act(finished: int, trials: Any) -> None:
        if finished >= 4 and "undo" not in state:
            state["undo"] = trouble(guard)
        if finished >= 30 and recovers and not state.get("undone"):
            state["resident"] = len([t for t in trials.resident() if t.is_finished()])
            state["undone"] = state["undo"]() or True

    def big(config: dict[str, Any]) -> None:
        import random

        noise = "".join(random.choice("0123456789abcdef") for _ in range(8000))
        tune.report({"score": config["a"], "noise": noise})

    grid = sweeps.fit(big, storage, [Probe(act), guard], samples=60)
    assert len(grid) == 60
    assert grid.num_terminated == 60
    assert all(0 <= result.metrics["score"] <= 1 for result in grid)
    [warning] = said(caplog, "TrialPruner cannot write")
    assert words in warning
    assert "trials-" in warning
    assert "stay in memory" in warning
    left = [t for t in grid._experiment_analysis.trials.resident() if t.is_finished()]
    assert (len(left) == 0) == recovers
    if recovers:
        assert state["resident"] > 0
    # Ray alone finds them all, those that could not be spilled too.
    assert len(ExperimentAnalysis(grid.experiment_path).trials) == 60


def test_a_spill_dir_that_goes_away_and_comes_back(
    storage: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray_tune_memguard.callbacks.trial_pruner._FIRST_RETRY_S", 0.05)
    monkeypatch.setattr("ray_tune_memguard.callbacks.trial_pruner._MAX_RETRY_S", 0.05)
    spill_dir = tmp_path / "disk"
    guard = MemGuard(spill_dir=spill_dir)
    spill_dir.rmdir()
    spill_dir.write_text("a file where the directory was")

    def act(finished: int, trials: Any) -> None:
        if finished >= 4 and spill_dir.is_file():
            spill_dir.unlink()

    grid = sweeps.fit(sweeps.one_report, storage, [Probe(act), guard], samples=40)
    assert is_guarded(grid)
    assert len(grid) == 40
    assert len(said(caplog, "TrialPruner cannot write", str(spill_dir))) == 1
    assert grid._experiment_analysis.trials.resident() == []


def test_a_trial_that_does_not_serialise_stays_in_memory(
    storage: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class AddsLocks(tune.Callback):
        def on_trial_result(
            self, iteration: int, trials: Any, trial: Any, result: Any, **_: Any
        ) -> None:
            if trial.trial_id[-1] in "13":
                trial.lock = threading.Lock()

        def on_experiment_end(self, trials: Any, **_: Any) -> None:
            for trial in trials:
                if trial.trial_id[-1] in "13":
                    del trial.lock

    grid = sweeps.fit(sweeps.one_report, storage, [AddsLocks(), MemGuard()], samples=5)
    assert len(grid) == 5
    assert [r.config["a"] for r in grid] == [r.metrics["config"]["a"] for r in grid]
    [warning] = said(caplog, "in memory", "cannot be serialized")
    assert "lock" in warning
    trials = grid._experiment_analysis.trials
    assert sorted(t.trial_id[-1] for t in trials.resident()) == ["1", "3"]


def test_on_a_ray_with_another_method_nothing_is_spilled(
    storage: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Ray whose method has another first parameter; the sweep itself runs as ever."""
    renamed = TuneController.get_trial
    monkeypatch.setattr(TuneController, "get_trial", lambda self, name: renamed(self, name))
    grid = sweeps.fit(sweeps.one_report, storage, [MemGuard(every_trials=2)], samples=4)
    assert not is_guarded(grid)
    assert len(grid) == 4
    [warning] = said(caplog, "lacks")
    assert "TuneController.get_trial(tid)" in warning
    assert "memory grows" in warning
    assert ray.__version__ in warning
    assert len(said(caplog, "RSS", "MiB")) >= 2


def test_no_controller_at_all(
    storage: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray_tune_memguard.adapter.paths.calling_controller", lambda: None)
    grid = sweeps.fit(sweeps.one_report, storage, [MemGuard(every_trials=2)], samples=4)
    assert not is_guarded(grid)
    assert len(said(caplog, "No Ray Tune controller")) == 1
    assert said(caplog, "trial#4  RSS")


@pytest.fixture
def spilled_at_once(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many trials each spill took, as the sweep goes on."""
    from ray_tune_memguard.adapter.run.spiller import Spiller

    counts = []
    spill = Spiller.spill

    def counted(self: Any, finished: list[Any]) -> Any:
        spilled = spill(self, finished)
        if spilled.count:
            counts.append(spilled.count)
        return spilled

    monkeypatch.setattr(Spiller, "spill", counted)
    return counts


def test_trials_that_finish_in_quick_succession_are_spilled_together(
    storage: Path, spilled_at_once: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    # So long that, were it not for the end of the sweep, the last ones would stay in memory.
    monkeypatch.setattr("ray_tune_memguard.callbacks.trial_pruner.SPILL_EVERY_S", 30.0)
    guard = MemGuard()
    seen: list[int] = []
    probe = Probe(lambda finished, trials: seen.append(len(trials.resident())))
    grid = sweeps.fit(sweeps.one_report, storage, [guard, probe], samples=20)
    assert spilled_at_once == [1, 19]
    assert not grid._experiment_analysis.trials.resident()
    assert max(seen) >= 18
    assert len({result.config["a"] for result in grid}) == 20
    assert len(ExperimentAnalysis(grid.experiment_path).trials) == 20


@pytest.mark.parametrize("ending", ["callback", "searcher", "SIGINT"])
def test_what_waits_to_be_spilled_when_the_sweep_is_ended(
    storage: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    monkeypatch.setattr("ray_tune_memguard.callbacks.trial_pruner.SPILL_EVERY_S", 30.0)
    completed: list[str] = []
    has_ended: list[bool] = []

    class Ends(tune.Callback):
        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
            completed.append(trial.trial_id)

        def on_step_begin(self, **_: Any) -> None:
            if len(completed) < 6 or has_ended:
                return
            has_ended.append(True)
            if ending == "SIGINT":
                os.kill(os.getpid(), signal.SIGINT)
            elif ending == "callback":
                raise RuntimeError("planned")

        def __reduce__(self) -> Any:
            return tune.Callback, ()

    class Raises(tune.search.Searcher):
        def suggest(self, trial_id: str) -> dict[str, Any]:
            if len(completed) >= 6:
                raise RuntimeError("planned")
            return {"a": 0.5, "b": 0.1, "nested": {"c": 2}}

        def on_trial_complete(self, trial_id: str, *_: Any, **__: Any) -> None:
            pass

    by_searcher = ending == "searcher"
    arguments: dict[str, Any] = {
        "space": {} if by_searcher else None,
        "tune_config": {"search_alg": ConcurrencyLimiter(Raises(), 2)} if by_searcher else {},
    }
    raises = pytest.raises(RuntimeError, match="planned")
    with contextlib.nullcontext() if ending == "SIGINT" else raises:
        sweeps.fit(sweeps.one_report, storage, [MemGuard(), Ends()], samples=30, **arguments)
    trials = open_experiment(storage / "sweep")._experiment_analysis.trials
    finished = {trial.trial_id for trial in trials if trial.is_finished()}
    # The very last may have finished in the step that was broken off.
    assert finished >= set(completed[:6])
    store = next(storage.glob("sweep/.memguard/*.sqlite"))
    with contextlib.closing(sqlite3.connect(store)) as connection:
        rows = connection.execute("SELECT count(*) FROM trial").fetchone()[0]
    assert rows == len(finished)


@pytest.mark.parametrize("histories", ["files", "store"])
def test_a_kill_while_a_checkpoint_is_written_costs_no_finished_trial(
    storage: Path, monkeypatch: pytest.MonkeyPatch, histories: str
) -> None:
    """A checkpoint can take longer than all else in a step, so the spill comes before it."""
    monkeypatch.setenv("TUNE_GLOBAL_CHECKPOINT_S", "0")
    monkeypatch.setattr("ray_tune_memguard.callbacks.trial_pruner.SPILL_EVERY_S", 30.0)
    finished_and_resident: list[int] = []

    class AtCheckpoint(tune.Callback):
        trials: Any = None

        def on_step_begin(self, iteration: int, trials: Any, **_: Any) -> None:
            self.trials = trials

        def get_state(self) -> dict[str, Any]:
            trials = [] if self.trials is None else self.trials.resident()
            finished_and_resident.append(sum(trial.is_finished() for trial in trials))
            return {}

        def __reduce__(self) -> Any:
            return tune.Callback, ()

    guard = MemGuard(histories=histories)
    grid = sweeps.fit(sweeps.three_reports, storage, [guard, AtCheckpoint()], samples=8)
    assert grid.num_terminated == 8
    assert len(finished_and_resident) > 8
    # The first spill writes the checkpoint that it needs, and only then the first trial.
    assert sum(finished_and_resident) <= 2, finished_and_resident
    assert [len(result.metrics_dataframe) for result in grid] == [3] * 8


def test_a_trial_that_finishes_alone_is_spilled_at_once(
    storage: Path, spilled_at_once: list[int]
) -> None:
    def slow(config: dict[str, Any]) -> None:
        time.sleep(0.3)
        tune.report({"score": config["a"]})

    finished_and_resident = []

    class Waiting(tune.Callback):
        def on_step_end(self, iteration: int, trials: Any, **info: Any) -> None:
            finished_and_resident.append(sum(t.is_finished() for t in trials.resident()))

    grid = sweeps.fit(slow, storage, [MemGuard(), Waiting()], samples=6, concurrent=1)
    assert grid.num_terminated == 6
    assert spilled_at_once == [1] * 6
    assert not any(finished_and_resident)


@pytest.mark.usefixtures("spilled_in_their_step")
def test_after_an_error_of_ours_ray_goes_on_alone(
    storage: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray_tune_memguard.adapter.run.spiller import Spiller

    spill = Spiller.spill
    calls = 0

    def breaks(self: Any, finished: list[Any]) -> Any:
        nonlocal calls
        calls += 1
        if calls == 8:
            raise ZeroDivisionError("a bug of ours")
        return spill(self, finished)

    monkeypatch.setattr(Spiller, "spill", breaks)
    grid = sweeps.fit(sweeps.one_report, storage, [MemGuard()], samples=10)
    assert len(grid) == 10
    assert grid.num_terminated == 10
    assert len({result.config["a"] for result in grid}) == 10
    [warning] = said(caplog, "is disabled for the rest of this run")
    assert "a bug of ours" in warning
    assert len(ExperimentAnalysis(grid.experiment_path).trials) == 10


@pytest.mark.slow
@pytest.mark.parametrize("opened", [False, True])
def test_the_best_result_is_found_without_reading_all(
    storage: Path, monkeypatch: pytest.MonkeyPatch, opened: bool
) -> None:
    grid = sweeps.fit(sweeps.one_report, storage, [MemGuard()], samples=80)
    if opened:
        grid = open_experiment(grid.experiment_path)
    analysis = grid._experiment_analysis
    asked = [
        (metric, mode, scope)
        for metric in ("score", "training_iteration")
        for mode in ("min", "max")
        for scope in ("all", "last", "avg", "last-5-avg", "last-10-avg")
    ]
    analysis.trials.cache.deactivate_all()
    loads = 0
    load = TrialCache.activate

    def count(self: TrialCache, trial: Any) -> None:
        nonlocal loads
        loads += 1
        load(self, trial)

    monkeypatch.setattr(TrialCache, "activate", count)
    found = [grid.get_best_result(*one).metrics["trial_id"] for one in asked]
    assert loads <= 2 * len(asked)
    by_ray = ExperimentAnalysis.get_best_trial.__wrapped__  # type: ignore[attr-defined]
    assert found == [by_ray(analysis, *one).trial_id for one in asked]
    assert loads > 80


def test_of_a_single_trial_it_is_not_asked_what_it_reported(storage: Path) -> None:
    grid = sweeps.fit(sweeps.one_report, storage, [MemGuard()], samples=1)
    analysis = grid._experiment_analysis
    assert analysis.get_best_trial("never reported", "max") is analysis.trials[0]
