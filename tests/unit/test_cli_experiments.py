"""The commands that read an experiment, as its runs leave it: ended, going on, killed, damaged."""

from __future__ import annotations

import itertools
import json
import os
import re
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas
import pytest
from click.testing import CliRunner

from ray_tune_memguard.cli import top
from ray_tune_memguard.cli.exit_codes import ExitCode
from ray_tune_memguard.cli.experiments import is_quiet
from ray_tune_memguard.cli.main import main
from ray_tune_memguard.diagnostics.diagnosis import Diagnosis
from ray_tune_memguard.diagnostics.growth import GrowthRow
from ray_tune_memguard.exporting import IncompleteExportError
from ray_tune_memguard.report.series_file import SeriesFile
from ray_tune_memguard.store.histories import FILE_NAME, HistoryStore
from ray_tune_memguard.store.snapshot import Snapshot
from ray_tune_memguard.store.trial_store import TrialStore
from ray_tune_memguard.system.kernel_log import boot_id
from tests.unit.fakes import fake_row
from tests.unit.measured_experiments import (
    LATER_RUN,
    RUN,
    experiment_of_ray,
    measured,
    resume,
    stored,
)

READERS = ["show", "top", "deaths", "trials", "verify", "export", "import"]


def run(*arguments: object, code: int = ExitCode.OK) -> str:
    done = CliRunner().invoke(main, list(map(str, arguments)))
    assert done.exit_code == code, done.output
    return done.output


def run_json(*arguments: object, code: int = ExitCode.OK) -> Any:
    return json.loads(run(*arguments, "--json", code=code))


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    return measured(tmp_path / "sweep")


# Directories that are no experiment.


@pytest.mark.parametrize("command", READERS)
def test_a_path_without_anything(tmp_path: Path, command: str) -> None:
    assert "There is nothing at" in run(command, tmp_path / "none", code=ExitCode.NOT_FOUND)


@pytest.mark.parametrize("command", READERS)
def test_a_directory_that_is_no_experiment(tmp_path: Path, command: str) -> None:
    experiment_of_ray(tmp_path / "sweep")
    text = run(command, tmp_path, code=ExitCode.NOT_FOUND)
    assert "is no experiment" in text
    assert "Experiments in it: sweep." in text


@pytest.mark.parametrize("command", READERS)
def test_a_file(tmp_path: Path, command: str) -> None:
    file = tmp_path / "file"
    file.touch()
    assert "is a file" in run(command, file, code=ExitCode.NOT_FOUND)


@pytest.mark.parametrize("command", [*READERS, "report", "profile"])
def test_a_path_that_cannot_be_examined(tmp_path: Path, command: str) -> None:
    assert "File name too long" in run(command, tmp_path / ("n" * 300), code=ExitCode.FAILED)


