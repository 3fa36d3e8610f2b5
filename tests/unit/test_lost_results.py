"""Results that a killed driver left elsewhere are read there; of lost ones the last is known."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem
from ray.tune import Callback, ExperimentAnalysis
from ray.tune.logger import CSVLoggerCallback, JsonLoggerCallback, TBXLoggerCallback

from ray_tune_memguard import export_results, iter_results, open_experiment
from ray_tune_memguard.adapter.histories import last_results, places, reading
from ray_tune_memguard.adapter.histories.logger import HistoryLogger
from ray_tune_memguard.adapter.incomplete_export import IncompleteExportError
from ray_tune_memguard.adapter.restore.locate import StateFile
from ray_tune_memguard.adapter.run.checkpoint import _keeps_histories, with_pointer
from ray_tune_memguard.notices import Notices
from ray_tune_memguard.store.histories import FILE_NAME, HistoryStore
from ray_tune_memguard.store.result_values import ResultEncoder
from ray_tune_memguard.store.snapshot import Snapshot
from ray_tune_memguard.store.trial_store import TrialRow, TrialStore
from tests.unit.fakes import NO_SUMMARIES

RUN = "2026-11-22_10-00-00"
TRIALS = {
    "a": [{"loss": 3.0, "text": "x"}, {"loss": 2.0, "text": "x"}],
    "b": [{"loss": 1.0, "text": "x"}, {"loss": 4.0, "text": "x"}],
    "silent": [],
}
LAST = {"a": 2.0, "b": 4.0}


def record(trial_id: str) -> list[str]:
    """A trial in the experiment state file."""
    # Ray adds the tag when its loggers have the result.
    last = {**TRIALS[trial_id][-1], "experiment_tag": "1"} if TRIALS[trial_id] else {}
    state = {
        "trial_id": trial_id,
        "status": "TERMINATED",
        "config": {"lr": 0.1},
        "relative_logdir": f"trial_{trial_id}",
        "stub": True,
    }
    metadata = {
        "last_result": {**last, "trial_id": trial_id},
        "last_result_time": 0.0,
        "metric_analysis": {},
        "error_filename": None,
    }
    return [json.dumps(state), json.dumps(metadata)]


def write_state(path: Path, keeps_histories: bool, staging: Path, store: Path) -> None:
    path.mkdir(exist_ok=True)
    trials = [record(trial_id) for trial_id in TRIALS]
    state = json.dumps({"trial_data": trials, "runner_data": {}, "stats": {}})
    file = path / f"experiment_state-{RUN}.json"
    file.write_text(with_pointer(state, store, staging, 1, keeps_histories))


Killed = Callable[[bool], Path]


@pytest.fixture
def staging(tmp_path: Path) -> Path:
    return tmp_path / "session" / "sweep"


@pytest.fixture
def killed(tmp_path: Path, staging: Path, monkeypatch: pytest.MonkeyPatch) -> Killed:
    """Makes the experiment of a killed run: its trials have ended, and none has files in it."""
    monkeypatch.setattr(last_results, "_notices", Notices())

    def make(keeps_histories: bool) -> Path:
        path = tmp_path / "storage" / "sweep"
        path.mkdir(parents=True)
        store = TrialStore.create(path / ".memguard", f"trials-{RUN}")
        store.set_metadata(experiment=str(path), staging=str(staging))
        Snapshot(
            state=json.dumps({"trial_data": [], "runner_data": {}}),
            positions=[],
            creation_count=0,
            summaries=NO_SUMMARIES,
            files=None,
        ).save(store)
        with store.transaction():
            for position, trial_id in enumerate(TRIALS):
                entry = json.dumps(record(trial_id)).encode()
                row = TrialRow(trial_id, "TERMINATED", False, entry, f"trial_{trial_id}")
                store.put(position, row)
        write_state(path, keeps_histories, staging, store.path)
        store.finalize()
        store.close()
        return path

    return make


def write(directory: Path, *trial_ids: str) -> None:
    """Write the ``result.json`` of trials as Ray's logger does."""
    for trial_id in trial_ids:
        folder = directory / f"trial_{trial_id}"
        folder.mkdir(parents=True)
        lines = [json.dumps({**one, "trial_id": trial_id}) for one in TRIALS[trial_id]]
        (folder / "result.json").write_text("".join(f"{line}\n" for line in lines))


def losses(path: str | Path, **where: Any) -> dict[str, list[float]]:
    """What each way of reading gives of the trials, which must be the same."""
    grid = open_experiment(path, **where)
    frame = grid.get_dataframe()
    frames = grid._experiment_analysis.trial_dataframes
    found = {name: list(one["loss"]) for name, one in frames.items() if len(one)}
    last = {name: history[-1] for name, history in found.items()}
    assert (dict(zip(frame["trial_id"], frame["loss"], strict=True)) if len(frame) else {}) == last
    streamed: dict[str, list[Any]] = {}
    for result in iter_results(path, **where):
        streamed.setdefault(str(result["trial_id"]), []).append(result["loss"])
    assert streamed == found
    assert "experiment_tag" not in frame
    return found


