"""Growth of the head node's processes: ``python -m benchmarks head-node``.

Three sweeps of 800 trials with reused actors, each in a Ray cluster of its own: with Ray's own
settings, with what ``HeadNodeReporter`` advises (no task events), and with a cap of 500 tasks. In
each, a callback of the benchmark reads ``VmRSS`` of ``gcs_server`` itself; the reporter's slope is
compared with the slope of these figures over the same trials. Beside each, Ray alone (the
callback without the reporter). Ends with 1 if the reporter's slope is more than 25 % (or 0.5 KB per
trial) off, if it does not name the growth, or names one after its advice was followed; if 1 KB per
trial or more is left then; or if a look takes more than 1 ms on average, without the first one,
which imports what it needs and finds the processes.
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
from ray_tune_memguard.report.line import fit_line
from tests.integration.own_process import said_by

SETTINGS: dict[str, dict[str, str]] = {
    "Ray's own": {},
    "as advised": {"RAY_task_events_report_interval_ms": "0"},
    "capped": {"RAY_task_events_max_num_task_in_gcs": "500"},
}
MAX_ERROR = 0.25
MAX_ERROR_BYTES = 500.0
MAX_ADVISED_BYTES = 1000.0
MAX_LOOK_S = 0.001
TIMEOUT_S = 600


def run(settings: dict[str, str], trials: int, watched: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="tmp-") as folder:
        how = "watched" if watched else "plain"
        command = ["benchmarks.head_sweep", folder, str(trials), how]
        found: dict[str, Any] = said_by(command, TIMEOUT_S, variables=settings)
    return found


def true_slope(truth: list[list[int]]) -> float:
    """Bytes per trial after warm-up, by least squares."""
    last = truth[-1][0]
    points = [point for point in truth if point[0] >= max(100 if last >= 300 else 0, 0.2 * last)]
    line = fit_line([point[0] for point in points], [point[1] for point in points])
    return 0.0 if line is None else line.slope


def main(argv: Sequence[str] | None = None) -> int:
    """Run the sweeps and print a row for each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks head-node", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--trials", type=positive, default=800)
    parser.add_argument("--results", type=Path, default=RESULTS_DIRECTORY)
    arguments = parser.parse_args(argv)
    machine = describe_machine()
    print(machine_line(machine))
    rows, missed = [], 0
    for name, settings in SETTINGS.items():
        alone = run(settings, arguments.trials, watched=False)
        found = run(settings, arguments.trials, watched=True)
        slope, said = true_slope(found["truth"]), found["per_trial"]
        error = None if said is None else abs(said - slope)
        checks = {
            "slope": error is not None and error <= max(MAX_ERROR * abs(slope), MAX_ERROR_BYTES),
            "named": bool(found["lines"]) == (name == "Ray's own") or name == "capped",
            "look": found["look_s"] <= MAX_LOOK_S,
            "advice": name != "as advised" or slope < MAX_ADVISED_BYTES,
        }
        missed += sum(not passed for passed in checks.values())
        rows.append(
            {
                "settings": name,
                "alone": true_slope(alone["truth"]),
                "truth": slope,
                "said": said,
                "looks": found["looks"],
                "first_look_s": found["first_look_s"],
                "look_s": found["look_s"],
                "seconds": [alone["seconds"], found["seconds"]],
                "lines": found["lines"],
                "checks": checks,
            }
        )
        figure = "nothing" if said is None else f"{said / 1000:.2f}"
        print(
            f"{name:<11} gcs_server {slope / 1000:6.2f} KB/trial (Ray alone "
            f"{rows[-1]['alone'] / 1000:.2f}), the reporter says {figure}; {found['looks']} looks "
            f"of {found['look_s'] * 1000:.2f} ms after a first one of "
            f"{found['first_look_s'] * 1000:.0f} ms; {found['seconds']:.1f} s (alone "
            f"{alone['seconds']:.1f})  "
            + (
                ", ".join(f"MISS {check}" for check, passed in checks.items() if not passed) or "ok"
            ),
            flush=True,
        )
        for line in found["lines"]:
            print(f"    {line}")
    text = json.dumps({"machine": machine, "rows": rows}, indent=1)
    (arguments.results / "head-node.json").write_text(text + "\n")
    return 1 if missed else 0