def test_top_passes_over_what_cannot_be_examined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    results = tmp_path / "ray_results"
    expected = run("show", measured(results / "sweep"))
    for name in ("closed", "notes"):
        (results / name).mkdir()
    (results / "closed" / ".memguard").mkdir()
    (results / "notes" / "memguard").write_text("a file of the user's")
    list_directory = Path.iterdir

    def refuse(path: Path) -> Iterator[Path]:
        if path.parent.name == "closed":
            raise PermissionError(13, "Permission denied")
        return list_directory(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert run("top") == expected


def test_an_experiment_that_is_removed_is_quiet(tmp_path: Path) -> None:
    assert is_quiet(tmp_path / "removed")


@pytest.mark.parametrize("command", ["show", "deaths", "trials"])
def test_an_experiment_of_ray_alone(tmp_path: Path, command: str) -> None:
    text = run(command, experiment_of_ray(tmp_path), code=ExitCode.NOT_FOUND)
    assert "its runs had no MemGuard() among their callbacks" in text


@pytest.mark.parametrize("command", ["show", "deaths", "trials"])
def test_an_experiment_in_which_nothing_was_measured(tmp_path: Path, command: str) -> None:
    (experiment_of_ray(tmp_path) / ".memguard").mkdir()
    assert "nothing recorded" in run(command, tmp_path, code=ExitCode.NOT_FOUND)


@pytest.mark.parametrize("command", ["show", "deaths", "trials"])
def test_an_experiment_elsewhere(command: str) -> None:
    assert "not on a local disk" in run(command, "s3://bucket/sweep", code=ExitCode.USAGE)


@pytest.mark.parametrize("command", ["show", "deaths", "trials"])
def test_its_memguard_directory_is_an_experiment_too(experiment: Path, command: str) -> None:
    assert run(command, experiment / ".memguard") == run(command, experiment)


# show


def test_show_an_experiment_that_has_ended(experiment: Path) -> None:
    text = run("show", experiment)
    assert "Its last run has ended." in text
    assert "+2.0 KiB per trial" in text
    assert re.search(
        r"Memory of the driver after 400 trials.*, growth over the last \d+ trials", text
    )
    assert "Heaviest of 30 trials" in text
    assert "Deaths: 1 kernel_oom" in text
    assert "93 % of its memory is in use" in text
    assert "+16.0 KiB" in text.partition("gcs_server")[2]
    store = "Object store: 57.2 MiB of 1.0 GiB in memory, 20.9 MiB on disk, +200 KiB per trial."
    assert store in text
    assert "Trials have left objects behind: 78.1 MiB stay in it" in text
    found = run_json("show", experiment)
    assert found["run"]["state"] == "finished"
    assert found["rss"]["bytes_per_trial"] == pytest.approx(2048)
    assert [len(found["rss"]["series"]), len(found["trials"]), len(found["deaths"])] == [21, 30, 1]
    assert found["diagnosis"]["trials"] == 400
    assert [record["action"] for record in found["gate"]] == ["pause"]
    assert len(found["head"]) == 5
    assert len(found["store"]) == 5


@pytest.mark.parametrize(("is_alive", "state"), [(True, "running"), (False, "killed")])
def test_show_an_experiment_without_an_end(tmp_path: Path, is_alive: bool, state: str) -> None:
    """It has no diagnosis yet, or never; what grows is told of the samples."""
    measured(tmp_path / "sweep", ended=False, is_alive=is_alive)
    found = run_json("show", tmp_path / "sweep")
    assert found["run"]["state"] == state
    assert found["diagnosis"] is None
    growth = {one["name"]: one["per_trial"] for one in found["growth"]}
    assert growth == {"rss": pytest.approx(2048), "Mine.history": pytest.approx(1024)}
    assert "Mine.history" in run("show", tmp_path / "sweep")


def test_a_site_without_time_is_a_row_of_a_run_without_an_end(tmp_path: Path) -> None:
    experiment = measured(tmp_path / "sweep", ended=False, is_alive=True)
    [file] = experiment.glob(".memguard/growth-*")
    SeriesFile(file, GrowthRow).add(
        [
            GrowthRow(1200.0, 200, 200, "holder", "Mine.board", 2e6),
            GrowthRow(1400.0, 400, 400, "unmeasured", "Mine.board", 2e6),
            GrowthRow(1400.0, 400, 400, "unmeasured", "Mine.never", 0.0),
            GrowthRow(1200.0, 200, 200, "unmeasured", "Mine.history", 2e5),
        ]
    )
    found = run_json("show", experiment)["growth"]
    unmeasured = [one["name"] for one in found if one["kind"] == "unmeasured"]
    assert unmeasured == ["Mine.board", "Mine.never"]
    assert [one["kind"] for one in found if one["name"] == "Mine.board"] == ["unmeasured"]
    text = run("top", "--count", "1", experiment)
    rows = [" ".join(row.split()) for row in text.splitlines()]
    assert "no time Mine.board about 1.9 MiB ?" in rows
    assert "no time Mine.never ? ?" in rows


@pytest.mark.parametrize(
    ("changed", "state"),
    [
        ({"pid_namespace": "pid:[1]"}, "unknown"),
        ({"host": "a-container"}, "unknown"),
        ({"boot_id": "another"}, "unknown"),
        ({"boot_id": ""}, "unknown"),
        ({"pid_namespace": ""}, "killed"),  # As earlier versions wrote it.
        ({}, "killed"),
    ],
)
def test_a_driver_that_cannot_be_seen_from_here_is_not_called_killed(
    tmp_path: Path, changed: dict[str, str], state: str
) -> None:
    """In another container it is there under another number."""
    experiment = measured(tmp_path / "sweep", ended=False)
    [file] = experiment.glob(".memguard/driver-*")
    file.write_text(json.dumps({**json.loads(file.read_text()), **changed}))
    found = run_json("show", experiment)["run"]
    assert found["state"] == state
    assert ("not seen from here" in found["sentence"]) == (state == "unknown")


def test_what_grows_in_a_resumed_experiment_is_told_of_its_last_run(experiment: Path) -> None:
    """Each run has another driver, and may have other processes of Ray's."""
    found = run_json("show", resume(experiment))
    assert found["rss"]["bytes_per_trial"] == pytest.approx(4096)
    assert found["diagnosis"] is None  # It was of the run before.
    assert [(one["name"], one["per_trial"]) for one in found["growth"]] == [
        ("Later.list", pytest.approx(2048))
    ]
    text = run("show", experiment)
    assert "+4.0 KiB per trial in the last run" in text
    assert "on disk, +100 KiB per trial." in text
    _, _, head = text.partition("Ray's processes on the head node")
    assert "+8.0 KiB" in head
    assert "gcs_server" not in head
    assert "Trials have left objects behind" in text


def test_a_run_that_was_diagnosed_after_a_kill_shows_its_diagnosis(experiment: Path) -> None:
    own = resume(experiment) / ".memguard"
    Diagnosis(500, 500, parts=[]).save(own / f"diagnosis-{LATER_RUN}.json")
    assert run_json("show", experiment)["diagnosis"]["trials"] == 500


def test_a_file_of_the_last_run_without_a_row_hides_no_slope(experiment: Path) -> None:
    (experiment / ".memguard" / f"rss-{LATER_RUN}.csv").write_text("time,tri")
    found = run_json("show", experiment)
    assert found["rss"]["bytes_per_trial"] == pytest.approx(2048)
    assert found["problems"] == []


def test_a_trial_that_two_runs_ran_took_what_both_took(experiment: Path) -> None:
    [line] = [one for one in run("trials", resume(experiment)).splitlines() if "t00029" in one]
    assert "4 min 20 s" in line


def test_show_the_rest_of_a_damaged_experiment(experiment: Path) -> None:
    own = experiment / ".memguard"
    (own / f"diagnosis-{RUN}.json").write_text("{")
    (own / f"deaths-{RUN}.jsonl").write_text('{"time": 1}\n')
    (own / f"rss-{RUN}.csv").write_text("time,trials\n1,2\n")
    text = run("show", experiment, code=ExitCode.WARNING)
    assert "The diagnosis cannot be read" in text
    assert "The records of deaths cannot be read" in text
    assert "The RSS series cannot be read" in text
    assert "Heaviest of 30 trials" in text


def test_show_has_a_row_for_each_of_the_heaviest_trials(experiment: Path) -> None:
    assert run("show", experiment, "--rows", 7).count("layers=") == 7


def test_a_run_that_has_measured_nothing_yet(tmp_path: Path) -> None:
    experiment = measured(tmp_path / "sweep", ended=False, is_alive=True)
    for file in experiment.glob(".memguard/*"):
        if not file.name.startswith("driver-"):
            file.unlink()
    assert "Nothing has been measured yet." in run("show", experiment)
    assert "recorded none yet" in run("trials", experiment, code=ExitCode.NOT_FOUND)
    assert run("deaths", experiment) == "No trial has died.\n"


@pytest.mark.parametrize("charset", ["utf-8", "latin-1", "ascii"])
def test_what_the_terminal_cannot_print_is_escaped(tmp_path: Path, charset: str) -> None:
    """A name of bytes that are no text, and a terminal that does not know the bars."""
    experiment = measured(tmp_path / os.fsdecode(b"sw\xff\x1b[31meep"))
    [file] = experiment.glob(".memguard/trial-memory-*")
    file.write_text(file.read_text().replace("t00029", "trial_\U0001f600"))
    for command in ("show", "top", "trials", "deaths"):
        done = CliRunner(charset=charset).invoke(main, [command, str(experiment)])
        assert done.exit_code == ExitCode.OK, done.exception
        assert "\x1b" not in done.output
    done = CliRunner(charset=charset).invoke(main, ["show", str(experiment), "--json"])
    assert json.loads(done.output)["trials"][0]["trial_id"] == "trial_\U0001f600"


# top


def test_top_ends_with_the_run(experiment: Path) -> None:
    assert run("top", experiment) == run("show", experiment)


def test_top_of_a_run_that_goes_on(tmp_path: Path) -> None:
    measured(tmp_path / "sweep", ended=False, is_alive=True)
    text = run("top", tmp_path / "sweep", "--interval", 0.1, "--count", 2)
    assert text == 2 * run("show", tmp_path / "sweep")
    found = run_json("top", tmp_path / "sweep", "--count", 1)
    assert found["run"]["state"] == "running"


@pytest.mark.parametrize(("took", "pause"), [(0.0, 2.0), (0.1, 2.0), (1.5, 15.0)])
def test_top_takes_a_small_share_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, took: float, pause: float
) -> None:
    experiment = measured(tmp_path / "sweep", ended=False, is_alive=True)
    clock, pauses = itertools.count(), []
    fake = SimpleNamespace(monotonic=lambda: next(clock) * took, sleep=pauses.append)
    monkeypatch.setattr(top, "time", fake)
    run("top", experiment, "--count", 2)
    assert pauses == [pytest.approx(pause)]


