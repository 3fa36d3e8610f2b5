from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from ray_tune_memguard.store.errors import StoreError
from ray_tune_memguard.store.files import remove
from ray_tune_memguard.store.trial_store import SpilledRow, TrialStore
from tests.unit.fakes import fake_row


def put(store: TrialStore, *numbers: int, status: str = "TERMINATED") -> None:
    with store.transaction():
        for number in numbers:
            store.put(number, fake_row(f"t{number}", status, b"state %d" % number))


def test_a_state_comes_back_byte_for_byte(store: TrialStore) -> None:
    blobs = {f"t{n}": os.urandom(5000) + b"same text " * 500 for n in range(5)}
    with store.transaction():
        for number, (trial_id, raw) in enumerate(blobs.items()):
            store.put(number, fake_row(trial_id, "TERMINATED", raw))
    assert {trial_id: store.state(trial_id) for trial_id in blobs} == blobs


def test_states_that_look_alike_take_little_room(store: TrialStore) -> None:
    text = os.urandom(4000)
    with store.transaction():
        for number in range(200):
            store.put(number, fake_row(f"t{number}", "TERMINATED", text + b"%d" % number))
    store.finalize()
    assert store.path.stat().st_size < 200 * 600


def test_rows_are_found_by_place_id_and_status(store: TrialStore) -> None:
    put(store, 0, 1, 3)
    put(store, 2, status="ERROR")
    assert [row.position for row in store.rows(1, 3)] == [1, 2]
    assert store.row("t3") == SpilledRow(3, "t3", "TERMINATED")
    assert store.row("nobody") is None
    assert [row.position for row in store.with_status("TERMINATED", after=0, limit=5)] == [1, 3]
    assert [row.position for row in store.with_error()] == [2]
    assert (store.count("TERMINATED"), store.count("ERROR")) == (3, 1)


def test_a_failed_transaction_leaves_nothing(store: TrialStore) -> None:
    def put_and_fail() -> None:
        with store.transaction():
            store.put(0, fake_row("t0", "TERMINATED", b"first, so it is the dictionary too"))
            raise RuntimeError("after the put")

    with pytest.raises(RuntimeError, match="after the put"):
        put_and_fail()
    assert store.row("t0") is None
    put(store, 0, 1)
    assert store.state("t1") == b"state 1"


def test_the_same_trial_twice_is_refused(store: TrialStore) -> None:
    put(store, 0)
    with pytest.raises(sqlite3.IntegrityError):
        put(store, 0)
    assert store.state("t0") == b"state 0"


def test_an_unknown_trial_is_a_key_error(store: TrialStore) -> None:
    with pytest.raises(KeyError):
        store.state("nobody")


@pytest.mark.parametrize("content", [b"", b"SQLite format 3\0 cut short", b"somebody's notes"])
def test_a_file_in_its_place_is_left_alone(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "trials.sqlite").write_bytes(content)
    store = TrialStore.create(tmp_path, "trials")
    put(store, 0)
    assert store.path == tmp_path / "trials-1.sqlite"
    assert (tmp_path / "trials.sqlite").read_bytes() == content


def test_an_earlier_store_is_not_mixed_in(tmp_path: Path) -> None:
    first = TrialStore.create(tmp_path, "trials")
    put(first, 0)
    second = TrialStore.create(tmp_path, "trials")
    assert second.row("t0") is None
    assert first.path != second.path


def test_a_second_writer_cannot_get_in_while_the_sweep_runs(store: TrialStore) -> None:
    put(store, 0)
    other = sqlite3.connect(store.path, timeout=0.1)
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        other.execute("SELECT count(*) FROM trial").fetchone()
    store.finalize()
    assert other.execute("SELECT count(*) FROM trial").fetchone() == (1,)


def test_a_killed_writer_leaves_what_it_committed(tmp_path: Path) -> None:
    script = f"""
import os, pathlib
from ray_tune_memguard.store.trial_store import TrialStore
from tests.unit.fakes import fake_row
store = TrialStore.create(pathlib.Path({str(tmp_path)!r}), "trials")
for number in range(50):
    with store.transaction():
        store.put(number, fake_row(f"t{{number}}", "TERMINATED", b"state"))
store._connection.execute("BEGIN")
store.put(50, fake_row("t50", "TERMINATED", b"not committed"))
os.kill(os.getpid(), 9)
"""
    killed = subprocess.run([sys.executable, "-c", script], check=False)
    assert killed.returncode == -signal.SIGKILL
    connection = sqlite3.connect(tmp_path / "trials.sqlite")
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert connection.execute("SELECT count(*) FROM trial").fetchone() == (50,)


