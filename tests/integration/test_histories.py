"""With ``histories="store"`` results are those of Ray's loggers, without a file for each trial."""

from __future__ import annotations

import json
import logging
import os
import signal
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem
from ray import tune
from ray.tune.analysis import ExperimentAnalysis
from ray.tune.logger import CSVLoggerCallback, LoggerCallback
from ray.tune.schedulers import PopulationBasedTraining

import ray_tune_memguard
from ray_tune_memguard import (
    MemGuard,
    export_results,
    iter_results,
    open_experiment,
    read_results,
)
from ray_tune_memguard.adapter.boundary import ENTRIES
from tests.integration import equality, sweeps
from tests.integration.equality import Both, Case
from tests.integration.killed_histories import kill
from tests.integration.test_loggers import scalars

pytestmark = pytest.mark.usefixtures("_without_remote_files")


@pytest.fixture(autouse=True, scope="module")
def _without_remote_files() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        # A trial that goes on after a pause gets its files from the storage, where they are those
        # of the last upload, whenever that was: Ray alone may lose lines by it.
        patch.setattr(LoggerCallback, "_restore_from_remote", lambda *_: None)
        yield


def keep() -> list[tune.Callback]:
    return [MemGuard(histories="store")]


def pbt() -> Any:
    return PopulationBasedTraining(
        time_attr="training_iteration",
        perturbation_interval=2,
        quantile_fraction=0.5,
        hyperparam_mutations={"a": [0.1, 0.9]},
        synch=True,
    )


CASES = {
    "some fail": Case(
        sweeps.fails_sometimes,
        space={**sweeps.SPACE, "nested": {"c": tune.grid_search([0, 1, 2])}},
        samples=1,
    ),
    "retried from a checkpoint": Case(
        sweeps.fails_first_time,
        run_config={"failure_config": tune.FailureConfig(max_failures=1)},
        space={**sweeps.SPACE, "nested": {"c": tune.grid_search([0, 1])}},
        samples=1,
    ),
    "no reports": Case(sweeps.never_reports, tune_config={"metric": None, "mode": None}, samples=2),
    "PBT": Case(
        sweeps.Stepwise,
        tune_config={"scheduler": partial(pbt)},
        run_config={
            "stop": {"training_iteration": 6},
            "checkpoint_config": tune.CheckpointConfig(checkpoint_frequency=1),
        },
        samples=2,
        concurrent=1,
    ),
}


@pytest.fixture(scope="module", params=CASES, ids=lambda name: name.replace(" ", "-"))
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    case = CASES[request.param]
    grids = [
        equality.run(case, tmp_path_factory.mktemp("results"), guards) for guards in ([], keep())
    ]
    return Both(*grids)


def of_loggers(grid: tune.ResultGrid) -> list[str]:
    """The files of Ray's loggers in an experiment."""
    found = Path(grid.experiment_path).glob("*/*")
    names = ("result.json", "progress.csv", "params.json", "params.pkl")
    return [path.name for path in found if path.name in names or path.name.startswith("events.")]


@pytest.mark.slow
def test_results_are_equal(both: Both) -> None:
    assert of_loggers(both.guarded) == []
    equality.assert_equal(both, leave_out=("files",))


def test_exported_files_are_equal(both: Both) -> None:
    export_results(both.guarded.experiment_path)
    equality.check_files(both)
    guarded, plain = scalars(both.guarded), scalars(both.plain)
    assert guarded.keys() == plain.keys()
    # With two files of events in the same second, Ray has the later one.
    assert all(set(plain[tag]) <= set(points) for tag, points in guarded.items())
    # A second export replaces the files of the first.
    export_results(both.guarded.experiment_path)
    equality.check_files(both)


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> tune.ResultGrid:
    case = Case(sweeps.three_reports, samples=5)
    return equality.run(case, tmp_path_factory.mktemp("results"), keep())


def test_no_directory_is_left_for_a_trial(grid: tune.ResultGrid) -> None:
    trials = grid._experiment_analysis.trials
    assert [trial for trial in trials if Path(trial.local_path).exists()] == []
    experiment = Path(grid.experiment_path)
    assert [path.name for path in experiment.iterdir() if path.is_dir()] == [".memguard"]