def test_top_before_anything_is_measured(tmp_path: Path) -> None:
    experiment = experiment_of_ray(tmp_path)
    (experiment / ".memguard").mkdir()
    assert "Nothing has been measured yet." in run("top", experiment, "--count", 1)


def test_a_later_run_by_ray_alone_is_not_taken_for_a_kill(tmp_path: Path) -> None:
    experiment = measured(tmp_path / "sweep", ended=False)
    assert run_json("show", experiment)["run"]["state"] == "killed"
    (experiment / "experiment_state-2026-11-22_10-30-00.json").write_text("{}")
    text = run("show", experiment)
    assert "A later run was by Ray alone" in text
    assert "recorded no end" not in text
    assert run_json("show", experiment)["run"]["state"] == "unknown"


@pytest.mark.parametrize("kind", ["none", "damaged", "elsewhere"])
def test_top_ends_when_a_run_of_unknown_state_records_nothing_more(
    tmp_path: Path, kind: str
) -> None:
    experiment = measured(tmp_path / "sweep", ended=False, is_alive=True)
    [driver] = experiment.glob(".memguard/driver-*")
    if kind == "none":
        driver.unlink()
    elif kind == "damaged":
        driver.write_text('{"event": "be')
    else:
        driver.write_text(driver.read_text().replace(boot_id(), "another machine's"))
    assert run_json("show", experiment)["run"]["state"] == "unknown"
    # Something was recorded lately, so that the run may go on.
    assert run("top", experiment, "--interval", 0.1, "--count", 2) == 2 * run("show", experiment)
    for file in [experiment, *experiment.glob(".memguard/*")]:
        os.utime(file, (1000, 1000))
    assert run("top", experiment) == run("show", experiment)


