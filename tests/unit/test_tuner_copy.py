"""The copy of ``tuner.pkl`` in a trial store."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pyarrow.fs import LocalFileSystem

from ray_tune_memguard.adapter.location import Experiment
from ray_tune_memguard.adapter.run.tuner_copy import TUNER_FILE, load_copy, save_copy
from ray_tune_memguard.store.trial_store import TrialStore


@pytest.fixture
def store(tmp_path: Path) -> TrialStore:
    return TrialStore.create(tmp_path / "stores", "trials")


def test_the_copy_takes_as_much_room_as_the_file(store: TrialStore, tmp_path: Path) -> None:
    content = os.urandom(1 << 20)
    (tmp_path / TUNER_FILE).write_bytes(content)
    before = store.path.stat().st_size
    save_copy(Experiment(LocalFileSystem(), str(tmp_path)), store)
    store.finalize()
    assert load_copy(store) == content
    assert store.path.stat().st_size - before < 1.1 * len(content)


def test_no_file_no_copy(store: TrialStore, tmp_path: Path) -> None:
    save_copy(Experiment(LocalFileSystem(), str(tmp_path)), store)
    assert load_copy(store) is None


def test_a_copy_of_an_earlier_version_is_read(store: TrialStore) -> None:
    store.set_metadata(**{TUNER_FILE: b"pickle".hex()})
    assert load_copy(store) == b"pickle"


def test_a_damaged_copy_is_not_used(store: TrialStore, tmp_path: Path) -> None:
    (tmp_path / TUNER_FILE).write_bytes(b"pickle")
    save_copy(Experiment(LocalFileSystem(), str(tmp_path)), store)
    store._connection.execute("UPDATE meta SET value = value || 'x' WHERE key = ?", (TUNER_FILE,))
    store._connection.execute("UPDATE meta SET value = CAST(value AS BLOB)")
    with pytest.raises(ValueError, match="damaged"):
        load_copy(store)
