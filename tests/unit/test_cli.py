"""The command line: help, output in a pipe and on a terminal, exit codes."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import pytest
from click.testing import CliRunner

from ray_tune_memguard.cli import exit_codes, output
from ray_tune_memguard.cli.exit_codes import ExitCode
from ray_tune_memguard.cli.main import main

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
