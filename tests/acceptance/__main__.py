"""Check what must hold in real sweeps: ``python -m tests.acceptance NAME [OPTION ...]``.

``kills``: a killed driver loses no finished trial. ``out-of-memory``: a sweep outlives a trial that
is killed for memory. ``deaths``: verdicts about dead trials are right. ``planted`` and
``pytest-plugin``: leaks are named. ``ray-examples``: Ray's own examples end as without MemGuard.
``all``: one after the other, for hours. Options: see ``NAME --help``. Ray alone runs beside where
there is something to compare. What is printed is kept in ``docs/results/NAME.txt``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from benchmarks.runner import run_command
from tests.acceptance import (
    deaths,
    kills,
    out_of_memory,
    planted,
    pytest_plugin,
    ray_examples,
)

COMMANDS = {
    "deaths": deaths.main,
    "kills": kills.main,
    "out-of-memory": out_of_memory.main,
    "planted": planted.main,
    "pytest-plugin": pytest_plugin.main,
    "ray-examples": ray_examples.main,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(prog="python -m tests.acceptance", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("name", choices=[*COMMANDS, "all"])
    parser.add_argument("options", nargs=argparse.REMAINDER, help="of the command")
    arguments = parser.parse_args(argv)
    names = COMMANDS if arguments.name == "all" else [arguments.name]
    try:
        return max(run_command(name, COMMANDS[name], arguments.options) for name in names)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
