"""Results wait in memory while the disk or the storage is not there, and the run goes on."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pyarrow.fs import LocalFileSystem
from ray.tune.logger import CSVLoggerCallback, JsonLoggerCallback

from ray_tune_memguard.adapter.histories import places, reading, recorder
from ray_tune_memguard.adapter.histories.logger import HistoryLogger
from ray_tune_memguard.adapter.histories.recorder import HistoryRecorder
from ray_tune_memguard.notices import Notices
from ray_tune_memguard.store.histories import HistoryStore


class Trial:
    """A trial as far as a recorder and Ray's loggers ask it."""

    trial_id, storage, checkpoint, status = "one", None, None, "RUNNING"
    config, evaluated_params = {"lr": 0.1}, {"lr": 0.1}

    def __init__(self, directory: Path) -> None:
        self.local_path = str(directory)
        self.relative_logdir = directory.name

    def init_local_path(self) -> None:
        Path(self.local_path).mkdir(exist_ok=True)

    def is_finished(self) -> bool:
        return self.status == "TERMINATED"


@pytest.fixture
def trial(tmp_path: Path) -> Any:
    return Trial(tmp_path / "trial_one")


@pytest.fixture
def controller(tmp_path: Path, trial: Any) -> Any:
    class Controller:
        _storage = SimpleNamespace(
            storage_filesystem=LocalFileSystem(),
            experiment_fs_path=str(tmp_path),
            experiment_driver_staging_path=str(tmp_path / "staging"),
        )
        _callbacks = SimpleNamespace(_callbacks=[])
        _trials = (trial,)

    return Controller()


@pytest.fixture
def logger(controller: Any) -> Iterator[HistoryLogger]:
    replaced = [CSVLoggerCallback(), JsonLoggerCallback()]
    made = HistoryLogger(recording(controller), replaced, controller)
    controller._callbacks._callbacks[:] = [made]
    yield made
    made.recorder.store.close()


def recording(controller: Any) -> HistoryRecorder:
    return HistoryRecorder(places.open_for_run(controller), controller, Notices())


def refuse(patch: pytest.MonkeyPatch, *names: str) -> None:
    """Let methods of the store fail as on a full disk."""

    def fail(*_: Any, **__: Any) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    for name in names:
        patch.setattr(HistoryStore, name, fail)


def steps(made: HistoryLogger) -> list[int]:
    return [result["step"] for result in made.recorder.store.history("one").results]


