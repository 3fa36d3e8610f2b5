"""Measure MemGuard against its rivals: ``python -m benchmarks NAME [--quick]``.

``all`` runs everything, at its full size; that takes the better part of a day. What is printed is
also kept in ``docs/results/NAME.txt``. ``--again`` runs nothing: it reads ``NAME.json``, and
prints, judges and draws it anew.

``frames``, ``gate``, ``head-node``, ``histories``, ``html-report``, ``hundred-thousand``,
``keeper``, ``metrics``, ``object-store``, ``overhead``, ``profile``, ``restore``,
``trial-memory`` and ``uploads`` have options of their own: see ``NAME --help``. What either holds
or does not (kills, deaths, planted leaks, Ray's examples) is in ``python -m tests.acceptance``.

Prints one table per benchmark and writes ``NAME.json`` and ``NAME.png`` to ``docs/results/``.
Figures are medians over the runs, with the lowest and the highest in brackets; the ratio is the
median of the pairs' ratios. Ends with 1 if a bar was missed, with 2 if a sweep failed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks import (
    frames,
    gate,
    head_node,
    histories,
    html_report,
    hundred_thousand,
    keeper,
    metrics,
    object_store,
    overhead,
    profile,
    restore,
    trial_memory,
    uploads,
)
from benchmarks.commands import kept, run_command
from benchmarks.machine import describe_machine, machine_line
from benchmarks.picture import draw, if_possible
from benchmarks.record import Round, Run
from benchmarks.report import format_table, write_results
from benchmarks.rivals import MEMGUARD, RAY, RIVALS
from benchmarks.rows import Row
from benchmarks.runs import RESULTS_DIRECTORY, ChildFailed, positive, run_rounds
from benchmarks.suite import BENCHMARKS, Benchmark, Leg

#: With command lines of their own.
COMMANDS = {
    "frames": frames.main,
    "gate": gate.main,
    "histories": histories.main,
    "head-node": head_node.main,
    "html-report": html_report.main,
    "hundred-thousand": hundred_thousand.main,
    "keeper": keeper.main,
    "metrics": metrics.main,
    "object-store": object_store.main,
    "overhead": overhead.main,
    "profile": profile.main,
    "restore": restore.main,
    "trial-memory": trial_memory.main,
    "uploads": uploads.main,
}


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("name", choices=[*BENCHMARKS, *COMMANDS, "all"])
    parser.add_argument(
        "--quick", action="store_true", help="5 %% of the size, one run: a smoke test"
    )
    parser.add_argument("--runs", type=positive, help="runs of each rival (default: 3)")
    parser.add_argument(
        "--rivals",
        nargs="+",
        choices=list(RIVALS),
        default=list(RIVALS),
        help="all, unless some are named; MemGuard and Ray alone are what bars are about",
    )
    parser.add_argument(
        "--legs", nargs="+", type=positive, help="only these parts of it, by number"
    )
    parser.add_argument("--again", action="store_true", help="of what was measured last time")
    parser.add_argument("--trials", type=positive, help="trials (for `results`: results)")
    parser.add_argument(
        "--scratch", type=Path, help="where the sweeps write; short path, local disk"
    )
    parser.add_argument("--results", type=Path, default=RESULTS_DIRECTORY, help="where figures go")
    arguments = parser.parse_args(argv)
    if not {RAY, MEMGUARD} <= set(arguments.rivals):
        parser.error(f"--rivals: {RAY} and {MEMGUARD} must be among them, for the bars")
    return arguments


def _sized(leg: Leg, arguments: argparse.Namespace) -> Leg:
    if arguments.trials:
        return leg.resized(arguments.trials)
    return leg.quick() if arguments.quick else leg


def _read_results(path: Path) -> tuple[dict[str, Any], list[list[Round]]]:
    """What was written of a benchmark: about it, and each leg's rounds."""
    head = json.loads(path.read_text())
    legs = [
        [Round({name: Run(record) for name, record in one.items()}) for one in sweep["runs"]]
        for sweep in head.pop("sweeps")
    ]
    return head, legs


def _run_benchmark(name: str, benchmark: Benchmark, arguments: argparse.Namespace) -> bool:
    """Run, print and write one benchmark; return whether it kept its bars, or was not judged."""
    path = arguments.results / f"{name}.json"
    runs = arguments.runs or (1 if arguments.quick else 3)
    numbers = arguments.legs or list(range(1, len(benchmark.legs) + 1))
    if not set(numbers) <= set(range(1, len(benchmark.legs) + 1)):
        raise ChildFailed(f"--legs: {name} has {len(benchmark.legs)}, not {max(numbers)}")
    head: dict[str, Any] = {
        "benchmark": name,
        "title": benchmark.title,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "judged": not (arguments.quick or arguments.trials),
        "machine": describe_machine(),
        "runs": runs,
        "legs": numbers,
    }
    measured: list[list[Round]] | None = None
    if arguments.again:
        head, measured = _read_results(path)
        runs = head["runs"]
    judged = head["judged"]
    print(f"\n{name}: {benchmark.title}")
    print(machine_line(head["machine"]))
    evaluated: list[tuple[Leg, list[Row], list[Round]]] = []
    for index, number in enumerate(head.get("legs", numbers)):
        leg = _sized(benchmark.legs[number - 1], arguments)
        if measured is not None:
            rounds = measured[index]
        else:
            rivals = [rival for rival in leg.rivals if rival in arguments.rivals]
            try:
                rounds = run_rounds(
                    name, leg.sweep, rivals, runs, scratch=arguments.scratch, reopen=leg.reopen
                )
            except (KeyboardInterrupt, ChildFailed):
                # What took hours before it is kept.
                if evaluated:
                    head["legs"] = numbers[: len(evaluated)]
                    _write(path, head, benchmark, evaluated)
                raise
        rows = leg.evaluate(rounds)
        print(f"\n{leg.title}: {leg.sweep.total:,} {leg.sweep.sample_unit}, runs: {runs}")
        print(format_table(rows, judged), flush=True)
        evaluated.append((leg, rows, rounds))
    _write(path, head, benchmark, evaluated)
    return not judged or all(row.passed is not False for _, rows, _ in evaluated for row in rows)


def _write(
    path: Path,
    head: dict[str, Any],
    benchmark: Benchmark,
    evaluated: list[tuple[Leg, list[Row], list[Round]]],
) -> None:
    """Write what these legs measured, and draw it."""
    write_results(path, head, [(leg.title, rows, rounds) for leg, rows, rounds in evaluated])
    panels = [(leg.title, leg.panel, rounds) for leg, _, rounds in evaluated]
    with if_possible():
        draw(benchmark.title, panels, path.with_suffix(".png"))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmarks that the command line names."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        if argv and argv[0] in COMMANDS:
            return run_command(argv[0], COMMANDS[argv[0]], argv[1:])
        arguments = parse_arguments(argv)
        if arguments.name != "all":
            return _run_suite(arguments.name, arguments)
        codes = [_run_suite(name, arguments) for name in BENCHMARKS]
        if arguments.again or arguments.quick:
            print(f"\nleft out, being of one size: {', '.join(COMMANDS)}", file=sys.stderr)
        else:
            options = ["--results", str(arguments.results)]
            codes += [run_command(name, act, options) for name, act in COMMANDS.items()]
        return max(codes)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130


def _run_suite(name: str, arguments: argparse.Namespace) -> int:
    try:
        with kept(name, arguments.results):
            return 0 if _run_benchmark(name, BENCHMARKS[name], arguments) else 1
    except (ChildFailed, FileNotFoundError) as error:
        print(f"\n{error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
