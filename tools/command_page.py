"""Writes ``docs/command-line.md`` of the help of the commands: ``python -m tools.command_page``."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import click

from ray_tune_memguard.cli.exit_codes import MEANINGS
from ray_tune_memguard.cli.main import main

PAGE = Path(__file__).parents[1] / "docs" / "command-line.md"
_HEAD = """\
# Command line

<!-- `python -m tools.command_page` writes this page of the help of the commands. -->

The package installs the command `ray-tune-memguard`, short `memguard`. `memguard COMMAND --help`
prints what stands here. With the extra `cli` (`pip install "ray-tune-memguard[cli]"`) the commands
print tables of rich on a terminal; in a pipe one row of a table is one line; `--json` prints JSON
for programs, in which unknown numbers are `null`. Sizes in JSON are in bytes, times in seconds
since the epoch.

"""


def page() -> str:
    """The page as Markdown."""
    parts = [_HEAD, _paragraphs(main), "\n## Exit codes\n\n", _exit_codes()]
    for name, command in main.commands.items():
        arguments = [_usage(one) for one in command.params if isinstance(one, click.Argument)]
        parts.append(f"\n## `{' '.join(['memguard', name, *arguments])}`\n\n")
        parts += [_paragraphs(command), "\n", _options(command)]
    return "".join(parts)


def _usage(argument: click.Argument) -> str:
    name = (argument.name or "").upper()
    return name if argument.required else f"[{name}]"


def _paragraphs(command: click.Command) -> str:
    found = []
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        if paragraph.startswith("\b"):
            lines = [line.strip() for line in paragraph.splitlines()[2:]]
            paragraph = "\n".join(["```bash", *lines, "```"])
        found.append(f"{paragraph}\n")
    return "\n".join(found)


def _options(command: click.Command) -> str:
    rows = ["| option | meaning |", "| --- | --- |"]
    for option in command.params:
        if isinstance(option, click.Option):
            names = ", ".join(f"`{name}{_value(option)}`" for name in option.opts)
            rows.append(f"| {names} | {_cell(option.help or '')} |")
    return "\n".join(rows) + "\n"


def _value(option: click.Option) -> str:
    if option.is_flag:
        return ""
    if isinstance(option.type, click.Choice):
        return " " + _cell("|".join(map(str, option.type.choices)))
    return f" {option.metavar or option.type.name.split()[0].upper()}"


def _exit_codes() -> str:
    rows = ["| code | meaning |", "| --- | --- |"]
    rows += [f"| {code.value} | {meaning} |" for code, meaning in MEANINGS.items()]
    return "\n".join(rows) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"{PAGE}\n")
