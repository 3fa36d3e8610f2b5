"""Copies of directories have what the directories have."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from ray_tune_memguard.adapter.run.local_copy import copy_directory, copy_file


def contents(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def source(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    (source / "deep" / "deeper").mkdir(parents=True)
    (source / "empty").write_bytes(b"")
    (source / "large").write_bytes(os.urandom(3 << 20))
    (source / "deep" / "deeper" / "small").write_bytes(b"x")
    (source / "link").symlink_to(source / "large")
    (source / "broken link").symlink_to(source / "nothing")
    os.mkfifo(source / "pipe")
    return source


def test_files_of_any_depth_are_copied_over_what_was_there(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "large").write_bytes(b"longer than before" * 1_000_000)
    (target / "of somebody").write_bytes(b"stays")
    copy_directory(str(source), str(target))
    assert contents(target) == {**contents(source), "of somebody": b"stays"}
    assert not (target / "link").is_symlink()


def test_a_parent_that_was_removed_is_made_again(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "removed" / "target"
    copy_directory(str(source), str(target))
    assert contents(target) == contents(source)


@pytest.mark.parametrize("how", ["refuses", "copies nothing", "is not there", "stops half way"])
def test_a_kernel_that_does_not_copy(
    how: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copy_file_range(reading: int, writing: int, count: int, **more: Any) -> int:
        if how == "stops half way" and not os.fstat(writing).st_size:
            return os.write(writing, b"half")
        if how != "copies nothing":
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        return 0

    if how == "is not there":
        monkeypatch.delattr(os, "copy_file_range")
    else:
        monkeypatch.setattr(os, "copy_file_range", copy_file_range)
    target = tmp_path / "target"
    copy_directory(str(source), str(target))
    assert contents(target) == contents(source)


def test_one_that_cannot_be_copied_stops_no_other(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    (target / "deep" / "deeper").mkdir(parents=True)
    (target / "empty").mkdir()
    with pytest.raises(IsADirectoryError):
        copy_directory(str(source), str(target))
    assert contents(target) == {k: v for k, v in contents(source).items() if k != "empty"}


def test_what_is_gone_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        copy_file(str(tmp_path / "nothing"), str(tmp_path / "target"))


@pytest.mark.parametrize("link", ["symbolic", "hard"])
def test_a_link_to_the_target_leaves_it_as_it_is(link: str, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    (target / "result.json").write_bytes(b"kept")
    if link == "hard":
        (source / "result.json").hardlink_to(target / "result.json")
    else:
        (source / "result.json").symlink_to(target / "result.json")
    copy_directory(str(source), str(target))
    assert contents(target) == {"result.json": b"kept"}


def test_links_to_directories_above_are_not_followed_for_ever(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    (source / "file").write_bytes(b"x")
    (source / "itself").symlink_to(source)
    (source / "storage").symlink_to(target)
    copy_directory(str(source), str(target))
    assert contents(target) == {"file": b"x"}


def test_what_may_not_be_read_is_told(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = os.scandir

    # Made up, for nothing is forbidden to root.
    def scandir(path: str) -> Any:
        if path.endswith("deeper"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(PermissionError):
        copy_directory(str(source), str(tmp_path / "target"))
    monkeypatch.undo()
    assert "large" in contents(tmp_path / "target")