def test_a_forked_process_does_not_close_the_store(tmp_path: Path) -> None:
    """SQLite would delete the log, to which this process goes on writing."""
    store = TrialStore.create(tmp_path, "trials")
    put(store, 0)
    child = os.fork()
    if child == 0:
        store.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    put(store, 1)
    found = TrialStore.open(copied(store, tmp_path / "killed"))
    assert [row.trial_id for row in found.rows(0, 9)] == ["t0", "t1"]


def copied(store: TrialStore, to: Path) -> Path:
    """The files of a store as they are now, as a kill would leave them."""
    shutil.copytree(store.path.parent, to)
    return to / store.path.name


def test_a_directory_that_cannot_be_made_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        TrialStore.create(tmp_path / "file" / "below", "trials")


# A store that a sweep left.


def left(store: TrialStore) -> TrialStore:
    """The store as another process finds it."""
    store.finalize()
    store.close()
    return TrialStore.open(store.path)


def test_an_opened_store_has_rows_and_snapshot(store: TrialStore) -> None:
    put(store, 0, 1, 2)
    store.save_snapshot({"one": b"1", "two": b"2" * 1000})
    store.set_metadata(where="here")
    opened = left(store)
    assert opened.damage() is None
    assert [row.trial_id for row in opened.rows(0, 9)] == ["t0", "t1", "t2"]
    assert opened.state_record("t1") == b"state 1"
    assert opened.state("t1") is None, "it is the other process's"
    assert list(opened.state_records()) == [b"state 0", b"state 1", b"state 2"]
    assert opened.snapshot() == {"one": b"1", "two": b"2" * 1000}
    assert opened.get_metadata("where") == "here"
    assert opened.get_metadata("nothing") is None


def test_an_opened_store_is_not_written_to(store: TrialStore) -> None:
    put(store, 0)
    opened = left(store)
    before = opened.path.read_bytes()
    with pytest.raises(sqlite3.OperationalError), opened.transaction():
        opened.put(1, fake_row("t1"))
    assert opened.path.read_bytes() == before
    assert opened.state_record("t0") == b"state 0"


def test_a_later_snapshot_replaces_the_earlier_one(store: TrialStore) -> None:
    assert not store.has_snapshot()
    store.save_snapshot({"one": b"1", "two": b"2"})
    store.save_snapshot({"one": b"3"})
    assert store.snapshot() == {"one": b"3"}


def test_the_store_of_a_running_sweep_is_not_opened(store: TrialStore) -> None:
    put(store, 0)
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        TrialStore.open(store.path)


