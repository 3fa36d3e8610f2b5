"""Commands with options of their own, whose output is kept beside their results."""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TextIO, TypeAlias

from benchmarks.runs import RESULTS_DIRECTORY

#: Takes the options, returns the exit code.
Command: TypeAlias = Callable[[Sequence[str]], int]


class _Both(io.TextIOBase):
    """Writes to two files."""

    def __init__(self, one: TextIO, other: TextIO) -> None:
        self._files = one, other

    def write(self, text: str) -> int:
        for file in self._files:
            file.write(text)
        return len(text)

    def flush(self) -> None:
        for file in self._files:
            file.flush()


@contextlib.contextmanager
def kept(name: str, results: Path) -> Iterator[None]:
    """Keep what is printed, but for progress, with the results, if it comes to an end."""
    results.mkdir(parents=True, exist_ok=True)
    printed = io.StringIO()
    with contextlib.redirect_stdout(_Both(sys.stdout, printed)):
        yield
    (results / f"{name}.txt").write_text(printed.getvalue())


def run_command(name: str, command: Command, options: Sequence[str]) -> int:
    """Run a command; ends with 2 if something that it starts has failed."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--results", type=Path, default=RESULTS_DIRECTORY)
    results: Path = parser.parse_known_args(options)[0].results
    try:
        with kept(name, results):
            return command(options)
    except RuntimeError as error:
        print(f"\n{name}: {error}", file=sys.stderr)
        return 2
