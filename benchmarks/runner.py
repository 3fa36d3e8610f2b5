"""Run scenarios: the baselines take turns, each in fresh processes, with a line of progress."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any, TextIO, TypeAlias

from benchmarks.baselines import BASELINES, MEMGUARD, RAY, TWO
from benchmarks.child import RECORD_VARIABLE, Task, samples_path
from benchmarks.machine import describe_machine, machine_line
from benchmarks.metrics import Record, Round
from benchmarks.report import Panel, Table, draw, format_table, if_possible, write_results
from benchmarks.rows import Metric, table

ROOT = Path(__file__).resolve().parent.parent
RESULTS_DIRECTORY = ROOT / "docs" / "results"
LOG_LINES_SHOWN = 30
QUICK = 0.05

#: Takes the options, returns the exit code.
Command: TypeAlias = Callable[[Sequence[str]], int]


# What a scenario is.


@dataclass(frozen=True)
class Job(Task):
    """One run that is to be measured: what its child programs are told, and more.

    Args:
        shared: a directory for all runs of the section; ``directory`` is for this run alone.
        progress: a line of its own.
    """

    shared: Path
    progress: Progress

    def run(
        self,
        program: str,
        *,
        variables: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
        **options: Any,
    ) -> Record:
        """Run a child program with this job and these options; see :func:`record_of`."""
        task = {field.name: getattr(self, field.name) for field in fields(Task)}
        return record_of(
            ["benchmarks.child", program, json.dumps(task, default=str), json.dumps(options)],
            self.directory,
            variables=variables,
            timeout_s=timeout_s,
            progress=self.progress,
        )


@dataclass(frozen=True)
class Section:
    """One table of a scenario.

    Args:
        title: of the table.
        size: how many trials, or other ``unit``; thresholds are those of this size.
        measure: runs a job and returns its record.
        rows: the table, as :func:`benchmarks.rows.table` reads it.
        baselines: who runs, in the order of the first round.
        judged: those of which thresholds are asked.
        unit: what ``size`` counts.
        least: the smallest size that can be measured.
        quick: the smallest size for ``--quick``.
        rays_share: Ray alone, whose time per trial grows with their number, runs this part of it.
        runs: rounds, unless the command line says how many.
        prepare: makes what all runs of the section need, in the shared directory.
        panels: the pictures of its runs.
        notes: the part of a record that has lines to be printed below the table.
    """

    title: str
    size: int
    measure: Callable[[Job], Record]
    rows: str
    baselines: tuple[str, ...] = TWO
    judged: tuple[str, ...] = (MEMGUARD,)
    unit: str = "trials"
    least: int = 1
    quick: int = 40
    rays_share: float = 1.0
    runs: int = 3
    prepare: Callable[[Job], None] | None = None
    panels: tuple[Panel, ...] = ()
    notes: str = ""

    @cached_property
    def metrics(self) -> tuple[Metric, ...]:
        """The rows of the table."""
        return table(self.rows, *self.judged)


class Scenario:
    """What one command measures."""

    def __init__(self, title: str, *sections: Section) -> None:
        self.title = title
        self.sections = sections


# Processes.


class ChildFailed(RuntimeError):
    """A process ended with an error or took too long; the message has the end of its log."""


class Progress:
    """One line that is rewritten on a terminal, and printed now and then elsewhere."""

    def __init__(self, title: str = "") -> None:
        self._title = f"{title}: " if title else ""
        self._live = sys.stderr.isatty()
        self._period = 0.5 if self._live else 60.0
        self._began = self._shown_at = time.monotonic()

    @property
    def seconds(self) -> float:
        """Return the seconds since it began."""
        return time.monotonic() - self._began

    def show(self, text: str | Callable[[], str]) -> None:
        """Show the line, or what a function says, unless one was shown a moment ago."""
        if time.monotonic() - self._shown_at >= self._period:
            self._shown_at = time.monotonic()
            self._write(text() if callable(text) else text, end="" if self._live else "\n")

    def finish(self, text: str) -> None:
        """Leave a last line."""
        self._write(text, end="\n")

    def _write(self, text: str, end: str) -> None:
        start = "\r\x1b[K" if self._live else ""
        print(f"{start}{self._title}{text}", end=end, file=sys.stderr, flush=True)


def _newest_sample(record: Path) -> str:
    """How far a process is, by the newest sample of a sweep if there is one."""
    path = samples_path(record)
    # The last line may be half written.
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    if not lines:
        return ""
    trials, results, rss = json.loads(lines[-1])[:3]
    return f"{trials:,} trials, {results:,} results, {rss >> 20} MiB, "


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def record_of(
    command: Sequence[str],
    directory: Path,
    *,
    variables: Mapping[str, str] | None = None,
    timeout_s: float | None = None,
    progress: Progress | None = None,
) -> Record:
    """Run ``python -m command`` in a fresh process; return what it wrote to ``RECORD_VARIABLE``.

    Args:
        command: the module and its arguments.
        directory: where record and log go.
        variables: of its environment, beside our own.
        timeout_s: seconds that it may take.
        progress: shows how far it is.

    Raises:
        ChildFailed: it failed, took longer, or wrote nothing; with the end of its output.
    """
    out, log = directory / "record.json", directory / "record.log"
    directory.mkdir(exist_ok=True)
    out.unlink(missing_ok=True)
    own = {RECORD_VARIABLE: str(out), "PYTHONPATH": str(ROOT)}
    began = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=ROOT,
            env={**os.environ, **own, **(variables or {})},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            while process.poll() is None:
                if timeout_s is not None and time.monotonic() - began > timeout_s:
                    raise ChildFailed(f"{command[0]} was not over after {timeout_s:.0f} s")
                if progress is not None:
                    progress.show(lambda: f"{_newest_sample(out)}{progress.seconds:.0f} s")
                time.sleep(0.1)
        except BaseException:
            _stop(process)
            raise
    if process.returncode or not out.exists():
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:])
        raise ChildFailed(f"{' '.join(command)}\nended with {process.returncode}. Its log:\n{tail}")
    record: Record = json.loads(out.read_text())
    return record


@contextmanager
def scratch_directory(parent: Path | None) -> Iterator[Path]:
    """Make a directory with a short name (Ray's sockets go there), and delete it afterwards."""
    if parent is not None:
        parent.mkdir(parents=True, exist_ok=True)
    path = Path(tempfile.mkdtemp(prefix="tmg-", dir=parent))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


# Commands.


class _Kept(io.StringIO):
    """Prints what is written to it, and keeps it."""

    def __init__(self, output: TextIO) -> None:
        super().__init__()
        self._output = output

    def write(self, text: str) -> int:
        self._output.write(text)
        return super().write(text)

    def flush(self) -> None:
        self._output.flush()


def run_command(name: str, command: Command, options: Sequence[str]) -> int:
    """Run a command, and keep what it prints, but for progress, if it comes to an end.

    Returns:
        The command's exit code, or 2 if something that it starts has failed.
    """
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--results", type=Path, default=RESULTS_DIRECTORY)
    results: Path = parser.parse_known_args(options)[0].results
    results.mkdir(parents=True, exist_ok=True)
    try:
        with contextlib.redirect_stdout(_Kept(sys.stdout)) as printed:
            code = command(options)
    except (RuntimeError, FileNotFoundError) as error:
        print(f"\n{name}: {error}", file=sys.stderr)
        return 2
    (results / f"{name}.txt").write_text(printed.getvalue())
    return code


def positive(text: str) -> int:
    """Read a number of an option that must be at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


def parse_options(name: str, options: Sequence[str]) -> argparse.Namespace:
    """Read the options, which are the same for all scenarios."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks {name}")
    parser.add_argument(
        "sections", nargs="*", metavar="SECTION", help="only those whose titles begin so"
    )
    parser.add_argument("--quick", action="store_true", help="5 %% of the size, one run")
    parser.add_argument("--runs", type=positive, help="rounds, in which each baseline runs once")
    parser.add_argument("--trials", type=positive, help="the size of each section")
    parser.add_argument(
        "--baselines",
        nargs="+",
        choices=list(BASELINES),
        default=list(BASELINES),
        help="all, unless some are named; thresholds are about MemGuard and Ray",
    )
    parser.add_argument(
        "--again", action="store_true", help="run nothing: judge what NAME.json has, and draw it"
    )
    parser.add_argument("--scratch", type=Path, help="a short path on a local disk")
    parser.add_argument("--results", type=Path, default=RESULTS_DIRECTORY, help="where figures go")
    arguments = parser.parse_args(options)
    if not set(TWO) <= set(arguments.baselines):
        parser.error(f"--baselines: {' and '.join(TWO)} must be among them, for the thresholds")
    return arguments


