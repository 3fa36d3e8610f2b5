"""Histories are found where a run has left them, also in storage that is not a local disk."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pyarrow.fs import FileSystem, LocalFileSystem, SubTreeFileSystem

from ray_tune_memguard.adapter.histories import places, reading
from ray_tune_memguard.store.histories import HistoryStore
from ray_tune_memguard.store.result_values import ResultEncoder

encoder = ResultEncoder(replace=str)


@pytest.fixture(params=["local", "elsewhere"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """A controller, as far as it is asked."""
    (tmp_path / "storage" / "sweep").mkdir(parents=True)
    filesystem: FileSystem = LocalFileSystem()
    path = f"{tmp_path}/storage/sweep"
    if request.param == "elsewhere":
        filesystem, path = SubTreeFileSystem(f"{tmp_path}/storage", filesystem), "sweep"
    storage = SimpleNamespace(
        storage_filesystem=filesystem,
        experiment_fs_path=path,
        experiment_driver_staging_path=f"{tmp_path}/session/sweep/driver_artifacts",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(places, "_LOOK_AGAIN_AFTER_S", 0.0)
        yield SimpleNamespace(_storage=storage)
    places._opened.clear()
    places._look_again_at.clear()


def report(store: HistoryStore, step: int) -> None:
    store.append({"one": [encoder.encode({"step": step})]}, ["one"])


def end(controller: Any, store: HistoryStore) -> None:
    experiment = places.Experiment.of_run(controller)
    store.finalize()
    places.forget_live(experiment)
    places.publish(experiment, store.path)


def found(controller: Any) -> list[Any] | None:
    storage = controller._storage
    store = places.find(storage.storage_filesystem, storage.experiment_fs_path)
    return None if store is None else store.history("one").results


def test_while_a_run_goes_on_and_after_it(run: Any) -> None:
    assert found(run) is None
    assert not places.has_histories(run)
    store = places.open_for_run(run)
    report(store, 1)
    assert found(run) == [{"step": 1}]
    staging = places.find(LocalFileSystem(), run._storage.experiment_driver_staging_path)
    assert staging is store
    end(run, store)
    assert found(run) == [{"step": 1}]
    assert places.has_histories(run)


def test_a_later_run_goes_on_with_the_file(run: Any) -> None:
    first = places.open_for_run(run)
    report(first, 1)
    end(run, first)
    first.close()
    assert found(run) == [{"step": 1}]
    # On another machine there is no local file.
    run._storage.experiment_driver_staging_path += "/../other/driver_artifacts"
    second = places.open_for_run(run)
    report(second, 2)
    assert found(run) == [{"step": 1}, {"step": 2}]
    end(run, second)
    assert found(run) == [{"step": 1}, {"step": 2}]


def test_a_killed_run_has_left_its_file_on_this_machine(run: Any) -> None:
    storage = run._storage
    store = places.open_for_run(run)
    report(store, 1)
    # Only the state file is in the storage; it says where the trial store was.
    pointer = json.dumps({"store": str(store.path.with_name("trials-x.sqlite"))})
    path = f"{storage.experiment_fs_path}/experiment_state-2026-01-01_00-00-00.json"
    with storage.storage_filesystem.open_output_stream(path) as file:
        file.write(f'{{"trial_data": [], "memguard": {pointer}}}'.encode())
    places.forget_live(places.Experiment.of_run(run))
    store.close()  # Without publishing it.
    assert found(run) == [{"step": 1}]
    storage.experiment_driver_staging_path += "/../../other/sweep/driver_artifacts"
    again = places.open_for_run(run)
    report(again, 2)
    assert found(run) == [{"step": 1}, {"step": 2}]
    end(run, again)


def test_what_another_process_is_writing(run: Any) -> None:
    store = places.open_for_run(run)
    report(store, 1)
    places.forget_live(places.Experiment.of_run(run))  # As in another process.
    is_local = isinstance(run._storage.storage_filesystem, LocalFileSystem)
    # Elsewhere nothing is published yet.
    assert found(run) == ([{"step": 1}] if is_local else None)
    report(store, 2)
    store.sync()
    report(store, 3)
    assert found(run) == ([{"step": 1}, {"step": 2}, {"step": 3}] if is_local else None)
    store.finalize()


def test_damaged_histories_are_replaced_by_what_is_intact(
    run: Any, caplog: pytest.LogCaptureFixture
) -> None:
    path = places.local_file(run)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not a database" * 1000)
    store = places.open_for_run(run)
    report(store, 1)
    assert found(run) == [{"step": 1}]
    assert "damaged" in caplog.text
    assert path.with_suffix(".damaged").exists()


ONE, TWO, THREE = b'{"step": 1}\n', b'{"step": 2}\n', b'{"step": 3}\n'


@pytest.mark.parametrize(
    ("stored", "in_file", "whole"),
    [
        (ONE + TWO, None, ONE + TWO),
        (ONE + TWO, b"", ONE + TWO),
        (b"", ONE, ONE),
        (ONE + TWO, b'{"step":1}\n', ONE + TWO),
        (ONE, b'{"step":1}\n' + TWO, b'{"step":1}\n' + TWO),
        (ONE + TWO, THREE, ONE + TWO + THREE),
        (ONE, b"not JSON\n", ONE + b"not JSON\n"),
    ],
)
def test_a_history_in_two_places(stored: bytes, in_file: bytes | None, whole: bytes) -> None:
    assert reading.joined(stored, in_file) == whole