def test_top_takes_the_experiment_that_was_measured_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "No experiment" in run("top", code=ExitCode.NOT_FOUND)
    for name, changed in (("new", 2000), ("old", 1000)):
        for file in measured(tmp_path / "ray_results" / name).glob(".memguard/*"):
            os.utime(file, (changed, changed))
    assert run("top") == run("show", tmp_path / "ray_results" / "new")


# deaths


def test_deaths(experiment: Path) -> None:
    text = run("deaths", experiment)
    assert "train_t00029" in text
    assert "train_t00001: 900 MiB" in text
    [death] = run_json("deaths", experiment)
    assert death["cause"] == "kernel_oom"
    assert death["culprit"]["trial_id"] == "t00001"


def test_details_of_deaths(experiment: Path) -> None:
    text = run("deaths", experiment, "--details")
    assert "Seen: the kernel's log" in text
    assert "Do: Run fewer trials at once." in text
    assert "ActorDiedError" in text


def test_deaths_of_one_kind(experiment: Path) -> None:
    assert run_json("deaths", experiment, "--cause", "crash") == []
    assert run_json("deaths", experiment, "--trial", "t00001") == []
    assert len(run_json("deaths", experiment, "--trial", "t00029")) == 1
    assert "None of the 1 deaths" in run("deaths", experiment, "--cause", "crash")


