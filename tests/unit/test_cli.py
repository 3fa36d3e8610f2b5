"""The command line: help, output in a pipe and on a terminal, exit codes."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from ray_tune_memguard.cli import exit_codes, output
from ray_tune_memguard.cli.exit_codes import ExitCode
from ray_tune_memguard.cli.main import main
from ray_tune_memguard.cluster import object_survey
from ray_tune_memguard.cluster.gcs import ClusterStateError
from ray_tune_memguard.cluster.object_holders import KINDS, Holder, Holding
from ray_tune_memguard.cluster.object_store import NodeStore
from ray_tune_memguard.cluster.object_survey import Survey

COMMANDS = sorted(main.commands)


def run(*arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(main, [*arguments])
    assert done.exit_code == code, done.output
    return done.output


def test_the_help_lists_all_commands_and_all_exit_codes() -> None:
    text = run("--help")
    assert all(f"\n  {name} " in text for name in COMMANDS)
    assert all(f"{code.value:>4}  {exit_codes.MEANINGS[code]}" in text for code in ExitCode)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_page_and_prints_json(name: str) -> None:
    text = run(name, "--help")
    assert "Examples:" in text
    assert f"  memguard {name}" in text
    assert "--json" in text


def test_an_unknown_option_is_an_error_of_usage() -> None:
    assert "No such option" in run("doctor", "--no-such-option", code=ExitCode.USAGE)


def test_numbers_of_any_size_are_json(capsys: pytest.CaptureFixture[str]) -> None:
    # As the entropy of a random generator, which is a seed of 128 bits.
    output.show_json([{"config/seed": 2**127, "growth": math.nan, "path": Path("a")}])
    found = json.loads(capsys.readouterr().out)
    assert found == [{"config/seed": 2**127, "growth": None, "path": "a"}]


def test_a_table_in_a_pipe_has_a_line_for_each_row(capsys: pytest.CaptureFixture[str]) -> None:
    output.show_table(
        ("name", "RSS"), [("driver", "9 MiB"), ("gcs_server", "112 MiB")], numbers=("RSS",)
    )
    assert capsys.readouterr().out == (
        "name            RSS\ndriver        9 MiB\ngcs_server  112 MiB\n"
    )


def test_a_terminal_gets_a_table_of_rich(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("rich", reason="rich is not installed")
    from rich.console import Console

    monkeypatch.setattr(output, "terminal", lambda: Console(force_terminal=True, width=60))
    output.show_table(("name",), [("[driver]",)], title="Processes")
    text = capsys.readouterr().out
    assert "Processes" in text
    assert "[driver]" in text
    assert "━" in text


def test_json_has_dataclasses_and_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    @dataclass
    class Row:
        slope: float

    output.show_json([Row(1.5), Row(math.nan)])
    assert json.loads(capsys.readouterr().out) == [{"slope": 1.5}, {"slope": None}]


def test_objects_wants_the_address_of_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert "Name the cluster" in run("objects", code=ExitCode.USAGE)

    def nobody(address: str) -> Survey:
        raise ClusterStateError(f"No Ray cluster answers at {address}.")

    monkeypatch.setattr(object_survey, "survey", nobody)
    text = run("objects", "--address", "10.0.0.5:6379", code=ExitCode.UNREACHABLE)
    assert "No Ray cluster answers at 10.0.0.5:6379." in text


def test_objects_explains_each_word_that_it_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    mib = 2**20
    stores = [
        NodeStore("n", "10.0.0.5", 80 * mib, 50 * mib, 60 * mib, 70 * mib, 170 * mib, 0, 20 * mib),
        NodeStore("m", "10.0.0.6", 80 * mib, 0),
    ]
    driver = Holder("driver", "driver (pid 7)")
    held = [
        Holding(driver, "n", kind, "train.py:3", 5, size * mib)
        for size, kind in ((50, "LOCAL_REFERENCE"), (10, "CAPTURED_IN_OBJECT"))
    ]
    unseen = ["What is spilled now was not read on 10.0.0.6."]
    monkeypatch.setattr(object_survey, "survey", lambda address: Survey(stores, held, unseen))
    text = run("objects", "--address", "10.0.0.5:6379", "--rows", "1")
    first, second, third = text.splitlines()[:3]
    assert [first.split()[0], *first.split("  ")[-2:]] == ["node", "created", "fallback"]
    cells = ["10.0.0.5", "80.0 MiB", "70.0 MiB", "50.0 MiB", "60.0 MiB", "170 MiB", "0 B"]
    assert second.split() == " ".join(cells).split()
    assert third.split() == ["10.0.0.6", "80.0", "MiB", "?", "0", "B", "?", "?", "?"]
    assert (
        "10.0.0.5: 20.0 MiB (25 % of the store) are copies of spilled objects, for reading." in text
    )
    assert "driver (pid 7)  50.0 MiB" in text
    assert f"LOCAL_REFERENCE: {KINDS['LOCAL_REFERENCE']}." in text
    assert "CAPTURED_IN_OBJECT" not in text
    assert unseen[0] in text
    found = json.loads(run("objects", "--address", "10.0.0.5:6379", "--json"))
    assert [node["spilled"] for node in found["nodes"]] == [60 * mib, None]
    assert found["held"][1]["holder"] == {"kind": "driver", "name": "driver (pid 7)"}


def test_the_command_of_the_console_scripts() -> None:
    """It leaves the garbage collector on, with less to look at."""
    script = (
        "import atexit, gc\n"
        "atexit.register(lambda: print(gc.isenabled(), gc.get_freeze_count() > 10_000))\n"
        "from ray_tune_memguard_command import main\n"
        "main()\n"
    )
    for arguments, code in ((["--version"], 0), (["show", "/nowhere"], 3)):
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stderr
        assert done.stdout.splitlines()[-1] == "True True"
    project = Path(__file__).parents[2].joinpath("pyproject.toml").read_text()
    assert project.count('= "ray_tune_memguard_command:main"\n') == 2
