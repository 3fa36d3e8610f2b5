from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import psutil
import pytest

from ray_tune_memguard.store import state_file as module
from ray_tune_memguard.store.state_file import ExperimentStateFile


@pytest.fixture
def published(tmp_path: Path) -> Path:
    (tmp_path / "staging").mkdir()
    return tmp_path / "staging" / "experiment_state.json"


@pytest.fixture
def state_file(published: Path, tmp_path: Path) -> ExperimentStateFile:
    return ExperimentStateFile(published, tmp_path / "work")


def entry(number: int) -> bytes:
    return json.dumps([f"trial {number}", "{}" * number]).encode()


def tail(*unfinished: int) -> str:
    rest = json.dumps({"trial_data": [json.loads(entry(n)) for n in unfinished], "stats": {}})
    return rest[len(module.HEAD) :]


def numbers(published: Path) -> list[int]:
    state = json.loads(published.read_text())
    assert state["stats"] == {}
    return [int(first.split()[1]) for first, _ in state["trial_data"]]


def test_grows_from_publish_to_publish(state_file: ExperimentStateFile, published: Path) -> None:
    state_file.publish(tail(7, 8))
    assert numbers(published) == [7, 8]
    expected = []
    for step in range(6):
        state_file.add([entry(2 * step), entry(2 * step + 1)])
        expected += [2 * step, 2 * step + 1]
        state_file.publish(tail(100))
        assert numbers(published) == [*expected, 100]
    state_file.publish(tail())
    assert numbers(published) == expected


def test_only_the_published_file_is_seen_in_its_folder(
    state_file: ExperimentStateFile, published: Path
) -> None:
    for _ in range(4):
        state_file.add([entry(1)])
        state_file.publish(tail())
        assert [path.name for path in published.parent.iterdir()] == [published.name]


def test_a_reader_of_the_old_file_is_not_disturbed(
    state_file: ExperimentStateFile, published: Path
) -> None:
    state_file.add([entry(1)])
    state_file.publish(tail(5))
    with published.open() as reader:
        start = reader.read(10)
        for number in range(2, 6):
            state_file.add([entry(number)])
            state_file.publish(tail(), keep_old=True)
        assert json.loads(start + reader.read())["trial_data"][1] == json.loads(entry(5))
    assert numbers(published) == [1, 2, 3, 4, 5]


