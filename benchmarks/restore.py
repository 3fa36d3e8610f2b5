"""What opening and resuming a big finished experiment takes: ``python -m benchmarks restore``.

Of each size, two experiments of the same trials (simulated actors, default loggers) are made, one
by Ray alone and one with MemGuard. Then, several times and in alternation, each rival opens and
resumes copies of them, every time in a fresh process: until the experiment is open, until the best
trial is found after that, and until there is a DataFrame of all results. MemGuard opens Ray's
experiment as well: for the first time, again, and as Ray would. Prints a table and writes
``restore.json`` and ``.png``. The bars are those of 10,000 trials.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import describe_machine, machine_line
from benchmarks.picture import draw_bars, if_possible
from benchmarks.record import Round, Run
from benchmarks.report import format_table, write_results
from benchmarks.rivals import MEMGUARD, RAY, RIVALS, TWO
from benchmarks.rows import Bar, Figure, Row, figure, megabytes, seconds
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
#: An experiment that is begun anew, to compare a resumed one with.
NEW = "new"


@dataclass(frozen=True)
class Step:
    """One process: what it does (of ``restore_child``), with whose experiment."""

    how: str
    made_by: str


ANALYSIS, GET_RESULTS, RESUME, BEGIN = "analysis", "get_results", "resume", "begin"
FIRST, AGAIN, AFTER = "Ray's, first", "Ray's, again", "Ray's, after that"
#: In this order: what resumes an experiment leaves it changed.
STEPS = {
    RAY: {
        ANALYSIS: Step("analysis", RAY),
        GET_RESULTS: Step("get_results", RAY),
        RESUME: Step("resume", RAY),
        BEGIN: Step("begin", NEW),
    },
    MEMGUARD: {
        ANALYSIS: Step("analysis", MEMGUARD),
        GET_RESULTS: Step("get_results", MEMGUARD),
        FIRST: Step("open_experiment", RAY),
        AGAIN: Step("open_experiment", RAY),
        AFTER: Step("analysis", RAY),
        RESUME: Step("resume", MEMGUARD),
        BEGIN: Step("begin", NEW),
    },
}
TITLES = {
    ANALYSIS: "ExperimentAnalysis(path)",
    GET_RESULTS: "Tuner.restore(path).get_results()",
    FIRST: "open_experiment(path) of Ray's, first time",
    AGAIN: "open_experiment(path) of Ray's, again",
    AFTER: "ExperimentAnalysis(path) of Ray's, after that",
}
QUICK_S, QUICK_MB = 1, 20 * MB
FIRST_S, FIRST_MB = 6, 60 * MB
LARGER_START_MB = 30 * MB


def _make(rival: str, trials: int, directory: Path) -> Path:
    progress = Progress()
    out = directory / f"{rival}.json"
    arguments = ["--rival", rival, *Sweep("simulated", trials, sample_every=trials).arguments()]
    arguments += ["--storage", str(directory / rival[0]), "--out", str(out)]
    title = f"making {trials:,} trials, {RIVALS[rival].title}"
    run_child("sweep", arguments, directory / f"{rival}.log", lambda: progress.show(title))
    progress.finish(f"{title}: done")
    experiment = Path(json.loads(out.read_text())["experiment_path"])
    experiment.rename(directory / f"{rival}-made")
    return experiment


def _take_all(rival: str, places: dict[str, Path], trials: int, directory: Path) -> Run:
    """All steps of a rival, with fresh copies of the experiments, each where it was made."""
    record = {}
    needed = {step.made_by for step in STEPS[rival].values()}
    for maker, place in places.items():
        # With Ray's directory for sockets, which goes beside it.
        shutil.rmtree(place.parent, ignore_errors=True)
        if maker in needed - {NEW}:
            shutil.copytree(directory / f"{maker}-made", place, symlinks=True)
    guarded = ["--with-memguard"] if rival == MEMGUARD else []
    for name, step in STEPS[rival].items():
        place = places[step.made_by]
        command = ["benchmarks.restore_child", step.how, str(place), "--dataframe", *guarded]
        record[name] = record_of(command, directory)
        expected = 1 if step.made_by == NEW else trials
        if record[name]["trials"] != expected:
            raise RuntimeError(f"{name}: {record[name]['trials']:,} of {expected:,} trials")
    return Run(record)


def _evaluate(rounds: list[Round]) -> tuple[list[Row], list[Figure]]:
    """All rows, and those of them that are drawn."""

    def of(step: str, name: str) -> Callable[[Run], float]:
        return lambda run: float(run.record[step][name])

    def both(step: str, name: str) -> dict[str, list[float]]:
        steps = {RAY: ANALYSIS, MEMGUARD: step}
        return {rival: [of(steps[rival], name)(one.runs[rival]) for one in rounds] for rival in TWO}

    def larger(run: Run) -> float:
        return float(run.record[RESUME]["rss_at_setup"] - run.record[BEGIN]["rss_at_setup"])

    rows: list[Row] = []
    drawn: list[Figure] = []
    for step in (ANALYSIS, GET_RESULTS):
        title = TITLES[step]
        opening = figure(title, seconds, rounds, of(step, "seconds"), Bar(QUICK_S))
        drawn.append(opening)
        rows += [
            opening,
            figure(f"{title}: RSS", megabytes, rounds, of(step, "rss"), Bar(QUICK_MB)),
            figure(f"{title}: peak", megabytes, rounds, of(step, "peak")),
            figure("   then the best trial", seconds, rounds, of(step, "seconds_to_best")),
            figure("   then the DataFrame", seconds, rounds, of(step, "seconds_to_dataframe")),
        ]
    for step, limit_s, limit, which in (
        (FIRST, FIRST_S, FIRST_MB, "peak"),
        (AGAIN, QUICK_S, QUICK_MB, "RSS"),
        (AFTER, QUICK_S, QUICK_MB, "RSS"),
    ):
        title = TITLES[step]
        # Ray alone knows one way to open what it left.
        opening = Figure(title, seconds, both(step, "seconds"), Bar(limit_s))
        drawn.append(opening)
        size = Figure(f"{title}: {which}", megabytes, both(step, which.lower()), Bar(limit))
        rows += [opening, size]
    resumed = figure("resuming, with nothing left to do", seconds, rounds, of(RESUME, "seconds"))
    return [
        *rows,
        resumed,
        figure("resuming: peak", megabytes, rounds, of(RESUME, "peak")),
        figure(
            "a resumed run starts larger than a new one, by",
            megabytes,
            rounds,
            larger,
            Bar(LARGER_START_MB),
        ),
    ], [*drawn, resumed]


def _measure(trials: int, runs: int, scratch: Path | None) -> list[Round]:
    rounds = []
    progress = Progress()
    with scratch_directory(scratch) as directory:
        places = {rival: _make(rival, trials, directory) for rival in TWO}
        places[NEW] = directory / NEW / "sweep"
        for number in range(runs):
            done = {}
            for rival in in_turn(TWO, number):
                done[rival] = _take_all(rival, places, trials, directory)
                progress.finish(f"{trials:,} trials, run {number + 1}, {RIVALS[rival].title}: done")
            rounds.append(Round({rival: done[rival] for rival in TWO}))
    return rounds


def main(argv: Sequence[str] | None = None) -> int:
    """Run all steps at all sizes; 1 if a bar was missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks restore", description=__doc__)
    parser.add_argument(
        "--trials", type=positive, nargs="+", default=[1_000, 10_000], help="the sizes"
    )
    parser.add_argument("--runs", type=positive, default=3)
    parser.add_argument("--scratch", type=Path, help="a short path on a local disk")
    parser.add_argument("--results", type=Path, default=RESULTS_DIRECTORY)
    arguments = parser.parse_args(argv)
    if arguments.runs < 1:
        parser.error(f"--runs must be at least 1, not {arguments.runs}")
    title = "opening and resuming a finished experiment"
    head = {"benchmark": "restore", "title": title, "machine": describe_machine()}
    print(f"\nrestore: {title}")
    print(machine_line(head["machine"]), flush=True)
    legs: list[tuple[str, list[Row], list[Round]]] = []
    panels: list[tuple[str, list[Figure]]] = []
    for trials in arguments.trials:
        rounds = _measure(trials, arguments.runs, arguments.scratch)
        rows, drawn = _evaluate(rounds)
        name = f"{trials:,} trials"
        print(f"\n{name}, runs: {arguments.runs}\n{format_table(rows, judged=True)}", flush=True)
        legs.append((name, rows, rounds))
        panels.append((name, drawn))
    path = arguments.results / "restore.json"
    write_results(path, head, legs)
    with if_possible():
        draw_bars(title, panels, path.with_suffix(".png"))
    return 0 if all(row.passed is not False for _, rows, _ in legs for row in rows) else 1
