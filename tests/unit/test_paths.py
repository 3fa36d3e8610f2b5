from __future__ import annotations

from pathlib import Path

import pytest

from ray_tune_memguard.tune_internals import paths


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
