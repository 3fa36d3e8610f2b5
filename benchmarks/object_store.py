"""Leaks into the object store: ``python -m benchmarks object-store``.

Sweeps with reused actors, each in a Ray cluster of its own with a store of 80 MiB: trials that
leave 200 KB each in an actor, trials that leave 1 MB each (which the store does not hold, so that
Ray spills), and trials that hold 4 MB until they end. Beside each, Ray alone. What the store holds
in truth is what the benchmark has left in it. Ends with 1 if a leak is not named within 100
trials, if the slope is more than 10 % off, if what running trials hold is named, or if a look takes
more than 10 ms.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine, machine_line
from benchmarks.runs import RESULTS_DIRECTORY, positive
from tests.integration.own_process import said_by

#: By name: what a trial leaves behind, and what it holds until it ends, in bytes.
SWEEPS = {
    "leaves 200 KB": (200_000, 0),
    "leaves 1 MB": (1_000_000, 0),
    "holds 4 MB": (0, 4_000_000),
}
MAX_TRIALS = 100
MAX_ERROR = 0.1
MAX_LOOK_S = 0.010
TIMEOUT_S = 600


def run(left: int, held: int, trials: int, watched: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="tmp-") as folder:
        command = ["benchmarks.object_store_sweep", folder, str(trials), str(left), str(held)]
        found: dict[str, Any] = said_by(
            [*command, "watched" if watched else "plain"], timeout=TIMEOUT_S
        )
    return found


def checks(left: int, found: dict[str, Any]) -> dict[str, bool]:
    """Whether each bar was kept."""
    said, named = found["per_trial"] or 0.0, found["named_at"]
    return {
        "named": (named is not None and named <= MAX_TRIALS) if left else named is None,
        "slope": abs(said - left) <= MAX_ERROR * left if left else True,
        "look": found["look_s"] <= MAX_LOOK_S,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the sweeps and print a row for each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks object-store", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--trials", type=positive, default=200)
    parser.add_argument("--results", type=Path, default=RESULTS_DIRECTORY)
    arguments = parser.parse_args(argv)
    machine = describe_machine()
    print(machine_line(machine))
    rows, missed = [], 0
    for name, (left, held) in SWEEPS.items():
        alone = run(left, held, arguments.trials, watched=False)
        found = run(left, held, arguments.trials, watched=True)
        passed = checks(left, found)
        missed += sum(not one for one in passed.values())
        rows.append({"sweep": name, "alone": alone, "watched": found, "checks": passed})
        said = found["named_at"]
        print(
            f"{name:<14} {'not named' if said is None else f'named at trial {said}'}; the reporter "
            f"says {(found['per_trial'] or 0) / 1000:.0f} KB/trial; {found['looks']} looks of "
            f"{found['look_s'] * 1000:.2f} ms after a first one of "
            f"{found['first_look_s'] * 1000:.0f} ms; {found['seconds']:.1f} s (Ray alone "
            f"{alone['seconds']:.1f})  "
            + (", ".join(f"MISS {check}" for check, one in passed.items() if not one) or "ok"),
            flush=True,
        )
        for line in found["lines"]:
            print(f"    {line}")
    text = json.dumps({"machine": machine, "rows": rows}, indent=1)
    (arguments.results / "object-store.json").write_text(text + "\n")
    return 1 if missed else 0