def test_results_that_were_kept_in_a_store(
    killed: Killed, caplog: pytest.LogCaptureFixture
) -> None:
    path = killed(True)
    write(path, "a")
    assert losses(path) == {"a": [3.0, 2.0], "b": [4.0]}
    [said] = [r.message for r in caplog.records if "only the last result" in r.message]
    assert "the first of them is b." in said


def test_lost_files_are_lost_as_with_ray_alone(killed: Killed) -> None:
    path = killed(False)
    write(path, "a")
    assert losses(path) == {"a": [3.0, 2.0]}


def test_a_run_that_kept_no_results(killed: Killed, caplog: pytest.LogCaptureFixture) -> None:
    """As with Ray alone, it has none."""
    assert losses(killed(False)) == {}
    assert "only the last result" not in caplog.text


def store_history(path: Path, *trial_ids: str) -> None:
    encoder = ResultEncoder(replace=str)
    store = HistoryStore.open_to_write(path / ".memguard" / FILE_NAME)
    rows = {
        trial_id: [encoder.encode({**one, "trial_id": trial_id}) for one in TRIALS[trial_id]]
        for trial_id in trial_ids
    }
    store.append(rows, trial_ids)
    store.finalize()
    store.close()


def test_histories_that_lack_a_trial(killed: Killed, caplog: pytest.LogCaptureFixture) -> None:
    path = killed(False)
    store_history(path, "a")
    assert losses(path) == {"a": [3.0, 2.0], "b": [4.0]}
    assert caplog.text.count("only the last result") == 1


@pytest.mark.parametrize(("keeps_histories", "found"), [(True, LAST), (False, {})])
def test_a_lost_machine(tmp_path: Path, keeps_histories: bool, found: dict[str, float]) -> None:
    """The storage has the experiment state file, and nothing else of the run."""
    write_state(tmp_path / "sweep", keeps_histories, tmp_path / "gone", tmp_path / "gone.sqlite")
    filesystem = SubTreeFileSystem(str(tmp_path), LocalFileSystem())
    streamed = iter_results("sweep", storage_filesystem=filesystem)
    assert {str(one["trial_id"]): one["loss"] for one in streamed} == found


def trial_without_files(path: Path, **last_result: Any) -> Any:
    storage = SimpleNamespace(
        storage_filesystem=LocalFileSystem(),
        experiment_fs_path=str(path),
        trial_fs_path=f"{path}/trial_b",
    )
    metadata = SimpleNamespace(last_result=last_result)
    return SimpleNamespace(trial_id="b", storage=storage, run_metadata=metadata)


def not_found(*_: Any) -> Any:
    raise FileNotFoundError("result.json")


def test_of_a_trial_that_ray_has_loaded(killed: Killed) -> None:
    path = killed(True)
    analysis: Any = ExperimentAnalysis.__new__(ExperimentAnalysis)
    found = reading.trial_dataframe(not_found, analysis, trial_without_files(path, loss=4.0))
    assert list(found["loss"]) == [4.0]
    with pytest.raises(FileNotFoundError):
        reading.trial_dataframe(not_found, analysis, trial_without_files(path, trial_id="b"))
    store_history(path, "a")
    found = reading.trial_dataframe(not_found, analysis, trial_without_files(path, loss=4.0))
    assert list(found["loss"]) == [4.0]


def recorded(is_in_place: bool) -> HistoryLogger:
    found = HistoryLogger.__new__(HistoryLogger)
    found.is_in_place = is_in_place
    return found


@pytest.mark.parametrize(
    ("callbacks", "kept"),
    [
        ([JsonLoggerCallback()], False),
        ([Callback(), CSVLoggerCallback()], False),
        ([recorded(True), JsonLoggerCallback()], True),
        ([recorded(False)], False),
        ([Callback(), TBXLoggerCallback()], False),
    ],
)
def test_the_state_file_says_where_a_run_keeps_results(
    callbacks: list[Callback], kept: bool, tmp_path: Path
) -> None:
    controller: Any = SimpleNamespace(_callbacks=SimpleNamespace(_callbacks=callbacks))
    assert _keeps_histories(controller) is kept
    write_state(tmp_path, kept, tmp_path, tmp_path / "trials.sqlite")
    found = StateFile.newest_of(places.Experiment(LocalFileSystem(), str(tmp_path)))
    assert found is not None
    assert found.keeps_histories() is kept


def test_an_export(killed: Killed, tmp_path: Path) -> None:
    """Of these trials only records are left that Ray cannot make trials of."""
    path = killed(True)
    for stored, lengths in (((), {"a": 1, "b": 1}), (("a",), {"a": 2, "b": 1})):
        if stored:
            store_history(path, *stored)
        target = tmp_path / f"exported {len(stored)}"
        with pytest.raises(IncompleteExportError) as caught:
            export_results(path, destination=target)
        assert str(caught.value).count("params.json and params.pkl are not written") == 3
        found = {
            file.parent.name.removeprefix("trial_"): len(file.read_text().splitlines())
            for file in target.glob("*/result.json")
        }
        assert found == {**lengths, "silent": 0}


def test_nothing_is_exported_of_a_run_whose_results_are_in_files(
    killed: Killed, tmp_path: Path
) -> None:
    export_results(killed(False), destination=tmp_path / "exported")
    assert not (tmp_path / "exported").exists()
