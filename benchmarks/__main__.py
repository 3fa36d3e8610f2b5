"""Measure MemGuard against its baselines: ``python -m benchmarks NAME [--quick]``.

``all`` runs everything, at its full size; that takes the better part of a day. What is printed is
also kept in ``docs/results/NAME.txt``, beside ``NAME.json`` and ``NAME.png``. ``--again`` runs
nothing: it reads ``NAME.json``, and prints, judges and draws it anew. More options: see
``NAME --help``. What either holds or does not (kills, deaths, planted leaks, Ray's examples) is in
``python -m tests.acceptance``.

Figures are medians over the runs, with the lowest and the highest in brackets; the ratio is the
median of the pairs' ratios. Ends with 1 if a threshold was missed, with 2 if a process failed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial

from benchmarks.runner import run_command, run_scenario
from benchmarks.scenarios import SCENARIOS


def main(argv: Sequence[str] | None = None) -> int:
    """Run the scenarios that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("name", choices=[*SCENARIOS, "all"])
    parser.add_argument("options", nargs=argparse.REMAINDER, help="see NAME --help")
    arguments = parser.parse_args(argv)
    names = list(SCENARIOS) if arguments.name == "all" else [arguments.name]
    try:
        return max(
            run_command(name, partial(run_scenario, name, SCENARIOS[name]), arguments.options)
            for name in names
        )
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
