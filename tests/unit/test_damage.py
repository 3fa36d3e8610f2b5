"""No part of a store can change without its being noticed, and what is whole is saved."""

from __future__ import annotations

import random
import shutil
import sqlite3
from pathlib import Path

import pytest

from ray_tune_memguard.store.snapshot import Snapshot
from ray_tune_memguard.store.trial_store import TrialStore
from tests.unit.fakes import fake_row

TRIALS = 20


def entry(number: int) -> bytes:
    return b'["' + b"the same in all trials, more or less; " * 20 + b'%05d"]' % number


@pytest.fixture
def path(tmp_path: Path) -> Path:
    store = TrialStore.create(tmp_path, "trials")
    with store.transaction():
        for number in range(TRIALS):
            row = fake_row(
                f"t{number}", state=entry(number), directory=f"d{number}", reported_at=number
            )
            store.put(number, row)
    store.finalize()
    store.close()
    return store.path


def change(path: Path, statement: str) -> None:
    with sqlite3.connect(path) as connection:
        assert connection.execute(statement).rowcount == 1
    connection.close()


@pytest.mark.parametrize("column", ["settled_at", "reported_at", "birth", "resumes"])
def test_a_number_that_changed(path: Path, column: str) -> None:
    change(path, f"UPDATE trial SET {column} = {column} + 1 WHERE seq = 3")
    store = TrialStore.open(path)
    assert store.damage() == f"1 of {TRIALS} trials are damaged"
    assert {row.trial_id for row in store.salvage()} == {
        f"t{number}" for number in range(TRIALS) if number != 3
    }


@pytest.mark.parametrize("key", ["dictionary of entry", "spare dictionary of entry"])
def test_a_dictionary_that_changed(path: Path, key: str) -> None:
    """All entries are packed against it; unpacked against another they are other texts."""
    flipped = "CAST(substr(value, 1, 40) || x'21' || substr(value, 42) AS BLOB)"
    change(path, f"UPDATE meta SET value = {flipped} WHERE key = '{key}'")
    store = TrialStore.open(path)
    assert store.damage() == f"the {key} is damaged"
    assert [row.state_record for row in store.salvage()] == [
        entry(number) for number in range(TRIALS)
    ]


def test_rows_of_another_store_are_whole(path: Path, tmp_path: Path) -> None:
    source = TrialStore.open(path)
    store = TrialStore.create(tmp_path, "next")
    with store.first_transaction(source):
        store.copy_rows([(2, 0), (4, 1)])
    store.finalize()
    store.close()
    opened = TrialStore.open(store.path)
    assert opened.damage() is None
    assert list(opened.state_records()) == [entry(2), entry(4)]


def test_the_log_of_a_killed_run_has_the_first_bytes(tmp_path: Path) -> None:
    store = TrialStore.create(tmp_path / "run", "trials")
    Snapshot(state="{}", positions=[], creation_count=0, summaries={}, files=None).save(store)
    for number in range(TRIALS):
        with store.transaction():
            store.put(number, fake_row(f"t{number}", state=random.randbytes(500)))
    killed = Path(shutil.copytree(tmp_path / "run", tmp_path / "killed"), store.path.name)
    with killed.open("r+b") as file:
        file.write(b"\xff" * 100)
    opened = TrialStore.open(killed)
    assert opened.damage() is None
    assert len(list(opened.state_records())) == TRIALS