def in_turn(baselines: Sequence[str], number: int) -> Sequence[str]:
    """Return the order of the baselines in a round: in every other one they go backwards.

    So a machine that gets slower or faster favours none.
    """
    return baselines if number % 2 == 0 else baselines[::-1]


def run_scenario(name: str, scenario: Scenario, options: Sequence[str]) -> int:
    """Run, print and write one scenario; 1 if a threshold was missed."""
    arguments = parse_options(name, options)
    path: Path = arguments.results / f"{name}.json"
    sections = _chosen(scenario, arguments.sections)
    head: dict[str, Any] = {
        "benchmark": name,
        "title": scenario.title,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "judged": not (arguments.quick or arguments.trials),
        "machine": describe_machine(),
    }
    stored: dict[str, list[Round]] = {}
    if arguments.again:
        head = {"judged": True, **json.loads(path.read_text())}
        stored = {one["title"]: one["runs"] for one in head.pop("sweeps", [])}
        sections = [section for section in sections if section.title in stored]
        if not sections:
            there = f"but {', '.join(stored)}" if stored else "and is of an older version"
            raise ChildFailed(f"{name}.json has none of these sections, {there}")
    sizes = head.setdefault("sizes", {})
    print(f"\n{name}: {scenario.title}")
    print(machine_line(head["machine"]), flush=True)
    tables: list[Table] = []
    try:
        for section in sections:
            size = sizes.setdefault(section.title, _size(section, arguments))
            rounds = stored.get(section.title, [])
            try:
                if not rounds:
                    rounds.extend(_rounds(name, section, size, arguments))
            finally:
                # What took hours before a failure is kept.
                if rounds:
                    tables.append(_table(section, rounds, size, head["judged"]))
    finally:
        if tables:
            write_results(path, head, tables)
            with if_possible():
                draw(scenario.title, tables, path.with_suffix(".png"))
    is_missed = any(row.passed is False for table in tables for row in table.rows)
    return 1 if head["judged"] and is_missed else 0


