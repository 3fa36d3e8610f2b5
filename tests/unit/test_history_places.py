"""Histories are found where a run has left them, also in storage that is not a local disk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pyarrow.fs import FileSystem, LocalFileSystem, SubTreeFileSystem

from ray_tune_memguard import iter_results
from ray_tune_memguard.adapter.analysis.histories import histories_at
from ray_tune_memguard.adapter.histories import merging, places, reading
from ray_tune_memguard.adapter.histories.logger import HistoryLogger
from ray_tune_memguard.adapter.histories.recorder import HistoryRecorder
from ray_tune_memguard.notices import Notices
from ray_tune_memguard.store import files, histories
from ray_tune_memguard.store.histories import History, HistoryStore
from ray_tune_memguard.store.result_values import ResultEncoder

encoder = ResultEncoder(replace=str)


class Controller:
    """A run's controller, as far as it is asked."""

    def __init__(self, storage: Any) -> None:
        self._storage = storage
        self._callbacks = SimpleNamespace(_callbacks=[])
        self._trials: list[Any] = []


@pytest.fixture(params=["local", "elsewhere"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
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
        yield Controller(storage)
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


@pytest.mark.parametrize("spills", ["beside", "elsewhere", "beside, in an earlier version"])
def test_a_killed_run_has_left_its_file_on_this_machine(
    run: Any, tmp_path: Path, spills: str
) -> None:
    storage = run._storage
    store = places.open_for_run(run)
    report(store, 1)
    # Only the state file is in the storage; it says where the run's files were.
    directory = tmp_path / "spill_dir" if spills == "elsewhere" else store.path.parent
    pointers = {"store": f"{directory}/trials-x.sqlite"}
    if "version" not in spills:
        pointers["staging"] = storage.experiment_driver_staging_path
    pointer = json.dumps(pointers)
    path = f"{storage.experiment_fs_path}/experiment_state-2026-01-01_00-00-00.json"
    with storage.storage_filesystem.open_output_stream(path) as file:
        file.write(f'{{"trial_data": [], "memguard": {pointer}}}'.encode())
    places.forget_live(places.Experiment.of_run(run))
    store.close()  # Without publishing it.
    assert found(run) == [{"step": 1}]
    storage.experiment_driver_staging_path += "/../../../other/sweep/driver_artifacts"
    # Also for a run that does not ask for the store.
    assert places.has_histories(run)
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


def test_a_kill_between_the_renames_of_what_is_intact(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = places.open_for_run(run)
    report(store, 1)
    store.finalize()
    store.close()
    with monkeypatch.context() as patch:
        patch.setattr(histories, "finish_salvage", killed)
        with pytest.raises(InterruptedError):
            histories.salvage(store.path)
    assert not store.path.exists()
    places.forget_live(places.Experiment.of_run(run))
    assert places.has_histories(run)
    again = places.open_for_run(run)
    assert again.history("one").results == [{"step": 1}]
    again.finalize()


def killed(*_: Any) -> None:
    raise InterruptedError


def test_a_kill_while_a_file_is_copied_to_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = HistoryStore.open_to_write(tmp_path / "one" / "histories.sqlite")
    report(store, 1)
    target = tmp_path / "two" / "histories.sqlite"
    copies = iter([killed, shutil.copyfile, killed])
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", lambda *paths: next(copies)(*paths))
        for _ in range(2):
            with pytest.raises(InterruptedError):
                files.copy_to(store.path, target)
            assert not target.exists()
    files.copy_to(store.path, target)
    assert HistoryStore.open(target).history("one").results == [{"step": 1}]
    store.close()


class Trial:
    """A trial as far as a recorder asks it."""

    trial_id, storage, local_path, checkpoint = "one", None, None, None

    def is_finished(self) -> bool:
        return False


def test_what_was_recorded_before_an_error_is_in_the_storage(run: Any) -> None:
    """Ray's loggers go on; another machine must find what they do not have."""
    trial: Any = Trial()
    recorder = HistoryRecorder(places.open_for_run(run), run, Notices())
    logger = HistoryLogger(recorder, [], run)
    logger.log_trial_result(1, trial, {"step": 1})
    logger.give_back()
    # No state file points to the local file, as on another machine.
    assert found(run) == [{"step": 1}]


STATE_OF_MEMGUARD = b'{"trial_data": [], "memguard": {"store": "/none/trials-x.sqlite"}}'


def add_file(run: Any, path: str, content: bytes) -> None:
    storage = run._storage
    path = f"{storage.experiment_fs_path}/{path}"
    storage.storage_filesystem.create_dir(path.rpartition("/")[0], recursive=True)
    with storage.storage_filesystem.open_output_stream(path) as file:
        file.write(content)


def lines(run: Any, trial_id: str) -> bytes | None:
    storage = run._storage
    found = histories_at(storage.storage_filesystem, storage.experiment_fs_path)
    return found.lines(trial_id, f"trial_{trial_id}")


def test_what_ray_alone_wrote_after_a_run_with_histories(run: Any) -> None:
    store = places.open_for_run(run)
    report(store, 1)
    end(run, store)
    add_file(run, "experiment_state-2026-01-02_00-00-00.json", b'{"trial_data": []}')
    add_file(run, "trial_one/result.json", b'{"step": 2, "trial_id": "one"}\n')
    add_file(run, "trial_two/result.json", b'{"step": 3, "trial_id": "two"}\n')
    assert lines(run, "one") == ONE + b'{"step": 2, "trial_id": "one"}\n'
    assert lines(run, "two") == b'{"step": 3, "trial_id": "two"}\n'
    storage = run._storage
    found = iter_results(storage.experiment_fs_path, storage_filesystem=storage.storage_filesystem)
    assert [result["step"] for result in found] == [1, 2, 3]
    # A later run keeps results in the store again; its state file points to its trial store.
    again = places.open_for_run(run)
    HistoryRecorder(again, run, Notices()).finish()
    add_file(run, "experiment_state-2026-01-03_00-00-00.json", STATE_OF_MEMGUARD)
    assert lines(run, "two") == b'{"step": 3, "trial_id": "two"}\n'


def test_what_a_run_wrote_to_files_before_one_with_histories(run: Any) -> None:
    add_file(run, "experiment_state-2026-01-01_00-00-00.json", STATE_OF_MEMGUARD)
    add_file(run, "trial_two/result.json", THREE)
    recorder = HistoryRecorder(places.open_for_run(run), run, Notices())
    report(recorder.store, 1)
    recorder.finish()
    assert lines(run, "one") == ONE
    assert lines(run, "two") == THREE


def test_what_rays_loggers_write_after_an_error(run: Any) -> None:
    trial: Any = Trial()
    recorder = HistoryRecorder(places.open_for_run(run), run, Notices())
    logger = HistoryLogger(recorder, [], run)
    logger.log_trial_result(1, trial, {"step": 1})
    logger.give_back()
    add_file(run, "experiment_state-2026-01-03_00-00-00.json", STATE_OF_MEMGUARD)
    add_file(run, "trial_one/result.json", ONE + TWO)
    assert lines(run, "one") == ONE + TWO


ONE, TWO, THREE = b'{"step": 1}\n', b'{"step": 2}\n', b'{"step": 3}\n'


def at(*times: int) -> list[dict[str, Any]]:
    """Results with the times at which they were reported."""
    return [{"timestamp": time} for time in times]


@pytest.mark.parametrize(
    ("stored", "in_file", "whole"),
    [
        (ONE + TWO, None, ONE + TWO),
        (ONE + TWO, b"", ONE + TWO),
        (b"", ONE, ONE),
        (ONE + TWO, b'{"step":1}\n', ONE + TWO),
        (ONE, b'{"step":1}\n' + TWO, ONE + TWO),
        (ONE + TWO, THREE, ONE + TWO + THREE),
        # Both go on from the first.
        (ONE + TWO, ONE + THREE, ONE + TWO + THREE),
        # A driver was killed while it wrote the last line.
        (ONE, THREE + b'{"step": 4', ONE + THREE),
        (ONE, b"not JSON\n", ONE),
        (ONE, b'{"step": NaN}\n', ONE + b'{"step": NaN}\n'),
    ],
)
def test_a_history_in_two_places(stored: bytes, in_file: bytes | None, whole: bytes) -> None:
    found = merging.merged(History(reading.results_in(stored)), reading.results_in(in_file))
    assert merging.as_lines(found.results) == whole


@pytest.mark.parametrize(
    ("stored", "starts", "in_file", "whole", "whole_starts"),
    # A start at 0: the trial went on with results that are elsewhere.
    [
        # The store, Ray alone, and the store again.
        ([1, 2, 5, 6], [2], [3, 4], [1, 2, 3, 4, 5, 6], (2, 4)),
        # Ray alone, the store, which took that over, Ray alone, and the store.
        ([1, 2, 3, 5], [1, 3], [1, 4], [1, 2, 3, 4, 5], (1, 3, 4)),
        # What was taken over is damaged, or could not be read when the trial went on.
        ([3, 4], [0], [1, 2], [1, 2, 3, 4], (2,)),
        # The trial began from scratch, and then went on with Ray alone.
        ([3, 4], [], [1, 2], [3, 4], ()),
        ([3, 4], [], [1, 2, 5], [3, 4, 5], (2,)),
        ([3, 4, 6], [2], [1, 2, 5], [3, 4, 5, 6], (2, 3)),
        ([1, 4, 7], [1, 2], [2, 3, 5, 6, 8], [1, 2, 3, 4, 5, 6, 7, 8], (1, 3, 4, 6, 7)),
        ([1, 2], [], [1, 2, 3], [1, 2, 3], ()),
        # The later run has reported nothing, or all of it is damaged.
        ([1, 4], [1, 2], [2, 5], [1, 2, 4, 5], (1, 2, 3)),
        ([3], [0, 4], [1, 5], [1, 3, 5], (1, 2)),
        ([], [2], [1], [1], ()),
    ],
)
def test_runs_with_and_without_the_store(
    stored: list[int],
    starts: list[int],
    in_file: list[int],
    whole: list[int],
    whole_starts: tuple[int, ...],
) -> None:
    history = History(at(*stored), tuple(filter(None, starts)), has_earlier=0 in starts)
    found = merging.merged(history, at(*in_file))
    assert (found.results, found.starts) == (at(*whole), whole_starts)


def reported(iteration: int, total: float, **others: Any) -> dict[str, Any]:
    """A result with what Ray adds to each."""
    own = {"training_iteration": iteration, "timestamp": 7, "time_total_s": total}
    return {**own, **others}


@pytest.mark.parametrize(
    ("stored", "in_file"),
    [
        # Another callback has added to the results between the two loggers.
        ([reported(1, 0.1, lr=1), reported(2, 0.2, lr=1)], [reported(1, 0.1), reported(2, 0.2)]),
        # The trial went back to a checkpoint: the store keeps what its file has lost.
        (
            [reported(1, 0.1), reported(2, 0.2), reported(2, 0.3), reported(3, 0.4)],
            [reported(1, 0.1), reported(2, 0.3), reported(3, 0.4)],
        ),
        ([reported(1, 0.1, loss=-0.0)], [reported(1, 0.1, loss=0.0)]),
    ],
)
def test_what_a_users_own_logger_wrote_as_well(
    stored: list[dict[str, Any]], in_file: list[dict[str, Any]]
) -> None:
    history = History(stored, (1,))
    assert merging.merged(history, in_file) == history
    later = reported(9, 0.9)
    assert merging.merged(history, [*in_file, later]).results == [*stored, later]


def test_keys_that_json_does_not_take(run: Any) -> None:
    """Ray alone fails when such a result is reported; with the store it is there."""
    encode = ResultEncoder(replace=str).encode
    odd: Any = {np.int64(1): 2, (3, 4): 5, b"six": 7, 2**70: 8, None: {np.int64(9): [10]}}
    store = places.open_for_run(run)
    store.append({"one": [encode({"step": 1, "counts": odd}), encode({"step": 2})]}, ["one"])
    found = [json.loads(line) for line in (lines(run, "one") or b"").splitlines()]
    assert found[1] == {"step": 2}
    named = {"1": 2, "(3, 4)": 5, "b'six'": 7, str(2**70): 8, "null": {"9": [10]}}
    assert found[0]["counts"] == named
    store.finalize()