def test_no_deaths(experiment: Path) -> None:
    [file] = experiment.glob(".memguard/deaths-*")
    file.unlink()
    assert run("deaths", experiment) == "No trial has died.\n"


def test_damaged_records_of_deaths(experiment: Path) -> None:
    [file] = experiment.glob(".memguard/deaths-*")
    file.write_text('{"trial_id": "t1"}\n')
    assert "cannot be read" in run("deaths", experiment, code=ExitCode.FAILED)


# trials


def test_trials(experiment: Path) -> None:
    lines = run("trials", experiment).splitlines()
    assert " ".join(lines[0].split()) == "trial end peak RSS anonymous growth/s took config"
    assert lines[1].split()[0] == "t00029"
    assert lines[-1] == "10 more: --limit 0."
    assert len(lines) == 22


def test_trials_in_another_order(experiment: Path) -> None:
    found = run_json("trials", experiment, "--sort", "anonymous", "--limit", 2)
    assert [row["trial_id"] for row in found] == ["t00000", "t00001"]
    assert found[0]["growth_bytes_per_s"] is None
    assert found[1]["config/layers"] == 1
    assert len(run_json("trials", experiment)) == 30


def test_names_cannot_control_the_terminal(experiment: Path) -> None:
    [file] = experiment.glob(".memguard/trial-memory-*")
    file.write_text(file.read_text().replace("t00029", r"\u001b[31mred"))
    assert "\x1b" not in run("trials", experiment)


# verify


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """The path of a whole trial store."""
    return stored(tmp_path / "sweep").path


def content_of(directory: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in directory.rglob("*") if file.is_file()}


def damage(store: Path) -> None:
    with sqlite3.connect(store) as connection:
        connection.execute("UPDATE trial SET reported_at = 7 WHERE seq = 1")
    connection.close()


def test_verify_a_whole_store(store: Path) -> None:
    before = content_of(store.parent.parent)
    text = run("verify", store.parent.parent)
    assert "is whole" in text
    rows = [line.split(maxsplit=2) for line in text.splitlines()]
    assert ["ERROR", "1", "stay on disk, finished"] in rows
    assert ["RUNNING", "1", "return to memory"] in rows
    found = run_json("verify", store.parent.parent)
    assert found["source"] == "store"
    assert found["staying"] == {"TERMINATED": 2, "ERROR": 1}
    assert found["returning"] == {"RUNNING": 1}
    assert content_of(store.parent.parent) == before


def test_verify_what_a_restore_with_failed_trials_would_do(store: Path) -> None:
    found = run_json("verify", store.parent.parent, "--errored", "restart")
    assert found["staying"] == {"TERMINATED": 2}
    assert found["returning"] == {"RUNNING": 1, "ERROR": 1}