def test_all_results_are_read(grid: tune.ResultGrid) -> None:
    frames = [result.metrics_dataframe for result in grid]
    assert [len(frame) for frame in frames] == [3] * 5
    found = read_results(grid.experiment_path, columns=["training_iteration", "score"])
    assert list(found["training_iteration"]) == [1, 2, 3] * 5
    assert list(found["score"]) == [score for frame in frames for score in frame["score"]]
    opened = open_experiment(grid.experiment_path)
    by_id = {frame["trial_id"][0]: frame for frame in frames}
    for result in opened:
        pd.testing.assert_frame_equal(result.metrics_dataframe, by_id[result.metrics["trial_id"]])


@pytest.mark.parametrize("to", ["parquet", "csv", "json"])
def test_one_file_for_all(grid: tune.ResultGrid, tmp_path: Path, to: Any) -> None:
    target = tmp_path / f"all.{to}"
    assert export_results(grid.experiment_path, to, destination=target) == str(target)
    read: dict[str, Callable[..., pd.DataFrame]] = {
        "parquet": pd.read_parquet,
        "csv": pd.read_csv,
        "json": partial(pd.read_json, lines=True),
    }
    assert sorted(read[to](target)["score"]) == pytest.approx(
        sorted(read_results(grid.experiment_path)["score"])
    )


def test_files_go_elsewhere(grid: tune.ResultGrid, tmp_path: Path) -> None:
    export_results(grid.experiment_path, destination=tmp_path)
    assert len(list(tmp_path.glob("*/result.json"))) == 5
    assert of_loggers(grid) == []


