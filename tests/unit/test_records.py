"""JSON lines of a run: what is written is read, and half a line hurts nobody."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import ray_tune_memguard as memguard
from ray_tune_memguard.callbacks.recording import RunRecords
from ray_tune_memguard.notices import Notices
from ray_tune_memguard.report.records import RecordFile, known_fields, read_records
from tests.unit.measured_experiments import measured

RUN = "2026-11-26_10-00-00"


@dataclass(frozen=True)
class Note:
    text: str
    size: float = 0.0


def build(row: dict[str, object]) -> Note:
    return Note(**known_fields(Note, row))  # type: ignore[arg-type]


def read(path: Path) -> list[Note]:
    return read_records(path, "notes", build)


def test_records_of_all_runs_are_read_in_their_order(tmp_path: Path) -> None:
    first, second = (tmp_path / ".memguard" / f"notes-{n}.jsonl" for n in (1, 2))
    RecordFile(second).add(Note("c", 3.5))
    for text in "ab":
        RecordFile(first).add(Note(text))
    assert read(tmp_path) == [Note("a"), Note("b"), Note("c", 3.5)]
    assert read(first) == [Note("a"), Note("b")]
    assert read(tmp_path / "nothing") == []


def test_a_torn_line_is_skipped_and_does_not_spoil_the_next(tmp_path: Path) -> None:
    path = tmp_path / "notes-1.jsonl"
    file = RecordFile(path)
    file.add(Note("a"))
    path.open("a").write('{"text": "torn')
    file._is_torn = True
    file.add(Note("b"))
    path.open("a").write('[1]\n{"text": "torn')
    assert read(tmp_path) == [Note("a"), Note("b")]


def test_a_damaged_line_is_skipped_unless_all_are(tmp_path: Path) -> None:
    path = tmp_path / "notes-1.jsonl"
    path.write_text('{"size": 1}\n{"text": "a"}\n{"text": "b", "size": "much"}\n')
    assert read(path) == [Note("a")]
    path.write_text('{"size": 1}\n')
    with pytest.raises(TypeError, match="text"):
        read(path)


@pytest.mark.parametrize("line", ['{"trial_id": "t"}', '{"config": 1}', '{"started": "soon"}'])
def test_a_damaged_line_costs_one_trial_and_not_all(tmp_path: Path, line: str) -> None:
    [file] = measured(tmp_path).glob(".memguard/trial-memory-*")
    first = json.loads(file.read_text().partition("\n")[0])
    whole = line if "trial_id" in line else json.dumps({**first, **json.loads(line)})
    with file.open("a") as lines:
        lines.write(f"{whole}\n")
    assert len(memguard.read_trial_memory(tmp_path)) == 30


def test_the_directory_of_earlier_versions_is_read_as_well(tmp_path: Path) -> None:
    for name, number in (("memguard", 1), (".memguard", 2)):
        RecordFile(tmp_path / name / f"notes-{number}.jsonl").add(Note(name))
    assert read(tmp_path) == [Note("memguard"), Note(".memguard")]


def test_files_of_trials_are_no_records(tmp_path: Path) -> None:
    RecordFile(tmp_path / ".memguard" / "notes-1.jsonl").add(Note("a"))
    RecordFile(tmp_path / "trial_1" / "notes-2.jsonl").add(Note("of the trial"))
    assert read(tmp_path) == [Note("a")]


@pytest.mark.parametrize(
    "reader",
    [
        memguard.read_deaths,
        memguard.read_diagnosis,
        memguard.read_gate,
        memguard.read_growth,
        memguard.read_head_node,
        memguard.read_rss_series,
        memguard.read_trial_memory,
    ],
)
def test_a_path_may_begin_in_the_home_directory(
    reader: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(tmp_path / "sweep")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert str(reader("~/sweep")) == str(reader(str(tmp_path / "sweep")))


def test_fields_of_another_version_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "notes-1.jsonl").write_text('{"text": "a", "new": 1}\n')
    assert read(tmp_path) == [Note("a")]


def test_what_cannot_be_written_is_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    path = blocked / f"notes-{RUN}.jsonl"
    run = SimpleNamespace(report_path=lambda trials, kind, suffix: path)
    records = RunRecords(run, "notes", "Noter", Notices())  # type: ignore[arg-type]
    for _ in range(3):
        records.add([], Note("a"))
    assert [record.getMessage() for record in caplog.records if "Noter cannot" in record.message]
    assert len(caplog.records) == 1
    blocked.unlink()
    records.add([], Note("b"))
    assert read(path.parent) == [Note("b")]


def test_no_file_before_the_run_has_a_directory() -> None:
    run = SimpleNamespace(report_path=lambda trials, kind, suffix: None)
    records = RunRecords(run, "notes", "Noter", Notices())  # type: ignore[arg-type]
    records.add([], Note("a"))
    assert records.path is None
