"""The histories of an experiment in one file: what is durable, merged, continued and damaged."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ray_tune_memguard.store import files
from ray_tune_memguard.store.errors import StoreError, UnsupportedVersionError, is_locked
from ray_tune_memguard.store.histories import FILE_NAME, HistoryStore, salvage
from ray_tune_memguard.store.result_values import ResultEncoder

encoder = ResultEncoder(replace=str)


def results(first: int, count: int) -> list[dict[str, Any]]:
    return [{"step": first + number, "loss": number / 7} for number in range(count)]


def rows(first: int, count: int) -> list[bytes]:
    return [encoder.encode(result) for result in results(first, count)]


def steps(store: HistoryStore, trial_id: str) -> list[int]:
    return [result["step"] for result in store.history(trial_id).results]


def chunks(path: Path) -> int:
    with sqlite3.connect(path) as connection:
        return int(connection.execute("SELECT count(*) FROM chunk").fetchone()[0])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / FILE_NAME


@pytest.fixture
def store(path: Path) -> Iterator[HistoryStore]:
    opened = HistoryStore.open_to_write(path)
    yield opened
    opened.close()


def test_small_chunks_are_merged_when_the_trial_ends(store: HistoryStore, path: Path) -> None:
    for first in range(0, 30, 3):
        store.append({"one": rows(first, 3), "other": rows(first, 1)})
    assert steps(store, "one") == list(range(30))
    store.append({"one": rows(30, 1)}, ["one"])
    store.append({}, ["other"])
    assert steps(store, "one") == list(range(31))
    assert steps(store, "other") == list(range(0, 30, 3))
    assert store.history("one").results[4] == results(3, 3)[1]
    store.finalize()
    assert chunks(path) == 2


def test_a_long_history_is_merged_while_it_grows(store: HistoryStore, path: Path) -> None:
    for first in range(0, 2500, 50):
        store.append({"one": rows(first, 50)})
    assert store.count("one") == 2500
    assert steps(store, "one") == list(range(2500))
    store.finalize()
    assert chunks(path) == 3


def test_a_finished_file_has_no_room_of_small_chunks(store: HistoryStore, path: Path) -> None:
    for first in range(1000):
        store.append({"one": rows(first, 1)})
    store.finalize()
    assert steps(store, "one") == list(range(1000))
    assert path.stat().st_size < 40_000


def test_what_was_committed_survives_the_end_of_the_process(
    store: HistoryStore, path: Path, tmp_path: Path
) -> None:
    store.append({"one": rows(0, 2)})
    copy = tmp_path / "killed" / FILE_NAME
    copy.parent.mkdir()
    for suffix in ("", "-wal"):
        copy.with_name(copy.name + suffix).write_bytes(Path(f"{path}{suffix}").read_bytes())
    found = HistoryStore.open(copy)
    assert steps(found, "one") == [0, 1]
    assert list(found.trial_ids()) == ["one"]
    assert found.count("none") == 0
    assert found.history("none").results == []
    found.close()
    again = HistoryStore.open_to_write(copy)
    again.append({"one": rows(2, 1)}, ["one"], starts={"one": 0})
    assert steps(again, "one") == [0, 1, 2]
    assert again.history("one").starts == (2,)
    again.close()


def test_nothing_is_added_by_a_commit_that_fails(
    store: HistoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.append({"one": rows(0, 2)})
    with monkeypatch.context() as patch:
        patch.setattr(store, "_connection", FullDisk(store._connection))
        with pytest.raises(sqlite3.OperationalError):
            store.append({"one": rows(2, 2), "two": rows(0, 1)}, ["one"])
    assert steps(store, "one") == [0, 1]
    store.append({"one": rows(2, 2)}, ["one"])
    assert steps(store, "one") == [0, 1, 2, 3]
    assert store.count("two") == 0


class FullDisk:
    """A connection whose commits fail."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._own = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def execute(self, query: str, *values: Any) -> Any:
        if query == "COMMIT":
            raise sqlite3.OperationalError("database or disk is full")
        return self._own.execute(query, *values)


def test_a_trial_that_begins_from_scratch(store: HistoryStore) -> None:
    store.append({"one": rows(0, 2), "two": rows(0, 2)})
    store.append({"one": rows(7, 1)}, cleared=["one"])
    assert steps(store, "one") == [7]
    assert steps(store, "two") == [0, 1]


