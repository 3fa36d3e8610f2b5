"""What an experiment checkpoint uploads to remote storage: ``python -m benchmarks uploads``.

A sweep of simulated trials without loggers on an S3 server of this machine, which counts the bytes
that it is sent. Ray alone runs a tenth of the trials. A checkpoint comes after so many seconds
with either, and begins when the upload before it has ended. Early are the checkpoints around a
tenth of the trials (2,000 of 20,000), late are those of the last tenth. Prints a table and writes
``uploads.json`` and ``.png``. The bar is that of 20,000 trials.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.machine import describe_machine, machine_line
from benchmarks.picture import Panel, draw, if_possible
from benchmarks.record import Round, Run
from benchmarks.report import format_table, write_results
from benchmarks.rivals import MEMGUARD, RAY, RIVALS, TWO
from benchmarks.rows import Bar, Figure, figure, megabytes, plain_bytes
from benchmarks.rows import factor as ratio
from benchmarks.runs import (
    RESULTS_DIRECTORY,
    ROOT,
    Progress,
    in_turn,
    positive,
    record_of,
    scratch_directory,
)

TRIALS = 20_000
RAYS_SHARE = 0.1
MB = 1_000_000


def _measure(rival: str, trials: int, every_s: float, directory: Path) -> Run:
    port_file = directory / "port"
    port_file.unlink(missing_ok=True)
    server = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.s3_server", str(port_file)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not (port_file.exists() and port_file.read_text()):
            if server.poll() is not None:
                raise RuntimeError("the S3 server has ended; it needs moto[s3] and flask")
            time.sleep(0.1)
        command = ["benchmarks.uploads_child", rival, str(trials), port_file.read_text()]
        command += [str(directory), "--every-s", str(every_s)]
        record = record_of(command, directory)
    finally:
        server.terminate()
        server.wait()
    if record["trials"] != trials:
        raise RuntimeError(f"{record['trials']:,} of {trials:,} trials are in the results")
    return Run(record)


def _uploads(run: Run) -> list[tuple[float, float]]:
    """The finished trials at each checkpoint but the last, and the bytes that it uploaded."""
    pairs = itertools.pairwise(run.record["checkpoints"])
    return [
        (one["finished"], after["bytes"] - one["bytes"]) for one, after in pairs if not one["last"]
    ]


def _between(run: Run, start: float, end: float) -> float:
    """The mean of the uploads between two points of the sweep, given as parts of its trials."""
    total = run.record["trials"]
    found = [sent for trials, sent in _uploads(run) if start * total <= trials <= end * total]
    if not found:
        raise RuntimeError(f"no checkpoint from {start:.0%} to {end:.0%} of the trials")
    return statistics.mean(found)


def _last(run: Run) -> float:
    one, after = [one for one in run.record["checkpoints"] if one["last"]][-2:]
    return float(after["bytes"] - one["bytes"])


def _evaluate(rounds: list[Round]) -> list[Figure]:
    def early(run: Run) -> float:
        return _between(run, 0.05, 0.15)

    def late(run: Run) -> float:
        return _between(run, 0.9, 1.0)

    def all_bytes(run: Run) -> float:
        return float(run.record["checkpoints"][-1]["bytes"])

    def per_trial(read: Callable[[Run], float]) -> Callable[[Run], float]:
        return lambda run: read(run) / run.record["trials"]

    return [
        figure("one upload, early", megabytes, rounds, early),
        figure("one upload, late", megabytes, rounds, late),
        figure(
            "one upload, late by early", ratio, rounds, lambda run: late(run) / early(run), Bar(2)
        ),
        figure("the last upload", megabytes, rounds, _last),
        figure("all uploads, per trial", plain_bytes, rounds, per_trial(all_bytes)),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; 1 if the bar was missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks uploads", description=__doc__)
    parser.add_argument("--trials", type=positive, default=TRIALS)
    parser.add_argument("--every-s", type=float, default=1.0, help="seconds between checkpoints")
    parser.add_argument("--runs", type=positive, default=3)
    parser.add_argument("--scratch", type=Path, help="a short path on a local disk")
    parser.add_argument("--results", type=Path, default=RESULTS_DIRECTORY)
    arguments = parser.parse_args(argv)
    if arguments.runs < 1:
        parser.error(f"--runs must be at least 1, not {arguments.runs}")
    title = f"{arguments.trials:,} simulated trials on a local S3 server"
    head = {"benchmark": "uploads", "title": title, "machine": describe_machine()}
    print(f"\nuploads: {title}, runs: {arguments.runs}")
    print(machine_line(head["machine"]), flush=True)
    sizes = {RAY: round(arguments.trials * RAYS_SHARE), MEMGUARD: arguments.trials}
    rounds = []
    progress = Progress()
    for number in range(arguments.runs):
        runs = {}
        for rival in in_turn(TWO, number):
            with scratch_directory(arguments.scratch) as directory:
                runs[rival] = _measure(rival, sizes[rival], arguments.every_s, directory)
            title_of_run = f"{sizes[rival]:,} trials, run {number + 1}, {RIVALS[rival].title}"
            progress.finish(f"{title_of_run}: done")
        rounds.append(Round({rival: runs[rival] for rival in TWO}))
    rows = _evaluate(rounds)
    judged = arguments.trials == TRIALS
    print(format_table(rows, judged), flush=True)
    path = arguments.results / "uploads.json"
    write_results(path, head, [(title, list(rows), rounds)])
    panel = Panel(
        "finished trials",
        "one upload, MB",
        lambda run: [(trials, sent / MB) for trials, sent in _uploads(run)],
    )
    with if_possible():
        draw(title, [(panel.y_label, panel, rounds)], path.with_suffix(".png"))
    return 0 if not judged or all(row.passed is not False for row in rows) else 1
