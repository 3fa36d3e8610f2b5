"""What the tracker says of Ray alone, and what it costs: ``python -m benchmarks tracked``.

Two real sweeps with reused actors, each in a fresh process: 1,000 trials of Ray alone with nothing
but an ``ObjectGrowthTracker`` with a generous budget, and 4,000 with ``MemGuard()``. Prints the
report of the first, how far its parts are from the slope of RSS, and the cost of the second; writes
``tracked.json``.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.machine import describe_machine, machine_line
from benchmarks.runs import RESULTS_DIRECTORY, record_of, write_record

TRIALS = {"alone": 1000, "guarded": 4000}
#: Of who wants to find out, in a sweep of twenty seconds. The other one has the default.
DIAGNOSIS_BUDGET = 0.2
LARGEST_DIFFERENCE = 0.10
LARGEST_COST = 0.01
LARGEST_SIZE = 1_000_000


def sweep(kind: str, trials: int) -> None:
    """Run one sweep, in this process."""
    import ray
    from ray import tune

    from benchmarks.problem import METRIC, MODE, make_trainable, search_space
    from benchmarks.sweep import set_environment, start_ray
    from ray_tune_memguard import MemGuard, ObjectGrowthTracker
    from ray_tune_memguard.diagnostics.deep_size import DeepSizer

    set_environment(loggers=True)
    guard = MemGuard() if kind == "guarded" else None
    tracker = guard.tracker if guard else ObjectGrowthTracker(growth_budget=DIAGNOSIS_BUDGET)
    with tempfile.TemporaryDirectory(prefix="tmp-") as storage:
        start_ray(Path(storage))
        began = time.perf_counter()
        tune.Tuner(
            make_trainable(1, 0),
            param_space=search_space(),
            tune_config=tune.TuneConfig(
                metric=METRIC, mode=MODE, num_samples=trials, reuse_actors=True
            ),
            run_config=tune.RunConfig(
                storage_path=storage, verbose=0, callbacks=[guard or tracker]
            ),
        ).fit()
        wall = time.perf_counter() - began
        found = tracker.diagnosis()
        ray.shutdown()
    record = {
        "wall_seconds": wall,
        "size_bytes": DeepSizer().measure(tracker).total,
        "diagnosis": dataclasses.asdict(found),
        "table": str(found),
    }
    write_record(record)


def main(argv: Sequence[str] | None = None) -> int:
    """Run both sweeps, print and write what they say."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks tracked", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--results", type=Path, default=RESULTS_DIRECTORY)
    arguments = parser.parse_args(argv)
    if arguments.run:
        kind, trials = arguments.run
        sweep(kind, int(trials))
        return 0
    machine = describe_machine()
    print(machine_line(machine))
    with tempfile.TemporaryDirectory(prefix="tmp-") as directory:
        records = {
            kind: record_of(["benchmarks.tracked", "--run", kind, str(trials)], Path(directory))
            for kind, trials in TRIALS.items()
        }
    alone, guarded = records["alone"], records["guarded"]
    print(f"\nRay alone, {TRIALS['alone']:,} trials, growth_budget={DIAGNOSIS_BUDGET}:")
    print(alone["table"])
    whole, *parts = (part["per_trial"] for part in alone["diagnosis"]["parts"])
    difference = sum(parts) / whole - 1
    cost = guarded["diagnosis"]["cost_seconds"] / guarded["wall_seconds"]
    print(f"\nits parts grow by {sum(parts):,.0f} B per trial, RSS by {whole:,.0f} B", end="")
    print(f" ({difference:+.1%}; bar ±{LARGEST_DIFFERENCE:.0%})")
    print(f"\nMemGuard, {TRIALS['guarded']:,} trials:\n{guarded['table']}")
    print(f"\nthe tracker took {guarded['diagnosis']['cost_seconds']:.2f} s", end="")
    print(f" of {guarded['wall_seconds']:.1f} s ({cost:.2%}; bar {LARGEST_COST:.0%})", end="")
    print(f" and keeps {guarded['size_bytes']:,.0f} B (bar {LARGEST_SIZE:,} B)")
    text = json.dumps({"machine": machine, **records}, indent=1)
    (arguments.results / "tracked.json").write_text(text + "\n")
    kept = (
        abs(difference) <= LARGEST_DIFFERENCE
        and cost <= LARGEST_COST
        and guarded["size_bytes"] <= LARGEST_SIZE
        and not guarded["diagnosis"]["holders"]
    )
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
