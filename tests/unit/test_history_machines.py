"""An experiment on remote storage is resumed on one machine, on another, and on the first again.

In one Ray session, the staging directory has the same path on all of them.
"""

from __future__ import annotations

import json
import logging
import os
import random
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

from ray_tune_memguard.adapter.histories import joining, places
from ray_tune_memguard.adapter.histories.recorder import HistoryRecorder
from ray_tune_memguard.notices import Notices
from ray_tune_memguard.store import files
from ray_tune_memguard.store.errors import UnsupportedVersionError
from ray_tune_memguard.store.histories import HistoryStore
from ray_tune_memguard.store.result_values import ResultEncoder

encoder = ResultEncoder(replace=str)
Results = dict[str, list[int]]


class Cluster:
    """Some machines, and a storage that all of them have."""

    def __init__(self, root: Path) -> None:
        self.root, self.machine = root, ""
        (root / "storage" / "sweep").mkdir(parents=True)
        staging = f"{root}/session/sweep/driver_artifacts"
        filesystem = SubTreeFileSystem(f"{root}/storage", LocalFileSystem())
        self.controller: Any = SimpleNamespace(
            _storage=SimpleNamespace(
                storage_filesystem=filesystem,
                experiment_fs_path="sweep",
                experiment_driver_staging_path=staging,
            )
        )
        self.published = root / "storage" / "sweep" / ".memguard" / "histories.sqlite"
        # The state file of each run has this path.
        pointer = json.dumps({"store": f"{root}/session/none.sqlite", "staging": staging})
        state = root / "storage" / "sweep" / "experiment_state-2026-01-01_00-00-00.json"
        state.write_text(f'{{"trial_data": [], "memguard": {pointer}}}')

    @property
    def local(self) -> Path:
        return places.local_file(self.controller)

    def go_to(self, machine: str) -> None:
        session = self.root / "session"
        if machine == self.machine:
            return
        if session.exists():
            session.rename(self.root / self.machine)
        if (self.root / machine).exists():
            (self.root / machine).rename(session)
        self.machine = machine

    def run(self, machine: str, is_killed: bool = False, **results: list[int]) -> None:
        """Report results, which are times, by trial; a trial whose name ends in ``_`` goes on."""
        self.go_to(machine)
        store = places.open_for_run(self.controller)
        for name, times in results.items():
            rows = [encoder.encode({"timestamp": time}) for time in times]
            trial_id = name.rstrip("_")
            is_known = name.endswith("_")
            cleared = [] if is_known else [trial_id]
            starts = {trial_id: 0} if is_known else {}
            store.append({trial_id: rows}, [trial_id], cleared=cleared, starts=starts)
        experiment = places.Experiment.of_run(self.controller)
        places.forget_live(experiment)
        if not is_killed:
            store.finalize()
            places.publish(experiment, store.path)
        store.close()

    def read(self, machine: str) -> Results | None:
        self.go_to(machine)
        places._opened.clear()
        storage = self.controller._storage
        store = places.find(storage.storage_filesystem, storage.experiment_fs_path)
        return None if store is None else results_in(store)


def results_in(store: HistoryStore) -> Results:
    return {
        trial_id: [result["timestamp"] for result in store.history(trial_id).results]
        for trial_id in store.trial_ids()
    }


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(places, "_LOOK_AGAIN_AFTER_S", 0.0)
        yield Cluster(tmp_path)
    for state in (places._opened, places._look_again_at, places._published_runs):
        state.clear()


def end_state(cluster: Cluster, machine: str) -> list[Results | None]:
    """What is read before and after one more run, on its machine and elsewhere."""
    before = cluster.read(machine)
    cluster.run(machine)
    return [before, cluster.read(machine), cluster.read("one without any file")]


