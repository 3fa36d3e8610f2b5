from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem
from ray.tune.execution.experiment_state import _find_newest_experiment_checkpoint

from ray_tune_memguard.adapter import paths
from ray_tune_memguard.adapter.location import RunLocation

STATE = '{"trial_data": [["{}", "{}"]], "runner_data": {}, "stats": {"start_time": 1.0}}'


@pytest.mark.parametrize(
    ("name", "run"),
    [
        ("trials-2026-11-22_10-40-37.sqlite", ("2026-11-22_10-40-37", 0)),
        ("trials-2026-11-22_10-40-37-12.sqlite", ("2026-11-22_10-40-37", 12)),
        ("elsewhere.sqlite", ("elsewhere", 0)),
    ],
)
def test_the_run_that_a_store_is_of(name: str, run: tuple[str, int]) -> None:
    assert paths.run_of_store(Path("/x", name)) == run


def test_stores_come_newest_first(tmp_path: Path) -> None:
    names = [
        f"trials-2026-11-22_{rest}.sqlite"
        for rest in ("10-40-37", "10-40-37-2", "10-40-37-10", "11-00-00")
    ]
    for name in names:
        tmp_path.joinpath(name).touch()
    tmp_path.joinpath("rss-2026-11-22_12-00-00.csv").touch()
    assert [path.name for path in paths.stores_in(tmp_path)] == names[::-1]
    assert paths.stores_in(tmp_path / "nowhere") == []


def test_the_newest_state_file_is_the_one_that_ray_finds(tmp_path: Path) -> None:
    disk = LocalFileSystem()
    assert paths.newest_state_file(disk, str(tmp_path)) is None
    assert paths.newest_state_file(disk, str(tmp_path / "nowhere")) is None
    for name in (
        "experiment_state-2026-11-22_10-40-37.json",
        "experiment_state-2026-11-22_11-00-00.json",
        "experiment_state-2026-11-22_12-00-00.json.spare",
        ".experiment_state-2026-11-22_12-00-00.json",
        "other.json",
    ):
        (tmp_path / name).write_text(STATE)
    found = paths.newest_state_file(disk, str(tmp_path))
    assert found == _find_newest_experiment_checkpoint(str(tmp_path))
    assert str(found).endswith("11-00-00.json")
    elsewhere = SubTreeFileSystem(str(tmp_path), disk)
    assert paths.newest_state_file(elsewhere, "") == "experiment_state-2026-11-22_11-00-00.json"


@pytest.mark.parametrize("length", [0, 1, 30, len(STATE) - 1])
def test_an_incomplete_state_file_is_passed_over(
    tmp_path: Path, length: int, caplog: pytest.LogCaptureFixture
) -> None:
    older = tmp_path / "experiment_state-2026-11-22_11-00-00.json"
    older.write_text(STATE)
    newer = tmp_path / "experiment_state-2026-11-22_12-00-00.json"
    newer.write_text(STATE[:length])
    for _ in range(2):
        assert paths.newest_state_file(LocalFileSystem(), str(tmp_path)) == str(older)
    assert caplog.messages == [
        f"The experiment state file {newer} is incomplete; {older.name} is used."
    ]
    older.unlink()
    assert paths.newest_state_file(LocalFileSystem(), str(tmp_path)) == str(newer)


def test_the_staging_directory_of_a_resumed_run_shows_the_earlier_state(tmp_path: Path) -> None:
    staging, published = tmp_path / "staging", tmp_path / "experiment_state-2026-11-23.json"
    paths.is_published_at(published, staging)
    assert paths.state_file_of_staging(str(staging)) is None
    earlier = tmp_path / "experiment_state-2026-11-22.json"
    earlier.write_text(STATE)
    assert paths.state_file_of_staging(str(staging)) == str(earlier)
    published.write_text(STATE)
    assert paths.state_file_of_staging(f"{staging}/") == str(published)
    assert paths.state_file_of_staging(str(tmp_path)) is None


def _listing(tmp_path: Path) -> tuple[paths.StagingListing, list[int]]:
    looks: list[int] = []

    def known(names: Any) -> set[str]:
        looks.append(len(names))
        return {name for name in names if name.startswith("trial")}

    session = "2026-11-22_10-40-37"
    staging = tmp_path / "staging"
    return paths.StagingListing(staging, session, f"experiment_state-{session}.json", known), looks


