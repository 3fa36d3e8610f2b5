"""Loggers and callbacks see and write what they do without MemGuard."""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from ray import tune
from ray.tune.analysis import ExperimentAnalysis
from ray.tune.logger import LoggerCallback

from ray_tune_memguard import MemGuard
from tests.integration import equality, sweeps
from tests.integration.equality import Both, Case


class Diary(LoggerCallback):
    """A user's logger: one line for each call that it gets."""

    def __init__(self) -> None:
        self.lines: list[Any] = []

    def log_trial_start(self, trial: Any) -> None:
        self.lines.append(("start", str(trial), trial.config["a"]))

    def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
        self.lines.append(("result", str(trial), sweeps.stable(result)))

    def log_trial_save(self, trial: Any) -> None:
        self.lines.append(("save", str(trial), equality.normal(trial.checkpoint)))

    def log_trial_end(self, trial: Any, failed: bool = False) -> None:
        self.lines.append(("end", str(trial), failed, sweeps.stable(trial.last_result)))

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        self.lines.append(("over", [equality.trial_answers(trial) for trial in trials]))


class OpensTheStagingDirectory(tune.Callback):
    """Opens the experiment in Ray's local directory after each trial, as plotting callbacks do."""

    def __init__(self) -> None:
        self.opened: list[Any] = []

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        analysis = sweeps.raised(lambda: ExperimentAnalysis(trial.local_experiment_path))
        if isinstance(analysis, ExperimentAnalysis):
            analysis = {
                found.trial_id: (
                    found.status,
                    found.config,
                    found.last_result["score"],
                    equality.normal(found.local_path),
                    equality.normal(analysis.trial_dataframes[found.trial_id]),
                )
                for found in analysis.trials
                if found.is_finished()
            }
        self.opened.append(analysis)


def case(*callbacks: Any) -> Case:
    return Case(
        sweeps.saves_then_fails_sometimes,
        run_config={"callbacks": partial(list, callbacks)},
        space={**sweeps.SPACE, "nested": {"c": tune.grid_search([0, 1, 2, 4])}},
        samples=1,
        concurrent=1,
    )


def events(folder: Path) -> Iterator[Any]:
    """The records of all event files of TensorBoard in a folder."""
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted(folder.glob("events.*")):
        data = path.read_bytes()
        while data:
            [length] = struct.unpack("<Q", data[:8])
            yield Event.FromString(data[12 : 12 + length])
            data = data[12 + length + 4 :]


def scalars(grid: tune.ResultGrid) -> dict[str, Any]:
    """What TensorBoard would draw, by trial and tag."""
    found: dict[str, Any] = defaultdict(list)
    for folder in sorted(Path(grid.experiment_path).iterdir()):
        for event in events(folder) if folder.is_dir() else ():
            for value in event.summary.value:
                tag = value.tag.removeprefix("ray/tune/")
                if tag not in sweeps.VOLATILE:
                    point = equality.normal(value.simple_value)
                    found[equality.normal(f"{folder.name}: {tag}")].append((event.step, point))
    return dict(found)


def mlflow_runs(folder: Path) -> dict[str, Any]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=tracking_uri(folder))
    [experiment] = [e for e in client.search_experiments() if e.name == "sweep"]
    return {
        run.info.run_name: (
            run.info.status,
            run.data.params,
            sweeps.stable(run.data.metrics),
            run.data.tags.get("trial_name"),
            [
                (point.step, equality.normal(point.value))
                for point in client.get_metric_history(run.info.run_id, "score")
            ],
        )
        for run in client.search_runs([experiment.experiment_id])
    }


def tracking_uri(folder: Path) -> str:
    return f"file:{folder}"


def test_loggers_and_callbacks(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow", reason="mlflow is not installed")
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    # MLflow would rather have a database; the files are what works without a server.
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    grids, diaries, runs = [], [], []
    for guards in ([], [MemGuard()]):
        storage = tmp_path_factory.mktemp("results")
        diary = Diary()
        mlflow = MLflowLoggerCallback(
            tracking_uri=tracking_uri(storage / "mlflow"),
            experiment_name="sweep",
            tags={"by": "test"},
            save_artifact=True,
        )
        grids.append(equality.run(case(mlflow, diary), storage, guards))
        diaries.append(diary.lines)
        runs.append(mlflow_runs(storage / "mlflow"))
    both = Both(*grids)
    equality.assert_equal(both)
    assert diaries[1] == diaries[0]
    assert [line[0] for line in diaries[0]].count("end") == 4
    assert runs[1] == runs[0]
    assert sorted(status for status, *_ in runs[0].values()) == ["FAILED", *["FINISHED"] * 3]
    assert scalars(both.guarded) == scalars(both.plain)
    assert len(scalars(both.plain)) > 8


def test_a_callback_that_opens_the_staging_directory(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNE_GLOBAL_CHECKPOINT_S", "0")
    opened = []
    for guards in ([], [MemGuard()]):
        callback = OpensTheStagingDirectory()
        sweep = Case(
            sweeps.one_report,
            run_config={"callbacks": partial(list, [callback])},
            samples=4,
            concurrent=1,
        )
        equality.run(sweep, tmp_path_factory.mktemp("results"), guards)
        opened.append(callback.opened)
    plain, guarded = opened
    assert [len(trials) for trials in plain] == [0, 1, 2, 3]
    assert guarded == plain