def test_verify_a_damaged_store_changes_nothing(store: Path) -> None:
    damage(store)
    before = content_of(store.parent.parent)
    found = run_json("verify", store.parent.parent, code=ExitCode.WARNING)
    assert found["source"] == "rebuilt store"
    assert "1 of 3 trials are damaged" in found["problems"][0]
    assert found["staying"] == {"TERMINATED": 1, "ERROR": 1}
    assert content_of(store.parent.parent) == before
    assert "A restore rebuilds it" in run("verify", store.parent.parent, code=ExitCode.WARNING)


def overwrite_beginning(store: Path) -> None:
    with store.open("r+b") as file:
        file.write(b"\xff" * 100)


@pytest.mark.parametrize("damages", [overwrite_beginning, damage])
def test_a_damaged_store_without_a_checkpoint_loses_no_trial(store: Path, damages: Any) -> None:
    """The resumed run was killed before it wrote its state file."""
    later = TrialStore.create(store.parent, "trials-2026-11-23_10-00-00")
    with later.transaction():
        later.put(1, fake_row("b"))
    later.finalize()
    later.close()
    damages(later.path)
    found = run_json("verify", store.parent.parent, code=ExitCode.WARNING)
    assert found["source"] == "store"
    assert found["store"] == str(store)
    assert str(later.path) in found["problems"][0]
    assert found["staying"] == {"TERMINATED": 2, "ERROR": 1}
    assert found["returning"] == {"RUNNING": 1}
    assert run_json("import", store.parent.parent)["trials"] == 4


def test_verify_where_nothing_can_be_restored(store: Path) -> None:
    store.write_bytes(b"no database" * 1000)
    [state_file] = store.parent.parent.glob("*.json")
    state_file.unlink()
    text = run("verify", store.parent.parent, code=ExitCode.SEVERE)
    assert "Nothing can be restored." in text


@pytest.mark.parametrize("command", ["verify", "import"])
def test_a_run_that_goes_on(tmp_path: Path, command: str) -> None:
    store = stored(tmp_path / "sweep", finish=False)
    assert "is not over" in run(command, tmp_path / "sweep", code=ExitCode.FAILED)
    store.close()


def test_verify_an_experiment_of_ray_alone(tmp_path: Path) -> None:
    before = content_of(experiment_of_ray(tmp_path / "sweep"))
    assert "Ray ran alone" in run("verify", tmp_path / "sweep")
    assert content_of(tmp_path / "sweep") == before


def test_verify_an_experiment_whose_state_file_is_damaged(tmp_path: Path) -> None:
    [state_file] = experiment_of_ray(tmp_path / "sweep").glob("*.json")
    state_file.write_text('{"trial_data": [["')
    assert "Nothing" in run("verify", tmp_path / "sweep", code=ExitCode.SEVERE)


def test_verify_the_file_with_all_results(store: Path) -> None:
    histories = HistoryStore.open_to_write(store.with_name(FILE_NAME))
    histories.append({"a": [b'{"loss": 1}', b'{"loss": 2}'], "b": [b'{"loss": 1}']})
    histories.finalize()
    histories.close()
    assert "3 results of 2 trials" in run("verify", store.parent.parent)
    with sqlite3.connect(histories.path) as connection:
        connection.execute("UPDATE chunk SET checksum = 1 WHERE trial_id = 'b'")
    connection.close()
    found = run_json("verify", store.parent.parent, code=ExitCode.WARNING)
    assert found["histories"]["damage"] == "results of trial b are damaged"


# export


@pytest.mark.parametrize("form", ["csv", "json", "parquet"])
def test_export(tmp_path: Path, form: str) -> None:
    experiment = experiment_of_ray(tmp_path / "sweep")
    file = tmp_path / f"all.{form}"
    assert run("export", experiment, "--to", form, "-o", file) == f"{file}\n"
    found = {
        "csv": pandas.read_csv,
        "parquet": pandas.read_parquet,
        "json": lambda path: pandas.read_json(path, lines=True),
    }[form](file)
    assert found["loss"].tolist() == [0.5]
    assert run_json("export", experiment, "--to", form, "-o", file)["path"] == str(file)


