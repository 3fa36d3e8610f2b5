"""Histories are exported to files in place of those of an earlier export, and of nothing else."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fsspec.implementations.local import LocalFileSystem as LocalFsspec
from pyarrow.fs import FileSystem, FSSpecHandler, LocalFileSystem, PyFileSystem, SubTreeFileSystem
from ray.tune.experiment import Trial

from ray_tune_memguard.adapter.histories import export_experiment, places
from ray_tune_memguard.adapter.histories.export_experiment import _export, _scratch
from ray_tune_memguard.adapter.location import Experiment
from ray_tune_memguard.store.histories import FILE_NAME, HistoryStore
from ray_tune_memguard.store.result_values import ResultEncoder

encoder = ResultEncoder(replace=str)
OWN = "events.out.tfevents.1.own"


class ExportedTrial:
    """A trial as far as it is exported."""

    trial_id, relative_logdir, status, checkpoint = "one", "trial_one", Trial.TERMINATED, None
    config, evaluated_params = {"lr": 0.1}, {"lr": 0.1}

    def __init__(self, storage: Any) -> None:
        self.storage = storage

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
