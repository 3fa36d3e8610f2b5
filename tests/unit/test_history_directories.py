"""An empty directory of a finished trial becomes that of a new one, and none is left behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pyarrow.fs import LocalFileSystem
from ray.tune.experiment import Trial
from ray.tune.experiment import trial as rays

from ray_tune_memguard.adapter import contract
from ray_tune_memguard.adapter.analysis import patches
from ray_tune_memguard.adapter.histories import directories
from ray_tune_memguard.adapter.histories.directories import TrialDirectories


@pytest.fixture(autouse=True)
def installed() -> None:
    patches.install(contract.probe())


@pytest.fixture
def staging(tmp_path: Path) -> Path:
    path = tmp_path / "run" / "staging"
    path.mkdir(parents=True)
    return path


@pytest.fixture
def kept(staging: Path) -> TrialDirectories:
    return TrialDirectories(str(staging), stay=False)


@pytest.fixture
def make(staging: Path, tmp_path: Path) -> Callable[..., Any]:
    """Do what Ray does for a new trial."""

    def make_trial(trial_id: str, name: str = "trial_{}") -> Any:
        named = rays._create_unique_logdir_name(str(staging), name.format(trial_id))
        path = staging / named
        path.mkdir(exist_ok=True)
        storage = SimpleNamespace(
            storage_filesystem=LocalFileSystem(), trial_fs_path=str(tmp_path / "storage" / named)
        )
        return SimpleNamespace(
            trial_id=trial_id,
            relative_logdir=named,
            local_path=str(path),
            storage=storage,
            checkpoint=None,
        )

    return make_trial


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_an_empty_directory_becomes_the_next_one(
    kept: TrialDirectories, make: Callable[..., Any], staging: Path
) -> None:
    ended = make("1")
    inode = Path(ended.local_path).stat().st_ino
    kept.leave(ended)
    assert names(staging) == [], "not even for a moment is it in what is uploaded"
    assert Path(make("2").local_path).stat().st_ino == inode
    make("3")
    assert names(staging) == ["trial_2", "trial_3"]


def test_what_is_in_a_directory_stays_where_it_is(
    kept: TrialDirectories, make: Callable[..., Any], staging: Path
) -> None:
    ended = make("1")
    (Path(ended.local_path) / "model.pt").write_text("kept")
    kept.leave(ended)
    make("2")
    kept.remove_spare()
    assert names(staging) == ["trial_1", "trial_2"]
    assert (staging / "trial_1" / "model.pt").read_text() == "kept"


def test_what_comes_into_it_in_the_last_moment_stays_where_it_is(
    kept: TrialDirectories,
    make: Callable[..., Any],
    staging: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended = make("1")
    rename = directories.os.rename

    def write_first(source: str, target: str) -> None:
        monkeypatch.undo()
        (Path(source) / "late.txt").write_text("kept")
        rename(source, target)

    monkeypatch.setattr(directories.os, "rename", write_first)
    kept.leave(ended)
    assert (staging / "trial_1" / "late.txt").read_text() == "kept"
    assert not list(Path(make("2").local_path).iterdir())


@pytest.mark.parametrize("name", ["same name", "lr=0.1"])
def test_a_name_that_another_trial_may_get_stays_taken(
    kept: TrialDirectories, make: Callable[..., Any], staging: Path, name: str
) -> None:
    made = []
    for trial_id in ("aa1", "aa2", "aa3"):
        made.append(make(trial_id, name))
        kept.leave(made[-1])
    assert len({trial.relative_logdir for trial in made}) == 3
    assert len(names(staging)) == 3


def test_where_others_may_want_them_all_stay(
    make: Callable[..., Any], staging: Path, tmp_path: Path
) -> None:
    stays = TrialDirectories(str(staging), stay=True)
    ended = make("1")
    Path(ended.storage.trial_fs_path).mkdir(parents=True)
    stays.leave(ended)
    assert names(staging) == ["trial_1"]
    assert names(tmp_path / "storage") == ["trial_1"]


def test_the_end_of_a_run_leaves_none(
    kept: TrialDirectories, make: Callable[..., Any], staging: Path
) -> None:
    for trial in [make(str(number)) for number in range(directories._MOST + 10)]:
        kept.leave(trial)
    assert names(staging) == []
    kept.remove_spare()
    assert names(staging.parent) == ["staging"]
    kept.leave(make("later"))
    assert names(staging) == []


def test_a_directory_of_another_run_is_not_touched(
    kept: TrialDirectories, make: Callable[..., Any], staging: Path, tmp_path: Path
) -> None:
    kept.leave(make("1"))
    other = tmp_path / "another"
    assert rays._create_unique_logdir_name(str(other), "trial_2") == "trial_2"
    assert not other.exists()
    ended = make("3")
    ended.local_path = str(other / "trial_3")
    Path(ended.local_path).mkdir(parents=True)
    kept.leave(ended)
    assert names(other) == []


def test_a_trial_that_never_started_has_none(kept: TrialDirectories) -> None:
    """It was stopped while it waited. Ray raises for its path."""
    trial = Trial("trainable", stub=True, storage=SimpleNamespace())  # type: ignore[arg-type]
    assert not trial.relative_logdir
    kept.leave(trial)


def test_an_empty_directory_is_not_uploaded_and_any_other_is(
    kept: TrialDirectories, make: Callable[..., Any], staging: Path
) -> None:
    empty, full = make("1"), make("2")
    (Path(full.local_path) / "notes.txt").write_text("kept")
    (staging / "state.json").write_text("{}")
    asked = (empty.relative_logdir, full.relative_logdir, "state.json", "gone")
    taken = [directories.is_taken_away(str(staging), name) for name in asked]
    assert taken == [True, False, False, False]
    other = staging.parent
    assert not directories.is_taken_away(str(other), "staging"), "no run of ours"
    stays = TrialDirectories(str(staging), stay=True)
    assert stays.stay
    assert not directories.is_taken_away(str(staging), empty.relative_logdir)