@pytest.mark.parametrize("age_s", [-1000, 1000], ids=["older", "newer by its clock"])
def test_what_another_machine_has_published_is_kept(
    cluster: Cluster, age_s: int, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.run("one", a=[1], b=[1])
    cluster.run("two", a_=[2], c=[2])
    cluster.go_to("one")
    time = cluster.local.stat().st_mtime + age_s
    os.utime(cluster.local, (time, time))
    assert cluster.read("one") == {"a": [1, 2], "b": [1], "c": [2]}
    cluster.run("one", b=[3])
    cluster.run("two", d=[4])
    assert end_state(cluster, "one") == [{"a": [1, 2], "b": [3], "c": [2], "d": [4]}] * 3
    assert not caplog.records


def test_a_killed_run_and_one_that_did_not_know_of_it(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.run("one", a=[1], b=[1])
    cluster.run("one", is_killed=True, a_=[2], c=[2], e=[2, 3])
    # On the other machine, e begins from scratch.
    cluster.run("two", b_=[4], a_=[4, 5], d=[4], e=[4])
    whole = {"a": [1, 2, 4, 5], "b": [1, 4], "c": [2], "d": [4], "e": [4]}
    with caplog.at_level(logging.WARNING, "ray_tune_memguard"):
        assert end_state(cluster, "one") == [whole] * 3
    [warning] = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "brought together" in warning.getMessage()
    cluster.go_to("one")
    store = HistoryStore.open(cluster.local)
    assert store.history("a").starts == (1, 2)
    assert len(store.runs()) == 4
    # The other machine has an older file now.
    cluster.run("two", d_=[6])
    assert end_state(cluster, "one") == [{**whole, "d": [4, 6]}] * 3


def test_a_run_that_was_killed_before_anything_was_published(cluster: Cluster) -> None:
    cluster.run("one", is_killed=True, a=[1], b=[1, 2])
    assert cluster.read("two") is None
    cluster.run("two", a_=[3], c=[3])
    assert cluster.read("two") == {"a": [3], "c": [3]}
    assert end_state(cluster, "one") == [{"a": [1, 3], "b": [1, 2], "c": [3]}] * 3


def test_a_killed_run_goes_on_where_it_was(cluster: Cluster, caplog: Any) -> None:
    cluster.run("one", a=[1])
    cluster.run("one", is_killed=True, a_=[2])
    assert cluster.read("one") == {"a": [1, 2]}
    assert cluster.read("two") == {"a": [1]}
    assert end_state(cluster, "one") == [{"a": [1, 2]}] * 3
    assert not caplog.records


def test_files_that_do_not_tell_their_runs(cluster: Cluster) -> None:
    """An earlier version of this package wrote them."""
    cluster.run("one", a=[1])
    cluster.run("two", b=[2])
    for machine in ("one", "two"):
        cluster.go_to(machine)
        with sqlite3.connect(cluster.local) as connection:
            connection.execute("DELETE FROM meta WHERE key = 'runs'")
        files.remove_seal(cluster.local)
    places.publish(places.Experiment.of_run(cluster.controller), cluster.local)
    assert end_state(cluster, "one") == [{"a": [1], "b": [2]}] * 3


def test_a_kill_while_files_are_brought_together(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.run("one", a=[1], b=[1])
    cluster.run("one", is_killed=True, a_=[2], b_=[2])
    cluster.run("two", a_=[3], b_=[3], c=[3])
    whole = {"a": [1, 2, 3], "b": [1, 2, 3], "c": [3]}
    rewrite = HistoryStore.rewrite

    def killed(store: HistoryStore, trial_id: str, *values: Any) -> None:
        if trial_id == "b":
            raise InterruptedError
        rewrite(store, trial_id, *values)

    cluster.go_to("one")
    with monkeypatch.context() as patch:
        patch.setattr(HistoryStore, "rewrite", killed)
        with pytest.raises(InterruptedError):
            places.open_for_run(cluster.controller)
    assert end_state(cluster, "one") == [whole] * 3


def test_the_published_file_is_damaged(cluster: Cluster) -> None:
    cluster.run("one", a=[1])
    cluster.published.write_bytes(b"not a database" * 1000)
    assert cluster.read("two") is None
    assert end_state(cluster, "one") == [{"a": [1]}] * 3


@pytest.mark.parametrize("is_all", [True, False], ids=["all of it", "a page"])
def test_the_file_on_this_machine_is_damaged(cluster: Cluster, is_all: bool) -> None:
    numbers = random.Random(0)
    results = {f"trial{index}": numbers.sample(range(10**9), 40) for index in range(200)}
    cluster.run("one", **results)
    cluster.go_to("one")
    content = bytearray(cluster.local.read_bytes())
    begin, end = (0, len(content)) if is_all else (len(content) // 2, len(content) // 2 + 4096)
    content[begin:end] = b"x" * (end - begin)
    cluster.local.write_bytes(content)
    cluster.run("one")
    assert cluster.read("one") == cluster.read("two") == results
    cluster.go_to("one")
    assert cluster.local.with_suffix(".damaged").exists()


def test_a_published_file_of_a_later_version_is_not_replaced(cluster: Cluster) -> None:
    cluster.run("one", a=[1])
    store = HistoryStore.open_to_write(cluster.published)
    store._connection.execute("PRAGMA user_version=99")
    store.finalize()
    store.close()
    before = cluster.published.read_bytes()
    with pytest.raises(UnsupportedVersionError):
        places.open_for_run(cluster.controller)
    assert cluster.published.read_bytes() == before


@pytest.mark.parametrize(
    ("machine", "kept"), [("one", [1, 2]), ("two", [2])], ids=["same machine", "other machine"]
)
def test_a_trial_without_a_checkpoint(cluster: Cluster, machine: str, kept: list[int]) -> None:
    """Ray's logger appends to its file in the staging directory, if that is there."""
    trial: Any = SimpleNamespace(trial_id="a", storage=None, checkpoint=None)
    for where, time in (("one", 1), (machine, 2)):
        cluster.go_to(where)
        recorder = HistoryRecorder(
            places.open_for_run(cluster.controller), cluster.controller, Notices()
        )
        recorder.add(trial, {"timestamp": time})
        recorder.close()
        recorder.store.close()
    assert cluster.read(machine) == {"a": kept}


def test_a_file_that_is_being_written_is_read_without_fetching_the_published_one_again(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.run("one", a=[1])
    store = places.open_for_run(cluster.controller)
    places.forget_live(places.Experiment.of_run(cluster.controller))  # As in another process.
    fetched: list[Path] = []
    fetch = places._fetch
    monkeypatch.setattr(places, "_fetch", lambda of, path: fetched.append(path) or fetch(of, path))
    for time in (2, 3):
        store.append({"a": [encoder.encode({"timestamp": time})]}, ["a"])
        assert cluster.read("one") == {"a": [*range(1, time + 1)]}
    assert len(fetched) == 1
    store.close()


def test_trials_that_both_have(tmp_path: Path) -> None:
    """What both have is not doubled, and stays as it was."""
    stores = [HistoryStore.open_to_write(tmp_path / name / "h.sqlite") for name in ("one", "two")]
    result = {"timestamp": 1, "loss": float("nan"), "shape": (2, 3)}
    for store in stores:
        store.append({"a": [encoder.encode(result)] * 3000}, ["a"], starts={"a": 0})
    stores[1].append({"a": [encoder.encode({"timestamp": 2})]}, starts={"a": 0})
    assert joining.join(stores[1], stores[0]) == 0
    assert joining.join(stores[0], stores[1]) == 1
    assert joining.join(stores[0], stores[1]) == 0
    history = stores[0].history("a")
    assert len(history.results) == 3001
    assert (history.starts, history.has_earlier) == ((3000,), True)
    assert history.results[0]["shape"] == (2, 3)
    for store in stores:
        store.close()
