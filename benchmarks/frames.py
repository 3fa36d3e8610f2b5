"""All results of a big experiment in one DataFrame: ``python -m benchmarks frames``.

Of each size, an experiment is made (simulated actors; each trial's ``result.json`` is written
afterwards, as Ray's logger writes it). Then, in alternation, Ray alone and MemGuard open it, every
time in a fresh process, and read it in each of the ways that Ray has; MemGuard streams it, too.
Each figure has opening in it, and the peak is what the process has on top of what it had before.
Prints a table and writes ``frames.json`` and ``.png``. The bars are those of 10,000 and 100,000
trials. Ray alone takes minutes and some GB of memory for 100,000.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.frames_child import READS, STREAMS
from benchmarks.machine import describe_machine, machine_line
from benchmarks.picture import draw_bars, if_possible
from benchmarks.record import Round, Run
from benchmarks.report import format_table, write_results
from benchmarks.rivals import MEMGUARD, RIVALS, TWO
from benchmarks.rows import Bar, Figure, figure, megabytes, memguards, seconds
from benchmarks.runs import (
    RESULTS_DIRECTORY,
    Progress,
    Sweep,
    in_turn,
    positive,
    record_of,
    run_child,
    scratch_directory,
)

MB = 1_000_000
SIZES = (10_000, 100_000)
TITLES = {
    "frame": "get_dataframe()",
    "filtered": "get_dataframe(metric, mode)",
    "last results": "results_df",
    "configs": "get_all_configs(prefix=True)",
    "each frame": "all trial_dataframes",
    "stream": "iter_results(path)",
    "whole": "read_results(path)",
    "arrow": "read_results(path, as_arrow=True)",
}
#: Seconds, by size; and the largest peak.
LONGEST_S = {("frame", 10_000): 2, ("filtered", 10_000): 3, ("frame", 100_000): 20}
LARGEST = {("frame", 100_000): 500 * MB}


def _make(trials: int, directory: Path) -> Path:
    progress = Progress()
    out = directory / "made.json"
    sweep = Sweep("simulated", trials, sample_every=trials, loggers=False, describe=False)
    arguments = ["--rival", MEMGUARD, *sweep.arguments()]
    arguments += ["--storage", str(directory / "m"), "--out", str(out)]
    title = f"making {trials:,} trials"
    run_child("sweep", arguments, directory / "make.log", lambda: progress.show(title))
    experiment = Path(json.loads(out.read_text())["experiment_path"])
    written = record_of(["benchmarks.frames_child", "write", str(experiment)], directory)["trials"]
    if written != trials:
        raise RuntimeError(f"{written:,} of {trials:,} trials were made")
    progress.finish(f"{title}: done")
    return experiment


def _read(rival: str, experiment: Path, trials: int, directory: Path) -> Run:
    guarded = ["--with-memguard"] if rival == MEMGUARD else []
    record = {}
    for how in [*READS, *STREAMS] if rival == MEMGUARD else READS:
        command = ["benchmarks.frames_child", how, str(experiment), *guarded]
        record[how] = record_of(command, directory)
        if record[how]["trials"] != trials:
            raise RuntimeError(f"{TITLES[how]}: {record[how]['trials']:,} of {trials:,} results")
    return Run(record)


def _evaluate(rounds: list[Round], trials: int) -> list[Figure]:
    def of(how: str, name: str) -> Callable[[Run], float]:
        return lambda run: float(run.record[how][name])

    rows = []
    for how, title in TITLES.items():
        row = figure if how in READS else memguards
        longest, largest = LONGEST_S.get((how, trials)), LARGEST.get((how, trials))
        took = Bar(longest) if longest else None
        rows.append(row(title, seconds, rounds, of(how, "seconds"), took))
        peak = Bar(largest) if largest else None
        rows.append(row(f"{title}: peak", megabytes, rounds, of(how, "peak"), peak))
    return rows


def _measure(trials: int, runs: int, scratch: Path | None) -> list[Round]:
    rounds = []
    progress = Progress()
    with scratch_directory(scratch) as directory:
        experiment = _make(trials, directory)
        for number in range(runs):
            done = {}
            for rival in in_turn(TWO, number):
                done[rival] = _read(rival, experiment, trials, directory)
                progress.finish(f"{trials:,} trials, run {number + 1}, {RIVALS[rival].title}: done")
            rounds.append(Round({rival: done[rival] for rival in TWO}))
    return rounds


def main(argv: Sequence[str] | None = None) -> int:
    """Read experiments of all sizes; 1 if a bar was missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks frames", description=__doc__)
    parser.add_argument("--trials", type=positive, nargs="+", default=list(SIZES), help="the sizes")
    parser.add_argument("--runs", type=positive, default=3)
    parser.add_argument("--scratch", type=Path, help="a short path on a local disk")
    parser.add_argument("--results", type=Path, default=RESULTS_DIRECTORY)
    arguments = parser.parse_args(argv)
    if arguments.runs < 1:
        parser.error(f"--runs must be at least 1, not {arguments.runs}")
    title = "all results of a finished experiment"
    head = {"benchmark": "frames", "title": title, "machine": describe_machine()}
    print(f"\nframes: {title}")
    print(machine_line(head["machine"]), flush=True)
    legs: list[tuple[str, list[Figure], list[Round]]] = []
    path = arguments.results / "frames.json"
    for trials in arguments.trials:
        rounds = _measure(trials, arguments.runs, arguments.scratch)
        rows = _evaluate(rounds, trials)
        name = f"{trials:,} trials"
        print(f"\n{name}, runs: {arguments.runs}\n{format_table(rows, judged=True)}", flush=True)
        legs.append((name, rows, rounds))
        # Each, that an interrupt leaves what was measured.
        write_results(path, head, [(name, list(rows), rounds) for name, rows, rounds in legs])
    with if_possible():
        drawn = [(name, rows[: 2 * len(READS) : 2]) for name, rows, _ in legs]
        draw_bars(title, drawn, path.with_suffix(".png"))
    return 0 if all(row.passed is not False for _, rows, _ in legs for row in rows) else 1
