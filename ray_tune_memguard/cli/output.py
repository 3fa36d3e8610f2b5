"""Prints what commands found: JSON for programs, tables by rich on a terminal, otherwise text.

Nothing is cut or wrapped in a pipe: one row of a table is one line there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import orjson

from ray_tune_memguard.report import tables

if TYPE_CHECKING:
    from rich.console import Console

#: The option that every command has.
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


class FilePath(click.Path):
    """Where a command writes to."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not os.fspath(value):
            self.fail("The name is empty.", param, ctx)
        return super().convert(value, param, ctx)


def is_kept(written: str | os.PathLike[str]) -> bool:
    """Whether what was written is a file or a directory, and not, for example, ``/dev/stdout``."""
    place = Path(written)
    return place.is_file() or place.is_dir() or not place.exists()


def show_json(value: object) -> None:
    """Print dataclasses, mappings, sequences, numbers and texts as JSON. NaN becomes null."""
    options = orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS
    try:
        text = orjson.dumps(value, default=str, option=options).decode()
    except orjson.JSONEncodeError:  # A whole number of more than 64 bits, such as a seed.
        known = json.loads(json.dumps(value, default=_plain), parse_constant=lambda _name: None)
        text = json.dumps(known, indent=2)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # Then as JSON's own escapes.
        text = json.dumps(json.loads(text), indent=2)
    click.echo(text)


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return str(value)


def show_text(text: str = "", style: str = "") -> None:
    """Print a line or a paragraph.

    Args:
        text: the text.
        style: on a terminal, a style of rich (``bold red``, ``dim``).
    """
    console = terminal()
    if console is None:
        click.echo(text)
    else:
        console.print(text, style=style or None, markup=False, highlight=False)


def show_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    title: str = "",
    numbers: Sequence[str] = (),
) -> None:
    """Print a table.

    Args:
        columns: the names of the columns.
        rows: the texts of the cells.
        title: a line above the table.
        numbers: the columns that are aligned to the right.
    """
    console = terminal()
    if console is None:
        click.echo(plain_table(columns, rows, title=title, numbers=numbers))
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, title_justify="left", title_style="bold")
    for name in columns:
        table.add_column(name, justify="right" if name in numbers else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)


class Table(tables.Table):
    """A table that a command prints and a page shows; see :func:`show_table`."""

    def show(self) -> None:
        """Print it."""
        show_table(self.columns, self.rows, title=self.title, numbers=self.numbers)


def plain_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    title: str = "",
    numbers: Sequence[str] = (),
) -> str:
    """The table as text, one line a row; see :func:`show_table`."""
    lines = [tuple(columns), *(tuple(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(columns))]

    def text(line: Sequence[str]) -> str:
        cells = (
            cell.rjust(width) if name in numbers else cell.ljust(width)
            for name, cell, width in zip(columns, line, widths, strict=True)
        )
        return "  ".join(cells).rstrip()

    return "\n".join(([title] if title else []) + [text(line) for line in lines])


def terminal() -> Console | None:
    """A console of rich; None in a pipe, or without rich (the extra ``cli``)."""
    if not sys.stdout.isatty() or importlib.util.find_spec("rich") is None:
        return None
    from rich.console import Console

    return Console()


@contextlib.contextmanager
def working(text: str) -> Iterator[None]:
    """Show on a terminal that the command works, with the time that it takes.

    Args:
        text: what it does.
    """
    if not sys.stderr.isatty() or importlib.util.find_spec("rich") is None:
        yield
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=_stderr(), transient=True) as progress:
        progress.add_task(text, total=None)
        yield


def _stderr() -> Console:
    from rich.console import Console

    return Console(stderr=True)