def test_what_is_beside_the_trials_directories(tmp_path: Path) -> None:
    listing, _ = _listing(tmp_path)
    assert listing.session_files() == {}
    staging = tmp_path / "staging"
    staging.mkdir()
    for name in (
        "searcher-state-2026-11-22_10-40-37.pkl",
        "own.json",
        "experiment_state-2026-11-22_10-40-37.json",
        "callbacks-2026-01-01_00-00-00.pkl",
        ".hidden.json",
        "notes.txt",
    ):
        (staging / name).write_text(name)
    for number in range(1200):
        (staging / f"trial{number}").mkdir()
    listing.refresh()
    found = listing.session_files()
    assert sorted(found) == ["own.json", "searcher-state-2026-11-22_10-40-37.pkl"]
    assert found["own.json"] == b"own.json"
    assert len(listing.names(1.0)) == 6


def test_it_is_not_listed_anew_at_once(tmp_path: Path) -> None:
    listing, looks = _listing(tmp_path)
    (tmp_path / "staging").mkdir()
    (tmp_path / "staging" / "one.json").touch()
    assert listing.names(1e-9) == {"one.json"}
    (tmp_path / "staging" / "two.json").touch()
    assert listing.names(1e-9) == {"one.json"}
    assert len(looks) == 1
    assert listing.refresh() == {"one.json", "two.json"}


def test_what_ray_writes_is_not_missed_between_two_looks(tmp_path: Path) -> None:
    listing, looks = _listing(tmp_path)
    (tmp_path / "staging").mkdir()
    (tmp_path / "staging" / "one.json").touch()
    assert listing.names(1e-9) == {"one.json"}
    late = "callback-states-2026-11-22_10-40-37.pkl"
    (tmp_path / "staging" / late).write_text("state")
    assert listing.names(1e-9) == {"one.json", late}
    assert len(looks) == 1


def test_a_slow_look_is_repeated_within_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0

    def scandir(path: Path) -> Any:
        nonlocal now
        now += 20.0  # A slow disk.
        return listed(path)

    listed = paths.os.scandir
    listing, looks = _listing(tmp_path)
    (tmp_path / "staging").mkdir()
    (tmp_path / "staging" / "one.json").touch()
    monkeypatch.setattr(paths.time, "monotonic", lambda: now)
    monkeypatch.setattr(paths.os, "scandir", scandir)
    assert listing.names(0.002) == {"one.json"}
    (tmp_path / "staging" / "two.json").touch()
    now += 59.0
    assert listing.names(0.002) == {"one.json"}
    now += 2.0
    assert listing.names(0.002) == {"one.json", "two.json"}
    assert len(looks) == 2


def test_a_run_is_named_after_earlier_ones_though_the_clock_was_set_back(tmp_path: Path) -> None:
    def name_of_a_run_at(clock: str) -> str:
        storage = SimpleNamespace(
            storage_filesystem=LocalFileSystem(), experiment_fs_path=str(tmp_path / "sweep")
        )
        controller: Any = SimpleNamespace(
            _storage=storage,
            _session_str=clock,
            experiment_state_path=f"/staging/experiment_state-{clock}.json",
        )
        location = RunLocation.of(controller)
        location = location.after_earlier_runs(location.experiment.newest_state_file())
        assert location.state_file_name == f"experiment_state-{location.session}.json"
        return location.session

    assert name_of_a_run_at("2026-11-22_10-00-00") == "2026-11-22_10-00-00"
    stores = tmp_path / "sweep" / paths.DIRECTORY
    stores.mkdir(parents=True)
    (stores / "trials-2026-11-22_23-59-59.sqlite").touch()
    (stores / "trials-of-mine.sqlite").touch()
    assert name_of_a_run_at("2026-11-22_10-00-00") == "2026-11-23_00-00-00"
    (tmp_path / "sweep" / "experiment_state-2026-11-24_10-00-00.json").write_text(STATE)
    assert name_of_a_run_at("2026-11-22_10-00-00") == "2026-11-24_10-00-01"
    assert name_of_a_run_at("2026-11-25_10-00-00") == "2026-11-25_10-00-00"