@pytest.mark.parametrize("content", [b"", b"nonsense" * 1000])
def test_what_is_no_store(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.sqlite"
    path.write_bytes(content)
    with pytest.raises(StoreError):
        TrialStore.open(path)


def test_another_database_is_no_store(tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "x.sqlite")
    other.execute("CREATE TABLE trial (x)")
    other.close()
    with pytest.raises(StoreError, match="it is not a trial store"):
        TrialStore.open(tmp_path / "x.sqlite")


def test_a_store_of_another_version(store: TrialStore) -> None:
    store._connection.execute("PRAGMA user_version=99")
    with pytest.raises(StoreError, match="its schema version is 99"):
        left(store)


def test_rows_are_copied_as_they_are_packed(store: TrialStore, tmp_path: Path) -> None:
    put(store, 0, 1, 2, 3)
    put(store, 4, status="ERROR")
    source = left(store)
    target = TrialStore.create(tmp_path, "new")
    with target.first_transaction(source):
        target.copy_rows([(4, 0), (2, 1), (0, 2)])
    assert [(row.trial_id, row.status) for row in target.rows(0, 9)] == [
        ("t4", "ERROR"),
        ("t2", "TERMINATED"),
        ("t0", "TERMINATED"),
    ]
    assert target.state_record("t2") == b"state 2"
    assert target.state("t2") is None, "good for one process only"
    assert left(target).damage() is None


def test_records_of_copied_rows_come_in_their_new_order(store: TrialStore, tmp_path: Path) -> None:
    put(store, *range(40))
    source = left(store)
    target = TrialStore.create(tmp_path, "new")
    records: list[bytes] = []
    with target.first_transaction(source):
        pairs = [(there, 39 - there) for there in reversed(range(40))]
        target.copy_rows(pairs, then=records.extend)
    assert records == list(target.state_records())
    assert records[0] == b"state 39"
    with pytest.raises(KeyError), target.first_transaction(source):
        target.copy_rows([(40, 50)])
    assert target.extent() == (40, 39)


def test_rows_are_copied_from_a_store_that_was_killed(
    store: TrialStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, *range(5))
    killed, temporary = tmp_path / "killed", tmp_path / "temporary"
    shutil.copytree(store.path.parent, killed)
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    source = TrialStore.open(killed / store.path.name)
    assert (killed / f"{store.path.name}-wal").stat().st_size
    target = TrialStore.create(tmp_path, "new")
    with target.first_transaction(source):
        assert not list(temporary.iterdir()), "a kill leaves nothing"
        target.copy_rows([(3, 0), (1, 1)])
    assert [row.trial_id for row in target.rows(0, 9)] == ["t3", "t1"]
    source.close()
    assert left(target).damage() is None


@pytest.mark.parametrize("seed", range(12))
def test_no_flipped_byte_goes_unnoticed_or_costs_the_other_rows(tmp_path: Path, seed: int) -> None:
    """Whatever was changed: what is read afterwards is right, and most of it is still there."""
    chance = random.Random(seed)
    store = TrialStore.create(tmp_path, "trials")
    with store.transaction():
        for number in range(300):
            text = b"%d " % number + chance.randbytes(300).hex().encode()
            store.put(number, fake_row(f"t{number}", "TERMINATED", text))
    expected = {f"t{n}": store.state_record(f"t{n}") for n in range(300)}
    store.save_snapshot({"one": b"1"})
    store.finalize()
    store.close()
    content = bytearray(store.path.read_bytes())
    place = chance.randrange(4096, len(content))
    content[place] ^= chance.randrange(1, 256)
    store.path.write_bytes(content)
    opened = TrialStore.open(store.path)
    found = {row.trial_id: row.state_record for row in opened.salvage()}
    assert all(expected[trial_id] == entry for trial_id, entry in found.items())
    assert len(found) >= 290
    if len(found) < 300:
        assert opened.damage() is not None


def _refuse(*_: Any, **__: Any) -> Any:
    raise AssertionError("every row is looked at")


def test_a_settled_store_is_whole_without_a_look_at_its_rows(
    store: TrialStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with store.transaction():
        store.put(0, fake_row("t0"))
    store.finalize()
    store.close()
    monkeypatch.setattr(TrialStore, "_walk", _refuse)
    opened = TrialStore.open(store.path)
    assert opened.damage() is None
    opened.close()


@pytest.mark.parametrize("what", ["changed", "gone", "nonsense"])
def test_without_a_seal_that_fits_its_rows_are_looked_at(store: TrialStore, what: str) -> None:
    with store.transaction():
        store.put(0, fake_row("t0"))
    store.finalize()
    [seal] = store.path.parent.glob("*.crc32")
    if what == "changed":
        with store.transaction():
            store.put(1, fake_row("t1"))
    elif what == "gone":
        seal.unlink()
    else:
        seal.write_text("nonsense")
    store.close()
    connection = sqlite3.connect(store.path)
    connection.execute("UPDATE trial SET entry = x'00' WHERE seq = 0")
    connection.commit()
    connection.close()
    opened = TrialStore.open(store.path)
    assert "1 of" in str(opened.damage())
    opened.close()


def test_nothing_is_left_of_a_store_that_was_removed(store: TrialStore) -> None:
    store.finalize()
    store.close()
    remove(store.path)
    assert not list(store.path.parent.iterdir())
    remove(store.path)


def test_what_is_asked_of_all_trials_at_once(store: TrialStore) -> None:
    assert store.extent() == (0, -1)
    with store.transaction():
        for number in range(5):
            paused = number == 3
            store.put(number * 2, fake_row(f"t{number}", creation_index=number, resumes=paused))
        store.put(20, fake_row("bad", "ERROR", creation_index=5))
    assert store.extent() == (6, 20)
    assert list(store.positions()) == [0, 2, 4, 6, 8, 20]
    assert [row.trial_id for row in store.to_resume()] == ["t3"]
    assert [row.trial_id for row in store.to_resume(["ERROR"])] == ["t3", "bad"]
    assert [creation_index for creation_index, _ in store.created_since(4)] == [4, 5]