def test_a_trial_that_is_taken_over_or_continued(store: HistoryStore) -> None:
    store.append({"one": rows(0, 3), "two": rows(0, 1)}, starts={"one": 2})
    store.append({}, ["one"], starts={"one": 0, "none": 0})
    store.append({"one": rows(3, 1)})
    assert store.history("one").starts == (2, 3)
    assert store.history("none").starts == ()
    # It goes on with results that are elsewhere.
    assert [store.history(name).has_earlier for name in ("one", "none")] == [False, True]
    store.append({"one": rows(0, 1), "two": rows(1, 1)}, ["one"], cleared=["one"])
    assert (steps(store, "one"), steps(store, "two")) == ([0], [0, 1])
    assert store.history("one").starts == ()


def test_one_run_at_a_time(store: HistoryStore, path: Path) -> None:
    store.append({"one": rows(0, 1)})
    for opening in (HistoryStore.open, HistoryStore.open_to_write):
        with pytest.raises(sqlite3.OperationalError) as refused:
            opening(path)
        assert is_locked(refused.value)
    store.finalize()
    assert steps(HistoryStore.open(path), "one") == [0]


def test_a_damaged_chunk_is_left_out_and_said_to_be_missing(
    store: HistoryStore, path: Path
) -> None:
    store.append({"one": rows(0, 4)}, ["one"])
    store.append({"one": rows(4, 3)})
    store.append({"two": rows(0, 1)}, ["two"])
    store.finalize()
    store.close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE chunk SET content = x'00' WHERE number = 0 AND count = 4")
    found = HistoryStore.open(path)
    history = found.history("one")
    assert [result["step"] for result in history.results] == [4, 5, 6]
    assert history.missing == 4
    assert steps(found, "two") == [0]


@pytest.mark.parametrize(
    ("damaged", "kept", "starts"),
    [
        ((), range(9), (2, 4, 8, 9)),
        ((0,), range(3, 9), (1, 5, 6)),
        ((3,), [0, 1, 2, 6, 7, 8], (2, 3, 5, 6)),
        ((6,), range(6), (2, 4, 6)),
        ((0, 3), range(6, 9), (2, 3)),
        ((0, 3, 6), [], ()),
    ],
)
def test_starts_are_those_of_the_results_that_are_there(
    store: HistoryStore, path: Path, damaged: tuple[int, ...], kept: Any, starts: tuple[int, ...]
) -> None:
    for first, offset in ((0, 2), (3, 1), (6, 2)):
        store.append({"one": rows(first, 3)}, ["one"], starts={"one": offset})
    store.append({}, starts={"one": 0})
    store.finalize()
    store.close()
    with sqlite3.connect(path) as connection:
        # One is not readable, and one is not there at all.
        for number in damaged:
            connection.execute("UPDATE chunk SET content = x'00' WHERE number = ?", (number,))
        connection.execute("DELETE FROM chunk WHERE content = x'00' AND number = 3")
    history = HistoryStore.open(path).history("one")
    assert [result["step"] for result in history.results] == list(kept)
    assert history.starts == starts
    assert history.missing == 9 - len(list(kept))
    assert history.has_earlier == (0 in damaged)


def test_intact_histories_of_a_damaged_file_are_kept(store: HistoryStore, path: Path) -> None:
    for number in range(200):
        store.append({f"trial{number}": rows(number, 40)}, [f"trial{number}"])
    store.finalize()
    store.close()
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 4096] = bytes(4096)
    path.write_bytes(content)
    with pytest.raises(StoreError):
        HistoryStore.open_to_write(path)
    salvage(path)
    again = HistoryStore.open_to_write(path)
    kept = [name for name in again.trial_ids() if steps(again, name)]
    assert 100 < len(kept) < 201
    assert all(again.history(name).missing == 0 for name in kept)
    assert steps(again, kept[0]) == list(range(int(kept[0][5:]), int(kept[0][5:]) + 40))
    assert path.with_suffix(".damaged").exists()
    again.close()


def test_other_files_are_refused(path: Path, tmp_path: Path) -> None:
    path.write_bytes(b"not a database" * 100)
    for opening in (HistoryStore.open, HistoryStore.open_to_write):
        with pytest.raises(StoreError):
            opening(path)
    other = tmp_path / "later" / FILE_NAME
    HistoryStore.open_to_write(other).finalize()
    with sqlite3.connect(other) as connection:
        connection.execute("PRAGMA user_version=99")
    files.remove_seal(other)
    for opening in (HistoryStore.open, HistoryStore.open_to_write):
        with pytest.raises(UnsupportedVersionError):
            opening(other)
