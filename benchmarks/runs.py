"""Start the sweeps: the rivals take turns, each in a fresh process, with a line of progress."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.record import Round, Run, samples_path
from benchmarks.rivals import RIVALS

ROOT = Path(__file__).resolve().parent.parent
RESULTS_DIRECTORY = ROOT / "docs" / "results"
#: Where a process that :func:`record_of` starts writes its record.
RECORD_VARIABLE = "MEMGUARD_BENCHMARK_RECORD"
LOG_LINES_SHOWN = 30


@dataclass(frozen=True)
class Sweep:
    """What a sweep is, whoever runs it. The fields are the arguments of ``benchmarks.sweep``."""

    actors: str
    trials: int
    results_per_trial: int = 1
    payload_kb: int = 0
    carried_mb: int = 0
    sample_every: int = 10
    sample_unit: str = "trials"
    loggers: bool = True
    verbose_level: int = 1
    #: Whether all results are read afterwards, to be compared.
    describe: bool = True

    @property
    def total(self) -> int:
        """Return how many trials, or results, there are to sample."""
        return self.trials if self.sample_unit == "trials" else self.trials * self.results_per_trial

    def arguments(self) -> list[str]:
        """Return the command line of this sweep."""
        line = []
        for name, value in vars(self).items():
            option = name.replace("_", "-")
            if isinstance(value, bool):
                line.append(f"--{option}" if value else f"--no-{option}")
            else:
                line += [f"--{option}", str(value)]
        return line


class ChildFailed(RuntimeError):
    """A sweep's process ended with an error; the message has the end of its log."""


def positive(text: str) -> int:
    """Read a number of an option that must be at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


def in_turn(rivals: Sequence[str], number: int) -> Sequence[str]:
    """Return the order of the rivals in a round: in every other one they go backwards.

    So a machine that gets slower or faster favours none.
    """
    return rivals if number % 2 == 0 else rivals[::-1]


class Progress:
    """One line that is rewritten on a terminal, and printed now and then elsewhere."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._period = 0.5 if self._live else 60.0
        self._shown_at = time.monotonic()

    def show(self, text: str) -> None:
        """Show the line, unless one was shown a moment ago."""
        if time.monotonic() - self._shown_at < self._period:
            return
        self._shown_at = time.monotonic()
        self._write(text, end="" if self._live else "\n")

    def finish(self, text: str) -> None:
        """Leave a last line."""
        self._write(text, end="\n")

    def _write(self, text: str, end: str) -> None:
        start = "\r\x1b[K" if self._live else ""
        print(f"{start}{text}", end=end, file=sys.stderr, flush=True)


def last_sample(record: Path) -> list[float] | None:
    """Return the newest whole line of the samples of a record that is being made."""
    path = samples_path(record)
    if not path.exists():
        return None
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 400))
        lines = file.read().split(b"\n")[:-1]
    return json.loads(lines[-1]) if len(lines) > 1 else None


def describe_progress(sweep: Sweep, sample: list[float] | None, seconds: float) -> str:
    """Say how far a sweep is."""
    if sample is None:
        return f"starting, {seconds:.0f} s"
    done = sample[0] if sweep.sample_unit == "trials" else sample[1]
    progress = f"{done:,}/{sweep.total:,} {sweep.sample_unit}"
    return f"{progress}, {sample[2] / 2**20:.0f} MiB, {seconds:.0f} s"


def _stop(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(timeout=20)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def run_child(module: str, arguments: list[str], log: Path, on_poll: Any) -> None:
    """Run a module of this package in a fresh interpreter; ``on_poll`` is called as it runs."""
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
    with log.open("wb") as output:
        child = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        try:
            while child.poll() is None:
                on_poll()
                time.sleep(0.2)
        except BaseException:
            _stop(child)
            raise
    if child.returncode != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:])
        raise ChildFailed(f"{' '.join(command)}\nended with {child.returncode}. Its log:\n{tail}")


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


def _run_one(
    sweep: Sweep, rival: str, seed: int, scratch: Path | None, reopen: bool, title: str
) -> Run:
    """Run one sweep; with ``reopen``, then open what it left in a process without MemGuard."""
    progress = Progress()
    started = time.monotonic()

    def show(sample: list[float] | None) -> None:
        seconds = time.monotonic() - started
        progress.show(f"{title}: {describe_progress(sweep, sample, seconds)}")

    with scratch_directory(scratch) as directory:
        out = directory / "record.json"
        storage = directory / "s"
        arguments = ["--rival", rival, "--seed", str(seed), *sweep.arguments()]
        arguments += ["--storage", str(storage), "--out", str(out)]
        run_child("sweep", arguments, directory / "log", lambda: show(last_sample(out)))
        record: dict[str, Any] = json.loads(out.read_text())
        record["console"] = _last_count(directory / "log")
        experiment = record.pop("experiment_path")
        if reopen:
            record["opened"] = _open_with_ray(experiment, directory, progress, title)
    run = Run(record)
    progress.finish(f"{title}: fit() took {run.fit_seconds:.1f} s")
    return run


def _last_count(log: Path) -> str:
    """The console's last line about how many trials have which status."""
    found = re.findall(r"^Trial status: (.*)$", log.read_text(errors="replace"), re.MULTILINE)
    return found[-1] if found else ""


def _open_with_ray(
    experiment: str, directory: Path, progress: Progress, title: str
) -> dict[str, Any]:
    out = directory / "opened.json"
    arguments = ["--experiment", experiment, "--ray-directory", str(directory / "o")]
    run_child(
        "open_with_ray",
        [*arguments, "--out", str(out)],
        directory / "open.log",
        lambda: progress.show(f"{title}: opening what it left, with Ray alone"),
    )
    return json.loads(out.read_text())


def run_rounds(
    name: str,
    sweep: Sweep,
    rivals: Sequence[str],
    runs: int,
    *,
    scratch: Path | None = None,
    reopen: bool = False,
) -> list[Round]:
    """Run the sweep ``runs`` times with each rival.

    All of a round have the same seed, so that their results can be compared.
    """
    rounds = []
    for index in range(runs):
        done: dict[str, Run] = {}
        for rival in in_turn(rivals, index):
            title = f"{name}, run {index + 1} of {runs}, {RIVALS[rival].title}"
            done[rival] = _run_one(sweep, rival, index, scratch, reopen, title)
        rounds.append(Round({rival: done[rival] for rival in rivals}))
    return rounds


def record_of(command: Sequence[str], directory: Path) -> dict[str, Any]:
    """Run ``python -m command`` in a fresh process; what it wrote to ``RECORD_VARIABLE``, JSON.

    Raises:
        RuntimeError: it failed, or wrote nothing; with the end of its output.
    """
    out, log = directory / "record.json", directory / "record.log"
    out.unlink(missing_ok=True)
    with log.open("wb") as output:
        ended = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=ROOT,
            env={**os.environ, RECORD_VARIABLE: str(out)},
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if ended.returncode or not out.exists():
        raise RuntimeError(f"{' '.join(command)}:\n{log.read_text(errors='replace')[-3000:]}")
    record: dict[str, Any] = json.loads(out.read_text())
    return record


def write_record(record: dict[str, Any]) -> None:
    """In such a process: write what it found."""
    Path(os.environ[RECORD_VARIABLE]).write_text(json.dumps(record))