def test_export_to_a_directory_that_is_missing(tmp_path: Path) -> None:
    experiment = experiment_of_ray(tmp_path / "sweep")
    target = tmp_path / "none" / "all.csv"
    text = run("export", experiment, "--to", "csv", "-o", target, code=ExitCode.FAILED)
    assert "cannot be exported" in text


def test_export_that_leaves_something_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def export(*_: object, **__: object) -> str:
        raise IncompleteExportError(["Trial 1: params.pkl is not written"])

    monkeypatch.setattr("ray_tune_memguard.exporting.export_results", export)
    experiment = experiment_of_ray(tmp_path / "sweep")
    text = run("export", experiment, "--to", "files", code=ExitCode.FAILED)
    assert "is not exported completely" in text
    assert text.endswith("\n  Trial 1: params.pkl is not written\n")


def test_export_of_a_store_without_summaries(tmp_path: Path) -> None:
    store = stored(tmp_path / "sweep", finish=False)
    no_summaries(store)
    store.finalize()
    store.close()
    directory = tmp_path / "sweep" / "trial_a"
    directory.mkdir()
    (directory / "result.json").write_text('{"loss": 0.5, "trial_id": "a"}\n')
    file = tmp_path / "all.csv"
    run("export", tmp_path / "sweep", "--to", "csv", "-o", file)
    assert pandas.read_csv(file)["loss"].tolist() == [0.5]
    found = run_json("verify", tmp_path / "sweep", code=ExitCode.WARNING)
    assert "its snapshot is incomplete" in found["problems"][0]
    assert run_json("import", tmp_path / "sweep")["is_new"]


def no_summaries(store: TrialStore) -> None:
    replace(Snapshot.load(store), summaries={}).save(store)


# import


def test_import(tmp_path: Path) -> None:
    experiment = experiment_of_ray(tmp_path / "sweep")
    built = run_json("import", experiment)
    assert built["is_new"]
    assert Path(built["store"]).parent == experiment / ".memguard"
    assert "There already" in run("import", experiment)
    assert run_json("verify", experiment)["source"] == "store"


def test_import_again_what_is_damaged(store: Path) -> None:
    damage(store)
    built = run_json("import", store.parent.parent)
    assert (built["is_new"], built["trials"]) == (True, 3)
    assert run_json("verify", store.parent.parent)["source"] == "store"


def test_import_what_is_no_experiment_state(tmp_path: Path) -> None:
    [state_file] = experiment_of_ray(tmp_path / "sweep").glob("*.json")
    state_file.write_text('{"trial_data": [["')
    assert "cannot be imported" in run("import", tmp_path / "sweep", code=ExitCode.NOT_FOUND)


@pytest.mark.parametrize("to", ["csv", "json", "parquet"])
def test_export_to_a_device_or_a_link(tmp_path: Path, to: str) -> None:
    experiment = experiment_of_ray(tmp_path / "ray")
    file, link = tmp_path / "all", tmp_path / "link"
    link.symlink_to(file)
    run("export", experiment, "--to", to, "-o", link)
    assert link.is_symlink()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append(pipe.read_bytes()))
    reader.start()
    assert run("export", experiment, "--to", to, "-o", pipe) == ""
    reader.join()
    assert received == [file.read_bytes()]
    assert pipe.is_fifo()


@pytest.mark.parametrize("option", [("export", "-o"), ("report", "-o"), ("profile", "--html")])
def test_an_empty_name_of_a_file(experiment: Path, option: tuple[str, str]) -> None:
    command, name = option
    assert "The name is empty" in run(command, experiment, name, "", code=ExitCode.USAGE)


def test_import_what_ended_before_its_first_checkpoint(tmp_path: Path) -> None:
    store = TrialStore.create(tmp_path / "sweep" / ".memguard", f"trials-{RUN}")
    store.finalize()
    store.close()
    text = run("import", tmp_path / "sweep", code=ExitCode.FAILED)
    assert "its run ended before its first experiment checkpoint" in text
