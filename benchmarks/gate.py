"""What the launch gate does, and what it costs: ``python -m benchmarks gate [PART ...]``.

Parts, each by Ray alone as well, each sweep in a process and a Ray cluster of its own:

- ``toy``: ten trials that grow to 320 MiB on four CPUs, with a budget of 700 MiB for them. How much
  of the budget was used at most, in all and once the first four trials and their processes have
  ended, and how long it took. What no bar is about (no gate, a size that is told) runs less often.
- ``sweeps``: 40 sweeps (five schedulers, reused actors or not, a limit of concurrent trials or not,
  one or two shapes of resources) on a node whose memory comes and goes. None hangs, each ends with
  all of its trials, and without a scheduler that decides by time the results are Ray's.
- ``paused``: steps a second and CPU of a driver whose trials wait.
- ``ample``: time of a sweep that never waits, from the end of its first trial to that of its last.
- ``stop``: a run that ends in time, and is resumed.

Ends with 1 if a threshold is missed. ``--quick``: one run of each, eight sweeps.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine, machine_line
from benchmarks.runs import RESULTS_DIRECTORY, positive
from tests.integration.own_process import said_by

TIMEOUT_S = 600
SCHEDULERS = ("fifo", "asha", "hyperband", "pbt", "pbt-synch")
#: Their trials end as without a gate, whatever else runs at the same time.
DETERMINISTIC = ("fifo",)
MAX_SLOWDOWN, MAX_AMPLE, MAX_STEPS, MAX_CPU = 1.6, 1.01, 15.0, 0.02


def child(part: str, **options: Any) -> dict[str, Any]:
    """Run one sweep in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="tmp-") as folder:
        command = ["benchmarks.gate_sweep", part, folder, json.dumps(options)]
        try:
            found: dict[str, Any] = said_by(command, TIMEOUT_S)
        except RuntimeError as error:
            return {"failed": str(error)}
    return found


def _say(text: str) -> None:
    print(text, flush=True)


def toy(runs: int) -> tuple[bool, list[dict[str, Any]]]:
    kinds = ("no gate", "gate", "slow_start", "memory_per_trial")
    rows = []
    for number, kind in itertools.product(range(runs), kinds):
        if number % 3 and kind in ("no gate", "memory_per_trial"):
            continue
        rows.append({"kind": kind, **child("toy", kind=kind)})
        print(f"  toy, run {number + 1}: {rows[-1]}", file=sys.stderr, flush=True)
    kept = True
    alone = 0.0
    for kind in kinds:
        mine = [row for row in rows if row["kind"] == kind]
        for row in mine:
            if "failed" in row:
                _say(f"toy {kind}: {row['failed']}")
        good = [row for row in mine if "failed" not in row]
        if not good:
            kept = False
            continue
        highest = max(row["highest"] for row in good)
        later = max(row["later"] for row in good)
        seconds = statistics.median(row["seconds"] for row in good)
        alone = alone or seconds
        judged = later if kind == "gate" else highest
        is_within = judged <= 1.0 and seconds <= MAX_SLOWDOWN * alone
        is_kept = kind == "no gate" or (is_within and len(good) == len(mine))
        kept = kept and is_kept
        _say(
            f"toy {kind:<17} highest {highest:.0%} of the budget, after the first wave "
            f"{later:.0%} (worst of {len(good)}), {seconds:.1f} s ({seconds / alone:.2f} x)"
            f"{'' if is_kept else '   MISSED'}"
        )
    return kept, rows


def sweeps(quick: bool) -> tuple[bool, list[dict[str, Any]]]:
    cases = [
        {"scheduler": scheduler, "reuse": reuse, "max_concurrent": most, "two_shapes": two}
        for scheduler, reuse, most, two in itertools.product(
            SCHEDULERS, (False, True), (None, 2), (False, True)
        )
    ]
    if quick:
        cases = cases[:: len(cases) // 8]
    rows = []
    for case in cases:
        row = {**case, **child("sweep", **case)}
        row["kept"] = "failed" not in row and row["ended"] == row["trials"] and not row["errors"]
        if row["kept"] and case["scheduler"] in DETERMINISTIC:
            row["kept"] = row["outcome"] == row["alone"]
        if not row["kept"]:
            _say(f"sweep {case}: {row.get('failed') or row}")
        rows.append(row)
    good = sum(row["kept"] for row in rows)
    pauses = sum(row.get("pauses", 0) for row in rows)
    _say(f"sweeps: {good} of {len(rows)} ended with all trials ({pauses} pauses)")
    return good == len(rows), rows


def paused() -> tuple[bool, list[dict[str, Any]]]:
    row = child("paused")
    if "failed" in row:
        _say(f"paused: {row['failed']}")
        return False, [row]
    kept = row["steps"] <= MAX_STEPS and row["cpu"] <= MAX_CPU
    _say(
        f"paused: {row['steps']:.1f} steps a second, {row['cpu']:.1%} of a core with the gate; "
        f"{row['steps_alone']:.1f} and {row['cpu_alone']:.1%} by Ray alone with the same trial"
        f"{'' if kept else '   MISSED'}"
    )
    return kept, [row]


def ample(runs: int) -> tuple[bool, list[dict[str, Any]]]:
    rows = [child("ample", first=run % 2) for run in range(runs)]
    good = [row for row in rows if "failed" not in row]
    for row in rows:
        if "failed" in row:
            _say(f"ample: {row['failed']}")
    if not good:
        return False, rows
    ratio = statistics.median(row["gated"] / row["alone"] for row in good)
    _say(
        f"ample: {statistics.median(row['gated'] for row in good):.2f} s with the gate, "
        f"{statistics.median(row['alone'] for row in good):.2f} s by Ray alone, ratio {ratio:.3f}; "
        f"the gate's own code took {statistics.median(row['own'] for row in good):.3%} of the time"
        f"{'' if ratio <= MAX_AMPLE else '   MISSED'}"
    )
    return ratio <= MAX_AMPLE, rows


def stop() -> tuple[bool, list[dict[str, Any]]]:
    row = child("stop")
    if "failed" in row:
        _say(f"stop: {row['failed']}")
        return False, [row]
    kept = row["lost"] == 0 and row["resumed"] == row["trials"] and row["went_on"] > 0
    _say(
        f"stop: {row['ended']} of {row['trials']} trials had finished, {row['lost']} lost; after "
        f"the restore {row['resumed']} are finished, {row['went_on']} went on from a checkpoint"
        f"{'' if kept else '   MISSED'}"
    )
    return kept, [row]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks gate", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    names = ("toy", "sweeps", "paused", "ample", "stop")
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(names))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--runs", type=positive, default=10, help="of the toy and the ample sweep")
    parser.add_argument("--results", type=Path, default=RESULTS_DIRECTORY)
    arguments = parser.parse_args(argv)
    if unknown := set(arguments.parts) - set(names):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    runs = 1 if arguments.quick else arguments.runs
    machine = describe_machine()
    _say(machine_line(machine))
    found: dict[str, Any] = {}
    is_kept = True
    for name in arguments.parts or names:
        run = {
            "toy": lambda: toy(runs),
            "sweeps": lambda: sweeps(arguments.quick),
            "paused": paused,
            "ample": lambda: ample(runs),
            "stop": stop,
        }[name]
        kept, found[name] = run()
        is_kept = is_kept and kept
    if not arguments.quick and not arguments.parts:
        text = json.dumps({"machine": machine, **found}, indent=1)
        (arguments.results / "gate.json").write_text(text + "\n")
    return 0 if is_kept else 1
