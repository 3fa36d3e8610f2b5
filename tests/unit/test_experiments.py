"""Which trial store is an experiment's."""

from __future__ import annotations

import json
from pathlib import Path

from pyarrow.fs import LocalFileSystem

from ray_tune_memguard.adapter.location import Experiment
from ray_tune_memguard.adapter.restore.locate import locate
from ray_tune_memguard.adapter.restore.verify import verify
from ray_tune_memguard.store.snapshot import Snapshot
from ray_tune_memguard.store.trial_store import TrialStore
from tests.unit.fakes import NO_SUMMARIES

RUN = "2026-11-22_10-00-00"


def begun(path: Path, spill_dir: Path) -> TrialStore:
    """An experiment whose state file is a little behind its store, as a killed one's is."""
    path.mkdir(parents=True)
    store = TrialStore.create(spill_dir, f"trials-{RUN}")
    store.set_metadata(experiment=str(path), staging=str(path))
    pointer = json.dumps({"store": str(store.path)})
    (path / f"experiment_state-{RUN}.json").write_text(
        f'{{"trial_data": [], "runner_data": {{"at": 1}}, "memguard": {pointer}}}'
    )
    state = '{"trial_data": [], "runner_data": {"at": 2}}'
    Snapshot(state=state, positions=[], creation_count=0, summaries=NO_SUMMARIES, files=None).save(
        store
    )
    store.finalize()
    store.close()
    return store


def found(path: Path) -> bool:
    """Whether the store is found by the pointer in the state file."""
    experiment = Experiment(LocalFileSystem(), str(path))
    store = verify(locate(experiment))
    return store is not None and store.is_owned()


def test_by_another_spelling_of_its_path(tmp_path: Path) -> None:
    begun(tmp_path / "disk" / "sweep", tmp_path / "fast")
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    assert found(tmp_path / "disk" / "sweep")
    assert found(tmp_path / "link" / "sweep")


def test_not_of_a_copy(tmp_path: Path) -> None:
    begun(tmp_path / "sweep", tmp_path / "fast")
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in (tmp_path / "sweep").iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    assert not found(copy)