def test_a_file_that_cannot_grow_does_not_end_the_recording(
    logger: HistoryLogger,
    trial: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(recorder, "_SYNC_EVERY_S", 0.0)
    monkeypatch.setattr(recorder, "COMMIT_EVERY_S", 0.0)
    with monkeypatch.context() as patch:
        refuse(patch, "sync")
        for step in (1, 2):
            logger.log_trial_result(step, trial, {"step": step})
            assert logger.commit(now=True)
    assert logger.is_in_place
    assert caplog.text.count("disk is full") == 1
    logger.log_trial_result(3, trial, {"step": 3})
    assert logger.commit(now=True)
    assert steps(logger) == [1, 2, 3]


@pytest.mark.parametrize("checkpoint", [None, "checkpoint_000000"])
def test_a_trial_that_begins_on_a_full_disk(
    controller: Any, trial: Any, monkeypatch: pytest.MonkeyPatch, checkpoint: Any
) -> None:
    """A resumed run continues a trial from its checkpoint, and begins any other one anew."""
    first = HistoryLogger(recording(controller), [], controller)
    first.log_trial_result(1, trial, {"step": 1})
    first.close()
    first.recorder.store.close()
    controller._storage.experiment_driver_staging_path += "-2"
    trial.checkpoint = checkpoint
    second = HistoryLogger(recording(controller), [], controller)
    with monkeypatch.context() as patch:
        refuse(patch, "_transaction")
        second.log_trial_start(trial)
        second.log_trial_result(2, trial, {"step": 2})
        assert not second.commit(now=True)
        assert second.is_in_place
        assert [r["step"] for r in second.recorder.history("one").results][-1] == 2
    second.recorder._commit_at = 0.0
    assert second.commit(now=True)
    assert steps(second) == ([1, 2] if checkpoint else [2])
    assert second.recorder.store.history("one").starts == ((1,) if checkpoint else ())
    second.close()


def test_a_storage_that_is_not_there_for_a_moment(
    logger: HistoryLogger,
    trial: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What an earlier run wrote to files stays there, and is read from there."""

    def fail(_: Any) -> bytes:
        raise OSError("the storage is not there")

    monkeypatch.setattr(recorder, "_earlier_file", fail)
    logger.log_trial_start(trial)
    logger.log_trial_result(1, trial, {"step": 2})
    assert logger.commit(now=True)
    assert logger.is_in_place
    assert "is not there" in caplog.text
    assert steps(logger) == [2]
    assert logger.recorder.store.get_metadata("files")


def test_results_of_an_earlier_run_are_taken_over(
    logger: HistoryLogger, trial: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "_earlier_file", lambda _: b'{"step": 1}\n{"step": 2}\n')
    logger.log_trial_start(trial)
    logger.log_trial_result(1, trial, {"step": 3})
    assert logger.commit(now=True)
    assert steps(logger) == [1, 2, 3]
    assert logger.recorder.store.history("one").starts == (2,)


STORE, RAY_ALONE = "store", "Ray alone"


@pytest.mark.parametrize(
    "session_of",
    [lambda run: run, lambda run: 0, lambda run: min(run, 1)],
    ids=["new sessions", "one session", "two sessions"],
)
@pytest.mark.parametrize("checkpoint", [None, "checkpoint_000000"])
@pytest.mark.parametrize(
    "runs",
    [
        (RAY_ALONE, STORE),
        (RAY_ALONE, STORE, STORE),
        (RAY_ALONE, STORE, RAY_ALONE),
        (STORE, RAY_ALONE, STORE),
        (STORE, RAY_ALONE, STORE, RAY_ALONE),
        (RAY_ALONE, RAY_ALONE, STORE, RAY_ALONE, STORE),
    ],
    ids=", ".join,
)
def test_a_trial_has_the_results_that_it_would_have_in_files(
    controller: Any, tmp_path: Path, runs: Any, checkpoint: Any, session_of: Any
) -> None:
    """Ray begins a new file for a trial without a checkpoint, unless its session is the same."""
    published = tmp_path / "trial_one" / "result.json"
    published.parent.mkdir()
    expected: list[int] = []
    for number, kind in enumerate(runs):
        staging = tmp_path / f"staging-{session_of(number)}"
        controller._storage.experiment_driver_staging_path = str(staging)
        trial: Any = Trial(staging / "trial_one")
        trial.storage = SimpleNamespace(
            storage_filesystem=LocalFileSystem(), trial_fs_path=str(published.parent)
        )
        trial.checkpoint = checkpoint if number else None
        Path(trial.local_path).mkdir(parents=True, exist_ok=True)
        results = [{"step": 2 * number + more, "timestamp": number} for more in (0, 1)]
        goes_on = number and (checkpoint or session_of(number) == session_of(number - 1))
        before = expected
        expected = [*(before if goes_on else []), *(result["step"] for result in results)]
        if kind == STORE:
            made = HistoryLogger(recording(controller), [], controller)
            made.log_trial_start(trial)
            for result in results:
                made.log_trial_result(1, trial, result)
            made.close()
            made.recorder.store.close()
        else:
            staged = Path(trial.local_path, "result.json")
            if trial.checkpoint and published.exists():
                staged.write_bytes(published.read_bytes())
            with staged.open("a") as file:
                file.writelines(json.dumps(result) + "\n" for result in results)
            published.write_bytes(staged.read_bytes())
    if not goes_on and runs[-2:] == (STORE, RAY_ALONE):
        # Nothing tells whether Ray alone went on with a trial of the store, or began it again.
        expected = before + expected
    with contextlib.closing(HistoryStore.open(places.local_file(controller))) as store:
        found = reading.lines(store, "one", published.read_bytes())
    assert [result["step"] for result in reading.results_in(found)] == expected


@pytest.mark.parametrize("began_in", [RAY_ALONE, STORE])
@pytest.mark.parametrize("goes_on", [False, True], ids=["failed", "went on with Ray alone"])
def test_a_trial_from_scratch_that_reports_nothing(
    controller: Any, trial: Any, tmp_path: Path, began_in: str, goes_on: bool
) -> None:
    """Ray's logger replaces its file by an empty one."""
    published = tmp_path / "trial_one" / "result.json"
    published.parent.mkdir()
    trial.storage = SimpleNamespace(
        storage_filesystem=LocalFileSystem(), trial_fs_path=str(published.parent)
    )
    trial.local_path = str(tmp_path / "none")
    if began_in == STORE:
        made = HistoryLogger(recording(controller), [], controller)
        made.log_trial_result(1, trial, {"step": 1, "timestamp": 1})
        made.close()
        made.recorder.store.close()
    published.write_text('{"step": 2, "timestamp": 2}\n')
    controller._storage.experiment_driver_staging_path += "-2"
    made = HistoryLogger(recording(controller), [], controller)
    made.log_trial_start(trial)
    made.log_trial_end(trial, failed=True)
    made.close()
    made.recorder.store.close()
    later = {"step": 3, "timestamp": int(time.time()) + 1}
    if goes_on:
        with published.open("a") as file:
            file.write(json.dumps(later) + "\n")
    with contextlib.closing(HistoryStore.open(places.local_file(controller))) as store:
        found = reading.lines(store, "one", published.read_bytes())
    assert reading.results_in(found) == ([later] if goes_on else [])


def test_what_could_not_be_committed_goes_to_files(
    logger: HistoryLogger,
    trial: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    logger.log_trial_result(1, trial, {"step": 1})
    assert logger.commit(now=True)
    logger.log_trial_result(2, trial, {"step": 2})
    refuse(monkeypatch, "append", "set_metadata", "finalize")
    logger.give_back()
    assert "could not be written" in caplog.text
    content = Path(trial.local_path, "result.json").read_text()
    assert content == '{"step": 1}\n{"step": 2}\n'


def test_one_step_that_fails_does_not_keep_back_the_others(
    logger: HistoryLogger, trial: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger.log_trial_result(1, trial, {"step": 1})
    refuse(monkeypatch, "set_metadata")
    logger.give_back()
    assert steps(logger) == [1]
    assert Path(trial.local_path, "result.json").exists()


def test_files_of_a_users_own_loggers_stay_open(logger: HistoryLogger, trial: Any) -> None:
    own = JsonLoggerCallback()
    trial.init_local_path()
    own.log_trial_start(trial)
    events = Path(trial.local_path, "events.out.tfevents.1.host")
    events.write_bytes(b"own")
    logger._replaced = [CSVLoggerCallback()]
    result = {"step": 1, "training_iteration": 1}
    own.log_trial_result(1, trial, result)
    logger.log_trial_result(1, trial, result)
    logger.give_back()
    own.log_trial_result(2, trial, {"step": 2})
    assert Path(trial.local_path, "result.json").read_text().count("\n") == 2
    assert events.read_bytes() == b"own"
    assert {path.name for path in Path(trial.local_path).iterdir()} == {
        "result.json",
        "params.json",
        "params.pkl",
        "progress.csv",
        events.name,
    }
