"""A sweep of 100,000 trials on two cores: ``python -m benchmarks hundred-thousand``.

Simulated actors, no loggers. MemGuard runs all of them; Ray alone, whose time per trial grows with
their number, runs a tenth. Then both experiments are opened in fresh processes: how long it takes,
and how much memory, until the best trial is found and 1,000 random results are read; and resumed,
which finds nothing to do. All of it several times, in alternation. Prints a table and writes
``hundred-thousand.json`` and ``.png``. A run takes ten minutes to a quarter of an hour, and 3 GB of
disk.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.machine import describe_machine, machine_line
from benchmarks.picture import Panel, columns, draw, if_possible
from benchmarks.record import FINISHED, RSS, Round, Run, samples_path
from benchmarks.report import format_table, write_results
from benchmarks.rivals import MEMGUARD, RAY, RIVALS, TWO
from benchmarks.rows import (
    Bar,
    Check,
    Row,
    by_rival,
    factor,
    figure,
    megabytes,
    milliseconds,
    per_second,
    seconds,
)
from benchmarks.runs import (
    RESULTS_DIRECTORY,
    Progress,
    Sweep,
    describe_progress,
    in_turn,
    last_sample,
    positive,
    record_of,
    run_child,
    scratch_directory,
)

MB = 1_000_000
TRIALS = 100_000
READ = 1000
RAYS_SHARE = 0.1
LEVEL_AT = 1000
#: Ray's tenth has a level, too, and time for some experiment checkpoints.
SMALLEST = 20_000
LARGEST_RISE = 60 * MB
LEAST_THROUGHPUT = 0.9
LARGEST_CHECKPOINT = 2.0
LONGEST_READING_S, LARGEST_READING = 2.0, 30 * MB


_PANELS = (
    Panel("finished trials", "driver RSS, MB", columns(FINISHED, RSS, MB)),
    Panel(
        "finished trials",
        "time per trial, ms",
        lambda run: [(trials, 1e3 * each) for trials, each in run.trial_seconds()],
    ),
)


def _run(rival: str, sweep: Sweep, directory: Path) -> tuple[Run, Path]:
    out = directory / f"{rival}.json"
    progress = Progress()
    started = time.monotonic()

    def show() -> None:
        done = describe_progress(sweep, last_sample(out), time.monotonic() - started)
        progress.show(f"{RIVALS[rival].title}: {done}")

    arguments = ["--rival", rival, *sweep.arguments(), "--out", str(out)]
    arguments += ["--storage", str(directory / rival[0])]
    run_child("sweep", arguments, directory / f"{rival}.log", show)
    run = Run(json.loads(out.read_text()))
    samples_path(out).unlink()
    return run, Path(run.record.pop("experiment_path"))


def _measure(rival: str, sweep: Sweep, directory: Path) -> Run:
    """One sweep, and what comes of it in fresh processes."""
    run, experiment = _run(rival, sweep, directory)
    how = ["analysis"] if rival == RAY else ["open_experiment"]
    command = ["benchmarks.restore_child", *how, str(experiment), "--read", str(READ)]
    guarded = [] if rival == RAY else ["--with-memguard"]
    run.record["reading"] = record_of([*command, *guarded], directory)
    command = ["benchmarks.restore_child", "resume", str(experiment)]
    # Where Ray's directory for sockets goes, and where the sweep had it.
    shutil.rmtree(experiment.parent / "r", ignore_errors=True)
    run.record["resuming"] = record_of([*command, *guarded], directory)
    for then in ("reading", "resuming"):
        if run.record[then]["trials"] != sweep.trials:
            found = run.record[then]["trials"]
            raise RuntimeError(f"{found:,} of {sweep.trials:,} trials are there afterwards")
    return run


def _level(run: Run) -> float:
    return next(sample[RSS] for sample in run.samples if sample[FINISHED] >= LEVEL_AT)


def _rise(run: Run) -> float:
    return max(run.highest(RSS), run.record["rss_after_fit"]) - _level(run)


def _evaluate(rounds: list[Round]) -> list[Row]:
    def trials(run: Run) -> int:
        return int(run.samples[-1][FINISHED])

    def first(run: Run) -> float:
        return run.trials_per_second(0.0, 0.1)

    def last(run: Run) -> float:
        return run.trials_per_second(0.9, 1.0)

    def early(run: Run) -> float:
        return run.periodic_checkpoint(LEVEL_AT / 2, 5 * LEVEL_AT)

    def late(run: Run) -> float:
        return run.periodic_checkpoint(0.95 * trials(run), trials(run))

    def last_upload(run: Run) -> float:
        return run.late_checkpoints("total_s")[-1]

    def of(part: str, name: str) -> Callable[[Run], float]:
        return lambda run: float(run.record[part][name])

    numbers = by_rival(rounds, lambda run: f"{trials(run):,}")
    throughput = "throughput, trials"
    checkpoint = "one experiment checkpoint,"
    reading = f"opening it, the best trial, {READ:,} random results"
    resuming = "resuming it, with nothing left to do"
    return [
        Check("trials", numbers, holds=True, is_bar=False),
        figure("fit(), per trial", milliseconds, rounds, lambda run: run.fit_seconds / trials(run)),
        figure("its last upload", seconds, rounds, last_upload),
        figure(
            "what else it does beside the loop",
            seconds,
            rounds,
            lambda run: run.fit_seconds - run.loop_seconds - last_upload(run),
        ),
        figure(f"RSS at trial {LEVEL_AT:,}", megabytes, rounds, _level),
        figure("RSS rises above that by", megabytes, rounds, _rise, Bar(LARGEST_RISE)),
        figure(f"{throughput} of the first tenth", per_second, rounds, first),
        figure(f"{throughput} of the last tenth", per_second, rounds, last),
        figure(
            "throughput, last by first",
            factor,
            rounds,
            lambda run: last(run) / first(run),
            Bar(LEAST_THROUGHPUT, at_least=True),
        ),
        figure(f"{checkpoint} early", milliseconds, rounds, early),
        figure(f"{checkpoint} late", milliseconds, rounds, late),
        figure(
            f"{checkpoint} late by early",
            factor,
            rounds,
            lambda run: late(run) / early(run),
            Bar(LARGEST_CHECKPOINT),
        ),
        figure(
            "experiment state file",
            megabytes,
            rounds,
            lambda run: run.late_checkpoints("state_bytes")[-1],
        ),
        figure(
            "all files beside the trials'",
            megabytes,
            rounds,
            lambda run: run.record["bytes_beside_trials"],
        ),
        figure(reading, seconds, rounds, of("reading", "seconds"), Bar(LONGEST_READING_S)),
        figure(f"{reading}: peak", megabytes, rounds, of("reading", "peak"), Bar(LARGEST_READING)),
        figure(resuming, seconds, rounds, of("resuming", "seconds")),
        figure(f"{resuming}: peak", megabytes, rounds, of("resuming", "peak")),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; 1 if a bar was missed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks hundred-thousand", description=__doc__
    )
    parser.add_argument("--trials", type=positive, default=TRIALS)
    parser.add_argument("--runs", type=positive, default=3)
    parser.add_argument("--scratch", type=Path, help="a short path on a local disk")
    parser.add_argument("--results", type=Path, default=RESULTS_DIRECTORY)
    arguments = parser.parse_args(argv)
    if arguments.trials < SMALLEST:
        parser.error(f"--trials must be at least {SMALLEST:,}, not {arguments.trials:,}")
    if arguments.runs < 1:
        parser.error(f"--runs must be at least 1, not {arguments.runs}")
    title = f"{arguments.trials:,} simulated trials, no loggers"
    head = {"benchmark": "hundred-thousand", "title": title, "machine": describe_machine()}
    print(f"\nhundred-thousand: {title}, runs: {arguments.runs}")
    print(machine_line(head["machine"]), flush=True)
    sizes = {RAY: round(arguments.trials * RAYS_SHARE), MEMGUARD: arguments.trials}
    sweeps = {
        rival: Sweep(
            "simulated",
            trials,
            sample_every=max(1, trials // 500),
            loggers=False,
            describe=False,
        )
        for rival, trials in sizes.items()
    }
    rounds: list[Round] = []
    rows: list[Row] = []
    path = arguments.results / "hundred-thousand.json"
    for number in range(arguments.runs):
        order = in_turn(TWO, number)
        runs = {}
        for rival in order:
            with scratch_directory(arguments.scratch) as directory:
                runs[rival] = _measure(rival, sweeps[rival], directory)
        rounds.append(Round({rival: runs[rival] for rival in TWO}))
        rows = _evaluate(rounds)
        # Each, that an interrupt leaves what was measured.
        write_results(path, head, [(title, rows, rounds)])
    judged = arguments.trials == TRIALS
    print(format_table(rows, judged), flush=True)
    with if_possible():
        draw(title, [(panel.y_label, panel, rounds) for panel in _PANELS], path.with_suffix(".png"))
    return 0 if not judged or all(row.passed is not False for row in rows) else 1
