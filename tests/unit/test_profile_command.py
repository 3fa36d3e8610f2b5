"""``memguard profile``, of experiments as their runs leave them, and of single files."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ray_tune_memguard.cli.exit_codes import ExitCode
from ray_tune_memguard.cli.main import main
from ray_tune_memguard.report.profile_records import TrialProfile, read_profiles
from ray_tune_memguard.report.records import RecordFile
from tests.unit.measured_experiments import RUN, experiment_of_ray, measured

pytest.importorskip("memray", reason="profiles need memray")

MIB = 2**20
TRIAL = """\
import sys, memray
import numpy as np

def train():
    return np.ones(80 * 2**20, dtype=np.uint8)  # The line that counts.

with memray.Tracker(sys.argv[1], file_format=memray.FileFormat.AGGREGATED_ALLOCATIONS):
    kept = train(), bytearray(3 * 2**20)
"""
LINE = 1 + [line.endswith("counts.") for line in TRIAL.splitlines()].index(True)
RECORD = TrialProfile(
    "t1",
    "completed",
    1000.0,
    "train_t1/memray-sweep-t1.bin",
    node="n",
    address="10.0.0.5",
    pid=7,
    path="/nowhere/memray-sweep-t1.bin",
    size_bytes=9000,
    peak_bytes=83 * MIB,
)


def run(*arguments: object, code: int = ExitCode.OK) -> str:
    done = CliRunner().invoke(main, ["profile", *map(str, arguments)])
    assert done.exit_code == code, done.output
    return done.output


@pytest.fixture(scope="session")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A profile of 80 MiB on one line and 3 MiB on another."""
    folder = tmp_path_factory.mktemp("profile")
    script, found = folder / "trial.py", folder / "one.bin"
    script.write_text(TRIAL)
    subprocess.run([sys.executable, script, found], check=True)
    return found


@pytest.fixture
def experiment(tmp_path: Path, profile: Path) -> Path:
    """An experiment with one profile."""
    path = measured(tmp_path / "sweep")
    record(path, replace(RECORD, state="running", file="", peak_bytes=0), RECORD)
    file = path / RECORD.file
    file.parent.mkdir()
    file.write_bytes(profile.read_bytes())
    return path


def record(path: Path, *records: TrialProfile) -> None:
    file = RecordFile(path / ".memguard" / f"profiles-{RUN}.jsonl")
    for one in records:
        file.add(one)


def test_the_line_that_allocated_is_named(experiment: Path, profile: Path) -> None:
    text = run(experiment)
    assert "Profiles\n" in text
    assert "Allocated at the peak of trial t1: 83" in text
    [line] = [line for line in text.splitlines() if f"trial.py:{LINE} " in line]
    assert line.split()[:3] == ["80.0", "MiB", "96%"]
    # The function of numpy that the line calls.
    assert line.split()[-2:] == ["train", "ones"]
    # One file is told of like an experiment's.
    assert run(profile) == text.partition("\n\n")[2].replace(" of trial t1", "")
    assert run(experiment / ".memguard") == text


def test_of_a_trial_that_failed_before_the_highest_peak_and_of_two_runs_the_last(
    experiment: Path,
) -> None:
    killed = replace(RECORD, trial_id="t2", state="error", pid=8, peak_bytes=0)
    record(experiment, killed, replace(RECORD, trial_id="t3", pid=9, peak_bytes=900 * MIB))
    assert json.loads(run(experiment, "--json"))["trial"] == "t2"
    again = replace(RECORD, pid=10, file="again.bin")
    record(experiment, again, replace(again, pid=11, file="", path=""))
    (experiment / again.file).write_bytes((experiment / RECORD.file).read_bytes())
    found = json.loads(run(experiment, "t1", "--json"))
    # The last one has no file.
    assert Path(found["file"]).name == "again.bin"
    assert len(found["profiles"]) == 5


def test_json_has_all_lines(experiment: Path) -> None:
    found = json.loads(run(experiment, "t1", "--json", "--limit", 0))
    assert (found["trial"], found["profiles"][0]["state"]) == ("t1", "completed")
    first, second = found["lines"][:2]
    assert (first["line"], first["function"], first["by"]) == (LINE, "train", "ones")
    assert 80 * MIB <= first["bytes"] < 80 * MIB + 100
    assert second["bytes"] == 3 * MIB + 1
    assert first["share"] >= 0.9
    assert sum(line["bytes"] for line in found["lines"]) == found["peak_bytes"]


def test_fewer_lines(experiment: Path) -> None:
    text = run(experiment, "--limit", 1)
    assert f"trial.py:{LINE}" in text
    assert "more: --limit 0." in text
    assert len(json.loads(run(experiment, "--limit", 1, "--json"))["lines"]) == 1