def test_works_without_links(
    state_file: ExperimentStateFile, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_link(*_: Any) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", no_link)
    for number in range(5):
        state_file.add([entry(number)])
        state_file.publish(tail())
    assert numbers(published) == list(range(5))


def test_the_cost_is_that_of_what_is_new(
    state_file: ExperimentStateFile, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(2000):
        state_file.add([entry(number % 50)])
    for _ in range(3):  # Each of those that take turns is filled once.
        state_file.publish(tail())
        state_file.add([entry(0)])
    written = 0
    pwrite = os.pwrite

    def counted(file: int, block: Any, offset: int) -> int:
        nonlocal written
        written += len(block)
        return pwrite(file, block, offset)

    monkeypatch.setattr(os, "pwrite", counted)
    state_file.add([entry(1)])
    state_file.publish(tail())
    assert written < 1000
    assert published.stat().st_size > 50_000


@pytest.mark.parametrize("failing", ["pwrite", "ftruncate", "fsync", "replace"])
@pytest.mark.parametrize("at", range(3))
def test_a_failure_anywhere_leaves_a_whole_file_and_loses_nothing(
    state_file: ExperimentStateFile,
    published: Path,
    monkeypatch: pytest.MonkeyPatch,
    failing: str,
    at: int,
) -> None:
    state_file.add([entry(1)])
    state_file.publish(tail())
    state_file.add([entry(2)])
    state_file.publish(tail())
    state_file.add([entry(3)])
    calls = 0
    original = getattr(os, failing)

    def full(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > at:
            raise OSError(28, "No space left on device")
        return original(*args)

    monkeypatch.setattr(os, failing, full)
    for _ in range(2):
        try:
            state_file.publish(tail(9))
        except OSError:
            pass
        assert numbers(published) in ([1, 2], [1, 2, 3, 9])
    monkeypatch.setattr(os, failing, original)
    state_file.add([entry(4)])
    state_file.publish(tail(9))
    assert numbers(published) == [1, 2, 3, 4, 9]


def test_a_failed_add_adds_nothing(
    state_file: ExperimentStateFile, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state_file.add([entry(1)])

    def full(file: int, block: Any, offset: int) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space"):
            state_file.add([entry(2)])
    state_file.add([entry(3)])
    state_file.publish(tail())
    assert numbers(published) == [1, 3]


def test_rewind_takes_back_what_was_added(state_file: ExperimentStateFile, published: Path) -> None:
    state_file.add([entry(1)])
    mark = state_file.mark()
    state_file.add([entry(2), entry(3)])
    state_file.rewind(mark)
    state_file.add([entry(4)])
    state_file.publish(tail())
    assert numbers(published) == [1, 4]


@pytest.mark.parametrize("seed", range(20))
def test_any_order_of_adding_taking_back_and_publishing(
    state_file: ExperimentStateFile, published: Path, seed: int
) -> None:
    """A spill that fails takes back before anything was added, too, with the spare behind."""
    chance = random.Random(seed)
    expected: list[int] = []
    for number in range(60):
        action = chance.choice(["add", "take back", "add and take back", "publish", "keep old"])
        mark = state_file.mark()
        if action.startswith("add"):
            state_file.add([entry(number)])
        if action == "add":
            expected.append(number)
        elif action.endswith("take back"):
            state_file.rewind(mark)
        else:
            state_file.publish(tail(99), keep_old=action == "keep old")
            assert numbers(published) == [*expected, 99]


def test_a_removed_work_directory_is_made_again(
    state_file: ExperimentStateFile, published: Path, tmp_path: Path
) -> None:
    state_file.add([entry(1)])
    state_file.publish(tail())
    state_file.add([entry(2)])
    shutil.rmtree(tmp_path / "work")
    with pytest.raises(FileNotFoundError):
        state_file.publish(tail())
    state_file.publish(tail())
    assert numbers(published) == [1, 2]


def test_close_leaves_the_published_file_alone(
    state_file: ExperimentStateFile, published: Path, tmp_path: Path
) -> None:
    state_file.add([entry(1)])
    state_file.publish(tail())
    state_file.publish(tail())
    state_file.close()
    assert numbers(published) == [1]
    assert list((tmp_path / "work").iterdir()) == []


def test_who_is_reading_it_reads_one_whole_file(
    state_file: ExperimentStateFile, published: Path
) -> None:
    for number in range(20):
        state_file.add([entry(number)])
        state_file.publish(tail(99))
        with published.open() as reading:
            state_file.add([entry(1000)])
            state_file.publish(tail(98, 97))
            state_file.add([entry(1001)])
            assert json.loads(reading.read())["stats"] == {}


def test_another_name_that_somebody_gave_it_keeps_what_it_names(
    state_file: ExperimentStateFile, published: Path, tmp_path: Path
) -> None:
    kept = {}
    for number in range(12):
        state_file.add([entry(number)])
        state_file.publish(tail(99))
        copy = tmp_path / f"copy{number}"
        os.link(published, copy)
        kept[copy] = copy.read_bytes()
    for copy, content in kept.items():
        assert copy.read_bytes() == content
    assert numbers(published) == [*range(12), 99]


def test_files_take_turns_where_they_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    assert module.can_take_turns(tmp_path / "work", tmp_path)
    assert not list(tmp_path.glob("*/*"))
    elsewhere = Path("/dev/shm")
    if elsewhere.is_dir() and elsewhere.stat().st_dev != tmp_path.stat().st_dev:
        assert not module.can_take_turns(elsewhere, tmp_path)

    def refuse(*_: Any) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    assert not module.can_take_turns(tmp_path / "work", tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.name != "work"]


def test_a_second_run_in_the_same_directory_leaves_the_files_of_the_first(
    state_file: ExperimentStateFile, published: Path, tmp_path: Path
) -> None:
    killed = tmp_path / "work" / "experiment_state-of-a-killed-run.json"
    for suffix in (".spare", ".resting", ".retired"):
        killed.with_name(killed.name + suffix).touch()
    for number in range(3):
        state_file.add([entry(number)])
        state_file.publish(tail())
    state_file.add([entry(3)])
    before = {path.name for path in (tmp_path / "work").iterdir()}
    module.remove_spares(tmp_path / "work")
    after = {path.name for path in (tmp_path / "work").iterdir()}
    assert before - after == {f"{killed.name}{end}" for end in (".spare", ".resting", ".retired")}
    state_file.publish(tail())
    assert numbers(published) == [0, 1, 2, 3]


def test_at_most_two_files_are_open(state_file: ExperimentStateFile) -> None:
    before = open_files()
    for number in range(5):
        state_file.add([entry(number)])
        assert len(open_files() - before) <= 2
        state_file.publish(tail())
        assert len(open_files() - before) <= 2
    state_file.close()
    assert open_files() == before


def open_files() -> set[tuple[int, str]]:
    return {(file.fd, file.path) for file in psutil.Process().open_files()}
