"""Slowdown of a profiled trial: ``python -m benchmarks profile``.

Three kinds of trials, each once without a profile (Ray alone) and once with each form of profile,
in turns, one trial at a time:

- ``arrays``: arithmetic on new arrays of 6.4 MB;
- ``allocations``: blocks of 600 bytes, which Python asks the C library for;
- ``calls``: calls of a Python function that does next to nothing.

Prints the median CPU seconds that a trial took, with those of its profile, the ratio to the trial
without one, and the size of the profile in the trial's directory. CPU seconds, because the machine
may be busy. Ends with 1 if the line that allocates most has less than 90 % of its memory.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine, machine_line
from benchmarks.runs import positive

MIN_SHARE = 0.9
FORMS: dict[str, dict[str, bool] | None] = {
    "Ray alone": None,
    "MemrayProfiler()": {},
    "survive_kill=True": {"survive_kill": True},
    "native=True": {"native": True},
}


def arrays(size: int) -> Any:
    """Arithmetic on new arrays of 6.4 MB."""
    import numpy as np

    for _ in range(300):
        # On one line, so that it has all of the memory at the peak.
        kept = np.sqrt(np.arange(8.0 * size) + 1.0) - 0.5
    return kept


def allocations(size: int) -> Any:
    """Two million blocks of 600 bytes, of which the last 100,000 are kept."""
    for _ in range(20):
        kept = [bytearray(600) for _ in range(size)]
    return kept


def _nothing(number: int) -> int:
    return number


def calls(size: int) -> Any:
    """Ten million calls of a function."""
    for number in range(100 * size):
        _nothing(number)
    return bytearray(600 * size)


KINDS: dict[str, Callable[[int], Any]] = {
    function.__name__: function for function in (arrays, allocations, calls)
}
SIZE = 100_000


def trial(config: dict[str, Any]) -> None:
    """Work, and report the CPU time of it."""
    from ray import tune

    began = time.process_time()
    kept = KINDS[config["kind"]](config["size"])
    tune.report({"cpu_s": time.process_time() - began, "kept": len(kept)})


def run(kind: str, size: int, form: str, storage: Path, number: int) -> tuple[float, int, float]:
    """One trial: its CPU seconds, the size of its profile, and the share of the largest line."""
    from ray import tune

    from ray_tune_memguard import MemrayProfiler, read_profiles
    from ray_tune_memguard.report.memray_file import read_peak

    options = FORMS[form]
    callbacks = [] if options is None else [MemrayProfiler(**options)]
    run_config = tune.RunConfig(
        name=f"{kind}-{list(FORMS).index(form)}-{number}",
        storage_path=str(storage),
        callbacks=callbacks,
        verbose=0,
    )
    # What Ray prints is not part of the figures.
    with contextlib.redirect_stdout(sys.stderr):
        tuner = tune.Tuner(trial, param_space={"kind": kind, "size": size}, run_config=run_config)
        result = tuner.fit()
    if result.num_errors:
        raise RuntimeError(f"A trial failed: {result.errors[0]}")
    seconds: float = result[0].metrics["cpu_s"]
    if options is None:
        return seconds, 0, 1.0
    [profile] = read_profiles(result.experiment_path)
    lines = read_peak(Path(result.experiment_path, profile.file)).lines
    return seconds, profile.size_bytes, lines[0].share


def main(argv: Sequence[str] | None = None) -> int:
    """Run all kinds of trials in all forms, and print a row for each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks profile", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--size", type=positive, default=SIZE, help="of the work of a trial")
    parser.add_argument("--results", type=Path, help="where figures go; only printed here")
    arguments = parser.parse_args(argv)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    print(machine_line(describe_machine()))
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    found: dict[tuple[str, str], list[tuple[float, int, float]]] = {}
    try:
        with tempfile.TemporaryDirectory() as folder:
            for number in range(arguments.rounds):
                for kind in KINDS:
                    for form in FORMS:
                        one = run(kind, arguments.size, form, Path(folder), number)
                        found.setdefault((kind, form), []).append(one)
    finally:
        ray.shutdown()
    print(
        f"{'trial':<13}{'profile':<19}{'CPU time':>9}  {'/ alone':>7}  {'size':>10}  largest line"
    )
    print("-" * 11, "", "-" * 17, "", "-" * 8, "", "-" * 7, "", "-" * 10, "", "-" * 12)
    lowest = 1.0
    for (kind, form), rounds in found.items():
        seconds = statistics.median(one[0] for one in rounds)
        alone = statistics.median(one[0] for one in found[kind, "Ray alone"])
        share = min(one[2] for one in rounds)
        lowest = min(lowest, share)
        size = "" if FORMS[form] is None else f"{max(one[1] for one in rounds):,} B"
        text = "" if FORMS[form] is None else f"{share:.0%}"
        print(f"{kind:<13}{form:<19}{seconds:7.2f} s  {seconds / alone:7.2f}  {size:>10}  {text}")
    print("pass" if lowest >= MIN_SHARE else f"MISS: at least {MIN_SHARE:.0%} are asked for")
    return 0 if lowest >= MIN_SHARE else 1


if __name__ == "__main__":
    sys.exit(main())
