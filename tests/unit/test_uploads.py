"""What an upload takes along."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pyarrow.fs import LocalFileSystem

from ray_tune_memguard.adapter import paths
from ray_tune_memguard.adapter.run import uploads
from ray_tune_memguard.adapter.run.uploads import IncrementalSyncer

SPILLED = {"trial0", "trial1"}


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    staging, storage = tmp_path / "staging", tmp_path / "storage"
    storage.mkdir()
    for number in range(4):
        (staging / f"trial{number}").mkdir(parents=True)
        (staging / f"trial{number}" / "result.json").write_text("first")
    (staging / "searcher-state-now.pkl").write_text("first")
    return staging, storage


def make_syncer(staging: Path, *live: str | None) -> IncrementalSyncer:
    def known(names: Any) -> set[str]:
        names = [name for name in names if name.isprintable()]
        return SPILLED & set(names)

    trials: Any = SimpleNamespace(
        resident=lambda: [SimpleNamespace(relative_logdir=name) for name in live]
    )
    original: Any = SimpleNamespace(
        storage_filesystem=LocalFileSystem(), sync_period=1, sync_timeout=1
    )
    listing = paths.StagingListing(staging, "now", "experiment_state-now.json", known)
    return IncrementalSyncer(original, trials, lambda: iter(()), listing)


def upload(syncer: IncrementalSyncer, places: tuple[Path, Path]) -> None:
    command, arguments = syncer._sync_up_command(*map(str, places))
    command(**arguments)


def change(staging: Path) -> None:
    for file in staging.rglob("*.*"):
        file.write_text("second time")


def test_a_temporary_file_that_was_renamed_stops_nothing(
    places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run writes its reports while an upload goes on."""
    staging, storage = places
    own = staging / paths.DIRECTORY
    own.mkdir()
    for name in (".diagnosis.json.part", "rss.csv"):
        (own / name).write_text("first")
    original = uploads._upload

    def upload_renamed(source: str, *target: Any) -> None:
        if source.endswith(".part") and Path(source).exists():
            os.replace(source, source.replace("/.diag", "/diag").removesuffix(".part"))
            raise FileNotFoundError(source)
        original(source, *target)

    monkeypatch.setattr(uploads, "_upload", upload_renamed)
    syncer = make_syncer(staging)
    upload(syncer, places)
    assert (storage / paths.DIRECTORY / "rss.csv").read_text() == "first"
    change(own)
    upload(syncer, places)
    assert (storage / paths.DIRECTORY / "rss.csv").read_text() == "second time"


def changed(storage: Path) -> set[str]:
    return {
        str(file.relative_to(storage).parts[0])
        for file in storage.rglob("*.*")
        if file.is_file() and file.read_text() == "second time"
    }


def test_what_is_spilled_is_uploaded_once_more(places: tuple[Path, Path]) -> None:
    staging, storage = places
    syncer = make_syncer(staging, "trial2")
    upload(syncer, places)
    assert len(list(storage.rglob("result.json"))) == 4
    syncer.mark_for_upload("trial1")
    change(staging)
    upload(syncer, places)
    # The fourth is nobody's that is known, so somebody's own.
    assert changed(storage) == {"trial1", "trial2", "trial3", "searcher-state-now.pkl"}
    assert syncer.unsent() == []


def test_a_trial_without_a_directory_stops_nothing(places: tuple[Path, Path]) -> None:
    staging, storage = places
    syncer = make_syncer(staging, None, "trial2", "not there yet")
    upload(syncer, places)
    change(staging)
    upload(syncer, places)
    assert {"trial2", "searcher-state-now.pkl"} <= changed(storage)


def test_the_last_upload_takes_what_the_listing_may_lack(places: tuple[Path, Path]) -> None:
    staging, storage = places
    syncer = make_syncer(staging)
    upload(syncer, places)
    syncer._staging.refresh()
    syncer._staging._took = 1e6  # So that it is not listed anew.
    (staging / "late.txt").write_text("second time")
    upload(syncer, places)
    assert "late.txt" not in changed(storage)
    syncer.thorough = True
    upload(syncer, places)
    assert "late.txt" in changed(storage)


def test_measurements_are_uploaded_when_they_have_grown_and_at_the_end(
    places: tuple[Path, Path],
) -> None:
    staging, storage = places
    syncer = make_syncer(staging)
    series = staging / ".memguard" / "rss-now.csv"
    series.parent.mkdir()

    def uploaded(size: int, thorough: bool = False) -> int:
        series.write_bytes(b"x" * size)
        syncer.thorough = thorough
        syncer._staging.refresh()
        upload(syncer, places)
        return next(storage.rglob("rss-now.csv")).stat().st_size

    sizes = 1000, 1100, 1249, 1250, 1300
    assert [uploaded(size) for size in sizes] == [1000, 1000, 1000, 1250, 1250]
    # Somebody has begun it anew.
    assert uploaded(10) == 10
    assert uploaded(11, thorough=True) == 11
