"""The commands that read an experiment, as its runs leave it: ended, going on, killed, damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ray_tune_memguard.cli.exit_codes import ExitCode
from ray_tune_memguard.cli.main import main
from tests.unit.measured_experiments import RUN, experiment_of_ray, measured

READERS = ["show", "deaths", "trials"]


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
    assert "Memory of the driver after 400 trials" in text
    assert "Heaviest of 30 trials" in text
    assert "Deaths: 1 kernel_oom" in text
    assert "93 % of its memory is in use" in text
    assert "+16.0 KiB" in text.partition("gcs_server")[2]
    found = run_json("show", experiment)
    assert found["run"]["state"] == "finished"
    assert found["rss"]["bytes_per_trial"] == pytest.approx(2048)
    assert [len(found["rss"]["series"]), len(found["trials"]), len(found["deaths"])] == [21, 30, 1]
    assert found["diagnosis"]["trials"] == 400
    assert [record["action"] for record in found["gate"]] == ["pause"]
    assert len(found["head"]) == 5


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


def test_show_the_rest_of_a_damaged_experiment(experiment: Path) -> None:
    own = experiment / ".memguard"
    (own / f"diagnosis-{RUN}.json").write_text("{")
    (own / f"deaths-{RUN}.jsonl").write_text('{"time": 1}\n')
    (own / f"rss-{RUN}.csv").write_text("")
    text = run("show", experiment, code=ExitCode.WARNING)
    assert "The diagnosis cannot be read" in text
    assert "The records of deaths cannot be read" in text
    assert "The RSS series cannot be read" in text
    assert "Heaviest of 30 trials" in text


def test_show_has_a_row_for_each_of_the_heaviest_trials(experiment: Path) -> None:
    assert run("show", experiment, "--rows", 7).count("layers=") == 7


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
