"""Histories are exported to files in place of those of an earlier export, and of nothing else."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fsspec.implementations.local import LocalFileSystem as LocalFsspec
from pyarrow.fs import FileSystem, FSSpecHandler, LocalFileSystem, PyFileSystem, SubTreeFileSystem
from ray.tune.experiment import Trial

from ray_tune_memguard.adapter.histories import export, export_experiment, places
from ray_tune_memguard.adapter.histories.export_experiment import (
    _export,
    _export_listed,
    _Listed,
    _scratch,
)
from ray_tune_memguard.adapter.incomplete_export import IncompleteExportError
from ray_tune_memguard.adapter.location import Experiment
from ray_tune_memguard.store.histories import FILE_NAME, HistoryStore
from ray_tune_memguard.store.result_values import ResultEncoder

encoder = ResultEncoder(replace=str)
OWN = "events.out.tfevents.1.own"


class ExportedTrial:
    """A trial as far as it is exported."""

    trial_id, relative_logdir, status, checkpoint = "one", "trial_one", Trial.TERMINATED, None

    def __init__(self, storage: Any) -> None:
        self.storage = storage
        self.config: dict[str, Any] = {"lr": 0.1}
        self.evaluated_params = self.config
        self.run_metadata = SimpleNamespace(last_result={})

    def is_finished(self) -> bool:
        return self.status == Trial.TERMINATED


@pytest.fixture
def store(tmp_path: Path) -> Iterator[HistoryStore]:
    opened = HistoryStore.open_to_write(tmp_path / FILE_NAME)
    yield opened
    opened.close()


@pytest.fixture(params=["local", "elsewhere"])
def trial(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    filesystem: FileSystem = LocalFileSystem()
    root = f"{tmp_path}/"
    if request.param == "elsewhere":
        filesystem, root = SubTreeFileSystem(str(tmp_path), filesystem), ""
    storage = SimpleNamespace(storage_filesystem=filesystem, trial_fs_path=f"{root}sweep/trial_one")
    return ExportedTrial(storage)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "sweep" / "trial_one"


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    (tmp_path / "scratch").mkdir()
    return tmp_path / "scratch"


def report(store: HistoryStore, *results: dict[str, Any]) -> None:
    store.append({"one": [encoder.encode(result) for result in results]})


def result(step: int, **others: Any) -> dict[str, Any]:
    return {"training_iteration": step, "timestamp": step, "time_total_s": step, **others}


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_users_own_event_files_stay(
    store: HistoryStore, trial: Any, directory: Path, scratch: Path
) -> None:
    directory.mkdir(parents=True)
    (directory / OWN).write_bytes(b"own")
    report(store, result(1))
    for _ in range(2):
        _export(trial, store, scratch, None)
        [exported] = [name for name in names(directory) if name.endswith(".memguard")]
        # As one of an earlier second.
        os.rename(directory / exported, directory / "events.out.tfevents.0.host.memguard")
    _export(trial, store, scratch, None)
    events = [name for name in names(directory) if name.startswith("events")]
    assert len(events) == 2
    assert "events.out.tfevents.0.host.memguard" not in events
    assert (directory / OWN).read_bytes() == b"own"
    assert not list(directory.glob("*.part"))
    assert names(scratch) == []


@pytest.mark.parametrize("results", [[], [result(1)]])
def test_a_trial_that_was_running(
    store: HistoryStore,
    trial: Any,
    directory: Path,
    scratch: Path,
    results: list[dict[str, Any]],
) -> None:
    """Ray has it as one that has not begun, once its driver was killed."""
    trial.status = Trial.PENDING
    if results:
        report(store, *results)
    _export(trial, store, scratch, None)
    assert (directory / "result.json").exists() == bool(results)


def test_keys_that_rays_logger_does_not_take(
    store: HistoryStore, trial: Any, directory: Path, scratch: Path
) -> None:
    report(store, result(1, counts={np.int64(1): 2}), result(2, counts={2**70: 1}))
    _export(trial, store, scratch, None)
    lines = (directory / "result.json").read_text().splitlines()
    counts = [json.loads(line)["counts"] for line in lines]
    assert counts == [{"1": 2}, {str(2**70): 1}]


def test_files_are_written_on_the_disk_where_they_go(tmp_path: Path) -> None:
    (tmp_path / "sweep" / ".memguard").mkdir(parents=True)
    experiment = Experiment(LocalFileSystem(), f"{tmp_path}/sweep")
    for destination in (None, tmp_path / "another" / "disk"):
        with _scratch(experiment, destination) as scratch:
            assert scratch.parent == (destination or tmp_path / "sweep" / ".memguard")


class LikeSftp(LocalFsspec):
    """A storage that has files and renames them, but not as Arrow asks for it."""

    protocol = "sftp"

    def mv(self, old: str, new: str) -> None:
        raise AssertionError("Arrow passes more")


def test_an_upload_is_whole_under_its_name(tmp_path: Path) -> None:
    like_sftp = PyFileSystem(FSSpecHandler(LikeSftp()))
    for number, filesystem in enumerate((LocalFileSystem(), like_sftp)):
        (tmp_path / "source").write_bytes(b"new %d" % number)
        target = tmp_path / "target"
        places.upload(tmp_path / "source", filesystem, str(target))
        assert target.read_bytes() == b"new %d" % number
        assert names(tmp_path) == ["source", "target"]


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("s3", True),
        ("gcs", True),
        ("abfs", True),
        ("py::fsspec+('s3', 's3a')", True),
        ("py::fsspec+('gs', 'gcs')", True),
        ("py::fsspec+sftp", False),
        ("hdfs", False),
        ("subtree", False),
    ],
)
def test_object_stores(name: str, is_one: bool) -> None:
    assert bool(places._OBJECT_STORE.search(name)) is is_one


def test_nothing_is_removed_before_all_is_written(
    store: HistoryStore,
    trial: Any,
    directory: Path,
    scratch: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    directory.mkdir(parents=True)
    earlier = directory / "events.out.tfevents.0.host.memguard"
    earlier.write_bytes(b"")
    report(store, result(1))

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(export_experiment.os, "replace", fail)
    monkeypatch.setattr(places, "upload", fail)
    with pytest.raises(OSError, match="is full"):
        _export(trial, store, scratch, None)
    assert earlier.exists()


# What a logger refuses.

HALF = json.loads('"\\ud800"')


def rows(directory: Path) -> list[dict[str, str]]:
    with (directory / "progress.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def steps(directory: Path) -> list[int]:
    lines = (directory / "result.json").read_text().splitlines()
    return [json.loads(line)["training_iteration"] for line in lines]


def tags(directory: Path) -> list[str]:
    """The names of the metrics in the event file, one for each value."""
    from tensorboardX.proto.event_pb2 import Event

    [file] = directory.glob(export.EVENT_FILES)
    content, found = file.read_bytes(), []
    while content:  # A length of 8 bytes, its checksum, the event, and the checksum of that.
        size = int.from_bytes(content[:8], "little")
        event = Event.FromString(content[12 : 12 + size])
        found += [value.tag.removeprefix("ray/tune/") for value in event.summary.value]
        content = content[16 + size :]
    return [tag for tag in found if not tag.startswith("_hparams_")]


def test_integers_that_tensorboard_does_not_take(
    store: HistoryStore, trial: Any, directory: Path, scratch: Path
) -> None:
    large = {"large": 2**64, "in": {"it": -(2**63) - 1}, "fits": 2**64 - 1, "loss": 0.5}
    report(store, result(1, **large), result(2, **large))
    [said] = _export(trial, store, scratch, None)
    assert said == "the event file lacks integers of more than 64 bits: 'large', 'in/it'"
    assert tags(directory) == ["fits", "loss"] * 2
    assert steps(directory) == [1, 2]
    assert [row["large"] for row in rows(directory)] == [str(2**64)] * 2


def test_a_text_that_a_table_does_not_take(
    store: HistoryStore, trial: Any, directory: Path, scratch: Path
) -> None:
    report(store, *(result(step, text=HALF if step == 2 else "whole") for step in (1, 2, 3)))
    [said] = _export(trial, store, scratch, None)
    assert said.startswith("progress.csv lacks 1 of 3 results, or values in them: UnicodeEncode")
    assert [row["training_iteration"] for row in rows(directory)] == ["1", "3"]
    assert steps(directory) == [1, 2, 3]


def test_columns_that_a_table_does_not_take(
    store: HistoryStore, trial: Any, directory: Path, scratch: Path
) -> None:
    report(store, result(1, **{HALF: 1}), result(2, loss=0.5), result(3, loss=0.25))
    said = _export(trial, store, scratch, None)
    assert [one.split(" lacks")[0] for one in said] == ["progress.csv"]
    assert [row["loss"] for row in rows(directory)] == ["0.5", "0.25"]
    assert steps(directory) == [1, 2, 3]


def test_a_logger_that_does_not_begin(
    store: HistoryStore,
    trial: Any,
    directory: Path,
    scratch: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any) -> None:
        raise TypeError("no writer")

    monkeypatch.setattr(export._EventLogger, "log_trial_start", fail)
    report(store, result(1))
    assert _export(trial, store, scratch, None) == [
        "the event file is not complete: TypeError('no writer')"
    ]
    assert names(directory) == ["params.json", "params.pkl", "progress.csv", "result.json"]


class DoesNotPickle:
    def __reduce__(self) -> Any:
        raise TypeError("has a lock")


def test_a_config_that_does_not_pickle(
    store: HistoryStore, trial: Any, directory: Path, scratch: Path
) -> None:
    trial.config["lock"] = DoesNotPickle()
    report(store, result(1))
    [said] = _export(trial, store, scratch, None)
    assert said == "params.json and params.pkl are not written: TypeError('has a lock')"
    assert not list(directory.glob("params*"))
    assert steps(directory) == [1]


def test_a_config_whose_class_is_not_here(tmp_path: Path, scratch: Path) -> None:
    def read() -> Any:
        raise ModuleNotFoundError("No module named 'mine'")

    with_class = {"_type": "CLOUDPICKLE_FALLBACK", "value": b"cmine\nResult\n.".hex()}
    state = {"trial_id": "one", "status": "TERMINATED", "relative_logdir": "trial_one"}
    metadata = {"last_result": {"value": with_class}}
    listed = _Listed("one", read, lambda: [json.dumps(state), json.dumps(metadata)])
    experiment = Experiment(LocalFileSystem(), str(tmp_path))
    store = HistoryStore.open_to_write(tmp_path / FILE_NAME)
    report(store, result(1), result(2))
    [said] = _export_listed(listed, experiment, store, scratch, None)
    assert "params.pkl are not written: ModuleNotFoundError" in said
    assert steps(tmp_path / "trial_one") == [1, 2]
    assert len(rows(tmp_path / "trial_one")) == 2
    # Of a lost history nothing is left then.
    shutil.rmtree(tmp_path / "trial_one")
    assert _export_listed(listed, experiment, None, scratch, tmp_path / "other") == [said]
    assert steps(tmp_path / "other" / "trial_one") == []
    store.close()


def test_the_last_result_in_place_of_a_lost_history(
    store: HistoryStore, trial: Any, directory: Path, scratch: Path
) -> None:
    trial.storage.experiment_fs_path = str(directory.parent)
    trial.run_metadata.last_result = result(7, experiment_tag="1")
    for histories in (store, None):
        assert _export(trial, histories, scratch, None) == []
        assert steps(directory) == [7]
        assert list(rows(directory)[0]) == list(result(7))
        for path in directory.iterdir():
            path.unlink()


@pytest.mark.parametrize(
    ("number", "named"),
    [(errno.EACCES, 3), (errno.ENOSPC, 0)],
    ids=["of one trial", "of the disk"],
)
def test_a_trial_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, named: int
) -> None:
    asked = []

    def fail(listed: Any, *_: Any) -> list[str]:
        asked.append(listed)
        if listed.trial_id == "good":
            return []
        raise OSError(number, "no")

    trials = [_Listed(name, dict, list) for name in ("a", "good", "b", "c")]  # type: ignore[arg-type]
    (tmp_path / ".memguard").mkdir()
    (tmp_path / "experiment_state-2026-11-22_10-00-00.json").write_text("{}")
    monkeypatch.setattr(Experiment, "newest_state_file", lambda _: "file")
    monkeypatch.setattr(places, "find", lambda *_: object())
    monkeypatch.setattr(export_experiment, "store_of", lambda *_: object())
    monkeypatch.setattr(export_experiment, "_Listing", lambda _: trials)
    monkeypatch.setattr(export_experiment, "_export_listed", fail)
    with pytest.raises((IncompleteExportError, OSError)) as caught:
        export_experiment.export_files(str(tmp_path), None, None)
    assert len(asked) == (4 if named else 1)
    assert str(caught.value).count("is not written") == named


def test_what_is_left_out_is_a_short_list() -> None:
    lines = str(IncompleteExportError([f"Trial {number}: x" for number in range(12)])).splitlines()
    assert len(lines) == 12
    assert lines[-2:] == ["  Trial 9: x", "  and 2 more"]