def test_a_flame_graph(experiment: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert f"Flame graph: {page}" in run(experiment, "--html", page)
    text = page.read_text()
    assert "<html" in text
    assert f"trial.py:{LINE}" in text or "return np.ones(80" in text
    nowhere = tmp_path / "none" / "page.html"
    assert "cannot be written" in run(experiment, "--html", nowhere, code=ExitCode.FAILED)


def test_the_highest_peak_is_shown_unless_another_trial_is_named(experiment: Path) -> None:
    lighter = replace(RECORD, trial_id="t2", file="train_t2/memray.bin", peak_bytes=MIB)
    killed = replace(RECORD, trial_id="t3", file="", peak_bytes=0, note="It is empty.")
    heavier = replace(RECORD, trial_id="t4", file="", peak_bytes=900 * MIB)
    record(experiment, lighter, killed, heavier)
    (experiment / "train_t2").mkdir()
    (experiment / lighter.file).write_bytes((experiment / RECORD.file).read_bytes())
    assert "peak of trial t1" in run(experiment)
    assert "peak of trial t2" in run(experiment, "t2")
    text = run(experiment, "t3", code=ExitCode.NOT_FOUND)
    assert "it is at /nowhere/memray-sweep-t1.bin on node 10.0.0.5. It is empty." in text
    text = run(experiment, "t9", code=ExitCode.NOT_FOUND)
    assert "no profile of trial t9, but of t1, t2, t3, t4." in text


@pytest.mark.parametrize(
    ("state", "is_alive", "reason"),
    [
        ("running", True, "the trial is being profiled"),
        ("running", False, "it is at /nowhere/memray-sweep-t1.bin on node 10.0.0.5"),
        ("removed", False, "it was removed, because heavier trials were profiled"),
    ],
)
def test_a_profile_that_is_not_here(
    tmp_path: Path, state: Any, is_alive: bool, reason: str
) -> None:
    path = measured(tmp_path / "sweep", ended=False, is_alive=is_alive)
    record(path, replace(RECORD, state=state))
    assert reason in run(path, code=ExitCode.NOT_FOUND)


def test_a_profile_that_stayed_on_this_machine(experiment: Path, profile: Path) -> None:
    (experiment / RECORD.file).unlink()
    record(experiment, replace(RECORD, file="", path=str(profile), note="It has stayed."))
    text = run(experiment)
    assert str(profile) in text
    assert "It has stayed." in text


# What is no profile.


@pytest.mark.parametrize("content", [b"", b"no profile", None])
def test_a_damaged_profile(experiment: Path, content: bytes | None) -> None:
    file = experiment / RECORD.file
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if content is None else content)
    if content == b"":
        assert "cannot be read here" in run(experiment, code=ExitCode.NOT_FOUND)
    else:
        assert "cannot be read as a profile of memray" in run(experiment, code=ExitCode.FAILED)
    assert "cannot be read as a profile" in run(file, code=ExitCode.FAILED)


def test_damaged_records(experiment: Path) -> None:
    [file] = experiment.glob(".memguard/profiles-*")
    file.write_text(file.read_text() + '{"trial_id": "t2", "peak_by')
    assert "peak of trial t1" in run(experiment)
    file.write_text('{"trial_id": "t1", "time": "soon"}\n')
    assert "The profiles cannot be read" in run(experiment, code=ExitCode.FAILED)


def test_experiments_without_profiles(tmp_path: Path) -> None:
    assert "There is nothing at" in run(tmp_path / "none", code=ExitCode.NOT_FOUND)
    assert "is no experiment" in run(tmp_path, code=ExitCode.NOT_FOUND)
    assert "not on a local disk" in run("s3://bucket/sweep", code=ExitCode.USAGE)
    text = run(experiment_of_ray(tmp_path / "ray"), code=ExitCode.NOT_FOUND)
    assert "its runs had no MemrayProfiler()" in text
    going = measured(tmp_path / "going", ended=False, is_alive=True)
    assert "has begun none yet" in run(going, code=ExitCode.NOT_FOUND)


def test_a_file_has_no_trials(profile: Path) -> None:
    assert "which has no trial t1" in run(profile, "t1", code=ExitCode.USAGE)


def test_without_memray(experiment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "memray", None)
    text = run(experiment, code=ExitCode.MISSING_EXTRA)
    assert 'pip install "ray-tune-memguard[profile]"' in text


def test_read_profiles_has_the_latest_record_of_each_trial(experiment: Path) -> None:
    assert read_profiles(experiment) == [RECORD]
    record(experiment, replace(RECORD, children=("one.bin.9",), trial_id="t2"))
    assert [one.children for one in read_profiles(experiment)] == [(), ("one.bin.9",)]
    assert read_profiles(experiment / "train_t1") == []
