"""An empty directory of a finished trial becomes that of a new one, and none is left behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from ray.tune.experiment import trial as rays

from ray_tune_memguard.adapter import contract
from ray_tune_memguard.adapter.analysis import patches
from ray_tune_memguard.adapter.histories import directories
from ray_tune_memguard.adapter.histories.directories import SpareDirectories


@pytest.fixture(autouse=True)
def installed() -> None:
    patches.install(contract.probe())


@pytest.fixture
def spare(tmp_path: Path) -> SpareDirectories:
    return SpareDirectories(str(tmp_path))


@pytest.fixture
def make(tmp_path: Path) -> Callable[[str], Path]:
    """Do what Ray does for a new trial."""

    def make_directory(name: str) -> Path:
        made = tmp_path / rays._create_unique_logdir_name(str(tmp_path), name)
        made.mkdir(exist_ok=True)
        return made

    return make_directory


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_an_empty_directory_becomes_the_next_one(
    spare: SpareDirectories, make: Callable[[str], Path], tmp_path: Path
) -> None:
    ended = make("one")
    inode = ended.stat().st_ino
    spare.take(str(ended))
    assert make("two").stat().st_ino == inode
    assert names(tmp_path) == ["two"]
    assert names(make("three").parent) == ["three", "two"], "there is no other"


def test_what_a_callback_wrote_later_stays_where_it_is(
    spare: SpareDirectories, make: Callable[[str], Path], tmp_path: Path
) -> None:
    for name in ("one", "two"):
        spare.take(str(make(name)))
    (tmp_path / "two" / "notes.txt").write_text("kept")
    assert not list(make("three").iterdir())
    assert names(tmp_path) == ["three", "two"]
    spare.take(str(tmp_path / "two"))
    spare.remove()
    assert (tmp_path / "two" / "notes.txt").read_text() == "kept"


def test_a_taken_name_is_no_reason_to_lose_a_directory(
    spare: SpareDirectories, make: Callable[[str], Path], tmp_path: Path
) -> None:
    (make("one") / "model.pt").write_text("of another trial")
    spare.take(str(make("two")))
    assert make("one").name.startswith("one_")
    assert (tmp_path / "one" / "model.pt").exists()


def test_the_end_of_a_run_leaves_none(
    spare: SpareDirectories, make: Callable[[str], Path], tmp_path: Path
) -> None:
    ended = [make(f"trial{number}") for number in range(directories._MOST + 10)]
    for path in ended:
        spare.take(str(path))
    assert len(names(tmp_path)) == directories._MOST
    spare.remove()
    assert names(tmp_path) == []


def test_a_directory_of_another_run_is_not_touched(
    spare: SpareDirectories, make: Callable[[str], Path], tmp_path: Path
) -> None:
    spare.take(str(make("one")))
    other = tmp_path / "another"
    assert rays._create_unique_logdir_name(str(other), "two") == "two"
    assert not other.exists()
    assert names(tmp_path) == ["one"]