def _table(section: Section, rounds: list[Round], size: int, judged: bool) -> Table:
    """Evaluate and print one section."""
    rows = [metric.row(rounds) for metric in section.metrics]
    print(f"\n{section.title}: {size:,} {section.unit}, runs: {len(rounds)}")
    print(format_table(rows, judged), flush=True)
    for one in rounds if section.notes else ():
        for line in one[MEMGUARD][section.notes]:
            print(f"    {line}", flush=True)
    return Table(section.title, rows, rounds, section.panels)


def _chosen(scenario: Scenario, beginnings: Sequence[str]) -> list[Section]:
    found = [s for s in scenario.sections if s.title.startswith(tuple(beginnings) or "")]
    if not found:
        raise ChildFailed(f"no such section; there are: {[s.title for s in scenario.sections]}")
    return found


def _size(section: Section, arguments: argparse.Namespace) -> int:
    if arguments.trials:
        if arguments.trials < section.least:
            raise ChildFailed(f"--trials must be at least {section.least:,}: {section.title}")
        return int(arguments.trials)
    quick = max(section.least, min(section.quick, section.size), round(section.size * QUICK))
    return quick if arguments.quick else section.size


def _rounds(
    name: str, section: Section, size: int, arguments: argparse.Namespace
) -> Iterator[Round]:
    is_compared = RAY in section.baselines
    chosen = [b for b in section.baselines if b in arguments.baselines or not is_compared]
    runs = arguments.runs or (1 if arguments.quick else section.runs)
    with scratch_directory(arguments.scratch) as shared:
        if section.prepare is not None:
            progress = Progress(f"{name}, {section.title}, preparing")
            section.prepare(Job(MEMGUARD, size, 0, shared, shared, progress))
        for number in range(runs):
            done = {}
            for baseline in in_turn(chosen, number):
                title = f"{name}, {section.title}, run {number + 1} of {runs}"
                progress = Progress(f"{title}, {BASELINES[baseline].title}")
                own_size = round(size * section.rays_share) if baseline == RAY else size
                with scratch_directory(arguments.scratch) as directory:
                    job = Job(baseline, own_size, number, directory, shared, progress)
                    done[baseline] = section.measure(job)
                progress.finish(f"done after {progress.seconds:.0f} s")
            yield {baseline: done[baseline] for baseline in chosen}