def test_what_cannot_be_exported(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'xml'"):
        export_results(tmp_path, to="xml")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no experiment"):
        export_results(tmp_path)


@pytest.mark.latest_only
def test_a_users_own_logger_runs_as_ever(storage: Path) -> None:
    callbacks = [CSVLoggerCallback()]
    case = Case(sweeps.three_reports, run_config={"callbacks": callbacks}, samples=2)
    grid = equality.run(case, storage, keep())
    assert of_loggers(grid) == ["progress.csv"] * 2
    assert [len(result.metrics_dataframe) for result in grid] == [3, 3]
    assert len(list(iter_results(grid.experiment_path))) == 6


@pytest.mark.latest_only
def test_trials_of_one_name_keep_their_own_results(storage: Path) -> None:
    """Ray makes such names unique by what is there, so an empty directory must stay."""
    name = {"trial_dirname_creator": lambda trial: "always the same"}
    case = Case(sweeps.three_reports, tune_config=name, samples=4, concurrent=1)
    grid = equality.run(case, storage, keep())
    assert len({result.path for result in grid}) == 4
    assert of_loggers(grid) == []
    before = [result.metrics_dataframe["score"].tolist() for result in grid]
    export_results(grid.experiment_path)
    again = open_experiment(grid.experiment_path)
    assert [result.metrics_dataframe["score"].tolist() for result in again] == before
    assert sorted(map(len, iterations_in(Path(grid.experiment_path)))) == [3] * 4


class Later(LoggerCallback):
    """Goes into the directories of trials when they have ended, as the process of W&B does."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.seen: list[bool] = []

    def log_trial_end(self, trial: Any, failed: bool = False) -> None:
        self.paths.append(trial.local_path)

    def on_experiment_end(self, **_: Any) -> None:
        self.seen = [os.path.isdir(path) for path in self.paths]


@pytest.mark.latest_only
def test_a_users_own_logger_finds_the_directories_of_trials(storage: Path) -> None:
    logger = Later()
    case = Case(sweeps.one_report, run_config={"callbacks": [logger]}, samples=3)
    equality.run(case, storage, keep())
    assert logger.seen == [True] * 3
    assert len(set(logger.paths)) == 3


@pytest.mark.latest_only
def test_uploads_leave_no_empty_directory(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNE_GLOBAL_CHECKPOINT_S", "0")
    grid = equality.run(Case(sweeps.one_report, samples=12, concurrent=2), storage, keep())
    experiment = Path(grid.experiment_path)
    assert [path.name for path in experiment.iterdir() if path.is_dir()] == [".memguard"]


@pytest.mark.latest_only
def test_without_a_change_of_code(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNE_MEMGUARD_HISTORIES", "store")
    monkeypatch.setenv("RAY_TUNE_CALLBACKS", "ray_tune_memguard.MemGuard")
    grid = equality.run(Case(sweeps.one_report, samples=2), storage, [])
    assert of_loggers(grid) == []
    assert [len(result.metrics_dataframe) for result in grid] == [1, 1]


class Interrupts(tune.Callback):
    """Stops the run after some results, as Ctrl+C does."""

    def __init__(self, results: int) -> None:
        self.left = results

    def on_trial_result(self, **_: Any) -> None:
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGINT)

    def __reduce__(self) -> Any:
        return tune.Callback, ()


def test_a_resumed_run_continues_the_histories(tmp_path_factory: pytest.TempPathFactory) -> None:
    frames, files = [], []
    for guards in ([], keep()):
        case = Case(
            sweeps.Stepwise,
            run_config={
                "callbacks": [Interrupts(4)],
                "stop": {"training_iteration": 6},
                "checkpoint_config": tune.CheckpointConfig(checkpoint_frequency=1),
            },
            samples=2,
            concurrent=1,
        )
        storage = tmp_path_factory.mktemp("results")
        begun = equality.run(case, storage, guards)
        assert len(begun[0].metrics_dataframe) == 4
        grid = tune.Tuner.restore(str(storage / "sweep"), trainable=sweeps.Stepwise).fit()
        if guards:
            assert of_loggers(grid) == []
            export_results(grid.experiment_path)
        frames.append(
            {
                result.metrics["trial_id"]: equality.normal(result.metrics_dataframe)
                for result in grid
            }
        )
        files.append(equality.files(grid))
    plain, guarded = frames
    assert guarded == plain
    assert len(plain) == 2
    assert files[1] == files[0]


@pytest.mark.latest_only
def test_a_run_that_began_with_files_goes_on_in_the_store(storage: Path) -> None:
    case = Case(
        sweeps.Stepwise,
        run_config={
            "callbacks": [Interrupts(3)],
            "stop": {"training_iteration": 5},
            "checkpoint_config": tune.CheckpointConfig(checkpoint_frequency=1),
        },
        samples=1,
    )
    equality.run(case, storage, [])
    tuner = tune.Tuner.restore(str(storage / "sweep"), trainable=sweeps.Stepwise)
    tuner._local_tuner._run_config.callbacks = keep()
    [result] = tuner.fit()
    found = list(result.metrics_dataframe["training_iteration"])
    # The third was reported before its checkpoint was there, so it may run again.
    assert found in ([1, 2, 3, 4, 5], [1, 2, 3, 3, 4, 5])
    assert len(list(iter_results(storage / "sweep"))) == len(found)


@pytest.mark.latest_only
def test_runs_with_and_without_the_store_take_turns(storage: Path) -> None:
    case = Case(
        sweeps.Stepwise,
        run_config={
            "stop": {"training_iteration": 7},
            "checkpoint_config": tune.CheckpointConfig(checkpoint_frequency=1),
        },
        samples=1,
    )
    case.run_config["callbacks"] = [Interrupts(2)]
    equality.run(case, storage, keep())
    for callbacks in ([Interrupts(4)], keep()):
        tuner = tune.Tuner.restore(str(storage / "sweep"), trainable=sweeps.Stepwise)
        tuner._local_tuner._run_config.callbacks = callbacks
        grid = tuner.fit()
    [file] = (storage / "sweep").glob("*/result.json")
    # As a driver leaves it that is killed while it writes.
    with file.open("a") as appended:
        appended.write('{"training_iteration": 5')
    found = [result["training_iteration"] for result in iter_results(storage / "sweep")]
    # What was reported before its checkpoint was there runs again, once for each restore; on a busy
    # machine that may be more than one result.
    again = [(one, then) for one, then in pairwise(found) if then != one + 1]
    assert len(again) <= 2
    assert all(then <= one for one, then in again)
    assert set(found) == set(range(1, 8))
    assert list(grid[0].metrics_dataframe["training_iteration"]) == found
    export_results(storage / "sweep")
    assert iterations_in(storage / "sweep") == [found]


def iterations_in(directory: Path) -> list[list[int]]:
    """The iterations in each ``result.json``."""
    return [
        [json.loads(line)["training_iteration"] for line in path.read_text().splitlines()]
        for path in sorted(directory.glob("*/result.json"))
    ]


@pytest.mark.latest_only
def test_an_unexpected_error_brings_rays_loggers_back(
    storage: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    entry = ENTRIES["HistoryLogger.log_trial_result"]
    ours, calls = entry.ours, 0

    def fails_at_the_fifth(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyError("a bug of ours")
        return ours(*args)

    monkeypatch.setattr(entry, "ours", fails_at_the_fifth)
    with caplog.at_level(logging.WARNING, "ray_tune_memguard"):
        grid = equality.run(Case(sweeps.three_reports, samples=3, concurrent=1), storage, keep())
    assert sum("a bug of ours" in record.getMessage() for record in caplog.records) == 1
    found = [list(result.metrics_dataframe["training_iteration"]) for result in grid]
    assert found == [[1, 2, 3]] * 3
    # Later results, and those before of the trial that went on, are in files.
    assert iterations_in(Path(grid.experiment_path)) == [[1, 2, 3]] * 2
    export_results(grid.experiment_path, destination=storage / "exported")
    assert iterations_in(storage / "exported") == [[1, 2, 3]] * 3


@pytest.mark.latest_only
def test_a_store_that_cannot_be_opened_leaves_rays_loggers(
    storage: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (storage / "sweep" / ".memguard" / "histories.sqlite").mkdir(parents=True)
    with caplog.at_level(logging.WARNING, "ray_tune_memguard"):
        grid = equality.run(Case(sweeps.one_report, samples=1), storage, keep())
    assert sum("Ray's loggers write them" in r.getMessage() for r in caplog.records) == 1
    assert sorted(of_loggers(grid))[1:] == [
        "params.json",
        "params.pkl",
        "progress.csv",
        "result.json",
    ]


def test_a_storage_apart_from_the_drivers_staging(tmp_path: Path) -> None:
    filesystem = SubTreeFileSystem(str(tmp_path), LocalFileSystem())
    case = Case(sweeps.with_checkpoints, run_config={"storage_filesystem": filesystem}, samples=2)
    grid = equality.run(case, Path("results"), keep())
    assert of_loggers(grid) == []
    opened = open_experiment("results/sweep", storage_filesystem=filesystem)
    assert [len(result.metrics_dataframe) for result in [*grid, *opened]] == [3] * 4
    export_results("results/sweep", storage_filesystem=filesystem)
    assert len(list(tmp_path.glob("results/sweep/*/result.json"))) == 2


@pytest.mark.slow
@pytest.mark.latest_only
def test_a_killed_driver_loses_no_result(tmp_path: Path) -> None:
    outcome = kill(2.5, tmp_path)
    assert outcome["was_running"]
    assert outcome["settled"] > 10
    assert outcome["lost"] == outcome["short_histories"] == 0


def test_opened_by_ray_alone_without_histories(storage: Path) -> None:
    """Ray reads the last results, which are in the experiment state file."""
    grid = equality.run(Case(sweeps.one_report, samples=2), storage, keep())
    (storage / "sweep" / ".memguard").rename(storage / "elsewhere")
    ray_tune_memguard.uninstall()
    try:
        analysis = ExperimentAnalysis(grid.experiment_path)
        assert len(analysis.results_df) == 2
        assert all(frame.empty for frame in analysis.trial_dataframes.values())
    finally:
        ray_tune_memguard.install()
    # With this package the last result of a trial is its history.
    analysis = ExperimentAnalysis(grid.experiment_path)
    assert [len(frame) for frame in analysis.trial_dataframes.values()] == [1, 1]
    assert list(analysis.dataframe()["score"]) == list(analysis.results_df["score"])
