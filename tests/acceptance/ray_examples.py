"""Run Ray's own examples without and with MemGuard: ``python -m tests.acceptance ray-examples``.

Each program in ``ray/tune/examples`` of the installed Ray that runs offline is run twice, in a
fresh process with a home and temporary directory of its own, with ``--smoke-test`` where it has
that. The two runs differ in one environment variable, ``RAY_TUNE_CALLBACKS``. Compared are the exit
codes, and how many trials of each status there are in the experiment states that are left behind.
Writes ``ray-examples.json`` to ``docs/results/``; a column says why an example was not run.
What the examples need beside Ray is not installed by this project. Ends with 1 if there is a
difference.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine, machine_line
from benchmarks.report import format_lines
from benchmarks.runner import RESULTS_DIRECTORY, ROOT, scratch_directory
from tests.acceptance.processes import MARK_VARIABLE, end_marked, new_mark

GUARD = "ray_tune_memguard.MemGuard"
_SHORT_REASON = 70
_LINES_KEPT = 40
_MORE_RUNS = 3
_IMPORT = re.compile(r"^\s*(?:from|import) ray\.tune\.examples\.([\w.]+)", re.MULTILINE)
_MISSING_MODULE = re.compile(r"No module named '([^']+)'")
_NEEDS = (
    (
        "downloads data or a model",
        re.compile(
            r"datasets\.(MNIST|CIFAR10)|dset\.MNIST|keras\.datasets|mnist\.load_data|load_dataset\("
            r"|urlopen|urlretrieve|get_file\(|from_pretrained|download=True"
        ),
    ),
    ("needs a GPU", re.compile(r"[\"']?\bgpu[\"']?\s*[:=]\s*[1-9]")),
)
_OURS = re.compile(r"MemGuard|TrialPruner|RssReporter|ray_tune_memguard")


@dataclass
class Leg:
    """One run of an example."""

    #: None: it did not end in time.
    exit_code: int | None
    seconds: float
    #: Trials by status, of all its experiments.
    trials: dict[str, int]
    #: Trials in MemGuard's stores.
    spilled: int
    #: What MemGuard said, RSS lines apart.
    said: list[str] = field(default_factory=list)
    #: The end of the output, of a run that failed.
    tail: list[str] = field(default_factory=list)

    @property
    def outcome(self) -> tuple[int | None, dict[str, int]]:
        """Return what is compared."""
        return self.exit_code, self.trials

    @property
    def exit_text(self) -> str:
        """Return the exit code for the table."""
        return "timeout" if self.exit_code is None else str(self.exit_code)

    @property
    def trials_text(self) -> str:
        """Return the trials for the table."""
        return ", ".join(f"{count} {status}" for status, count in sorted(self.trials.items()))


@dataclass
class Example:
    """An example, and what became of it. ``why_not`` is empty if it was run without an obstacle."""

    name: str
    why_not: str = ""
    plain: Leg | None = None
    guarded: Leg | None = None
    #: More runs without MemGuard, where the two differ: such an example may vary by itself.
    plain_again: list[Leg] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """Return whether MemGuard made a difference; empty if there is nothing to compare."""
        if self.plain is None or self.guarded is None:
            return ""
        if self.plain.outcome == self.guarded.outcome:
            return "same"
        varies = any(leg.outcome != self.plain.outcome for leg in self.plain_again)
        return "varies without MemGuard, too" if varies else "DIFFERS"

    @property
    def differs(self) -> bool:
        """Return whether MemGuard made a difference."""
        return self.verdict == "DIFFERS"


def examples_directory() -> Path:
    """Return where the installed Ray has its examples."""
    spec = importlib.util.find_spec("ray")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "tune" / "examples"


def find_examples(directory: Path) -> list[Path]:
    """Return the examples that are programs."""
    return [
        path
        for path in sorted(directory.rglob("*.py"))
        if re.search(r"\.fit\(|tune\.run\(", path.read_text())
    ]


def _source(path: Path, directory: Path, seen: set[Path]) -> str:
    """Return the text of an example, with that of the examples that it imports."""
    seen.add(path)
    texts = [path.read_text()]
    for module in _IMPORT.findall(texts[0]):
        imported = directory / (module.replace(".", "/") + ".py")
        if imported.exists() and imported not in seen:
            texts.append(_source(imported, directory, seen))
    return "\n".join(texts)


def obstacle(path: Path, directory: Path) -> str:
    """Return what the source shows that cannot be had here; empty if nothing."""
    source = _source(path, directory, set())
    return next((reason for reason, pattern in _NEEDS if pattern.search(source)), "")


def run_example(path: Path, guarded: bool, timeout: float, scratch: Path | None) -> Leg:
    """Run an example in a process and directories of its own."""
    mark = new_mark()
    with scratch_directory(scratch) as home:
        try:
            return _run_in(home, mark, path, guarded, timeout)
        finally:
            end_marked(mark)


def _environment(home: Path, mark: str, guarded: bool) -> dict[str, str]:
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("TUNE_", "RAY_", "XDG_"))
    }
    temporary = home / "t"
    temporary.mkdir()
    paths = [str(ROOT), *filter(None, [environment.get("PYTHONPATH")])]
    environment |= {
        MARK_VARIABLE: mark,
        "HOME": str(home),
        "TMPDIR": str(temporary),
        "RAY_TMPDIR": str(temporary),
        "RAY_ADDRESS": "local",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": os.pathsep.join(paths),
        "MPLBACKEND": "Agg",
        # MLflow 3 refuses the local directory that its example asks for, unless told otherwise.
        "MLFLOW_ALLOW_FILE_STORE": "true",
    }
    return environment | ({"RAY_TUNE_CALLBACKS": GUARD} if guarded else {})


def _run_in(home: Path, mark: str, path: Path, guarded: bool, timeout: float) -> Leg:
    flags = ["--smoke-test"] if "--smoke-test" in path.read_text() else []
    log = home / "output"
    work = home / "w"
    work.mkdir()
    started = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, str(path), *flags],
            cwd=work,
            env=_environment(home, mark, guarded),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            exit_code: int | None = process.wait(timeout)
        except subprocess.TimeoutExpired:
            exit_code = None
            process.kill()
            process.wait()
    seconds = time.monotonic() - started
    end_marked(mark)
    lines = log.read_text(errors="replace").splitlines()
    said = [line for line in lines if _OURS.search(line) and "RSS" not in line]
    return Leg(
        exit_code,
        round(seconds, 1),
        _count_trials(home),
        _count_spilled(home),
        said[:_LINES_KEPT],
        lines[-_LINES_KEPT:] if exit_code != 0 else [],
    )


def _count_trials(home: Path) -> dict[str, int]:
    """Count the trials in the newest state file of each experiment, by status."""
    newest: dict[Path, Path] = {}
    for path in sorted((home / "ray_results").glob("*/experiment_state-*.json")):
        newest[path.parent] = path
    counts: Counter[str] = Counter()
    for path in newest.values():
        trials = json.loads(path.read_text())["trial_data"]
        counts.update(json.loads(entry[0])["status"] for entry in trials)
    return dict(counts)


def _count_spilled(home: Path) -> int:
    count = 0
    for path in (home / "ray_results").glob("*/.memguard/trials-*.sqlite"):
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        try:
            count += connection.execute("SELECT count(*) FROM trial").fetchone()[0]
        except sqlite3.Error:  # Of a driver that was ended in the middle.
            pass
        finally:
            connection.close()
    return count


def _reason(leg: Leg) -> str:
    """Return why a run without MemGuard did not end well."""
    if leg.exit_code is None:
        return "not over in time"
    text = "\n".join(leg.tail)
    missing = _MISSING_MODULE.search(text)
    if missing:
        return f"missing module: {missing[1]}"
    errors = [line for line in leg.tail if re.match(r"\s*[\w.]*(Error|Exception|Exit)\b", line)]
    last = errors[-1].strip() if errors else (leg.tail[-1].strip() if leg.tail else "")
    return f"fails by itself: {last[:_SHORT_REASON]}"


def examine(path: Path, directory: Path, timeout: float, scratch: Path | None) -> Example:
    """Run an example without MemGuard and, if that says anything, with it."""
    example = Example(path.relative_to(directory).as_posix())
    example.why_not = obstacle(path, directory)
    if example.why_not:
        return example
    example.plain = run_example(path, False, timeout, scratch)
    if example.plain.exit_code != 0:
        example.why_not = _reason(example.plain)
        if example.plain.exit_code is None or example.why_not.startswith("missing"):
            return example
    example.guarded = run_example(path, True, timeout, scratch)
    while example.differs and len(example.plain_again) < _MORE_RUNS:
        example.plain_again.append(run_example(path, False, timeout, scratch))
    return example


def _cells(leg: Leg | None) -> tuple[str, str, str]:
    if leg is None:
        return "", "", ""
    return leg.exit_text, leg.trials_text, f"{leg.seconds:.0f}"


def format_table(examples: list[Example]) -> str:
    """Return a line for each example."""
    head = ("example", "exit", "trials", "s", "exit with", "trials with", "spilled", "s", "")
    lines: list[tuple[str, ...]] = [head]
    for example in examples:
        cells = [example.name, *_cells(example.plain), *_cells(example.guarded)]
        cells.insert(-1, str(example.guarded.spilled) if example.guarded else "")
        lines.append((*cells, "; ".join(filter(None, [example.verdict, example.why_not]))))
    return format_lines(lines)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.acceptance ray-examples", description=__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--only", nargs="+", default=[], help="examples whose path contains this")
    parser.add_argument("--timeout", type=float, default=240.0, help="seconds for each run (240)")
    parser.add_argument("--scratch", type=Path, help="where they write; short path, local disk")
    parser.add_argument("--results", type=Path, default=RESULTS_DIRECTORY, help="where figures go")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the examples that the command line names."""
    arguments = parse_arguments(argv)
    machine = describe_machine()
    print(machine_line(machine), flush=True)
    directory = examples_directory()
    paths = [
        path
        for path in find_examples(directory)
        if not arguments.only or any(word in path.as_posix() for word in arguments.only)
    ]
    examples: list[Example] = []
    interrupted = False
    try:
        for number, path in enumerate(paths, 1):
            try:
                example = examine(path, directory, arguments.timeout, arguments.scratch)
            except OSError as error:  # Of these programs' own, the others go on.
                example = Example(path.name, f"could not be run: {error}")
            examples.append(example)
            verdict = "; ".join(filter(None, [example.verdict, example.why_not]))
            print(f"{number} of {len(paths)}, {example.name}: {verdict}", file=sys.stderr)
    except KeyboardInterrupt:
        # What was run so far is worth showing.
        interrupted = True
    print(f"\n{format_table(examples)}")
    record: dict[str, Any] = {
        "benchmark": "ray-examples",
        "title": "Ray's own examples, without and with MemGuard",
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine,
        "examples": [asdict(example) | {"verdict": example.verdict} for example in examples],
    }
    (arguments.results / "ray-examples.json").write_text(json.dumps(record) + "\n")
    if interrupted:
        print("\ninterrupted", file=sys.stderr)
        return 130
    return 1 if any(example.differs for example in examples) else 0


if __name__ == "__main__":
    sys.exit(main())
