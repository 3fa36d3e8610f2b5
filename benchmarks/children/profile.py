"""One trial that allocates, with or without a profile of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ray import tune

from benchmarks import child
from benchmarks.baselines import BASELINES, RAY
from ray_tune_memguard import read_profiles
from ray_tune_memguard.report.memray_file import read_peak


def arrays(size: int) -> Any:
    """Arithmetic on new arrays of 6.4 MB."""
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


def trial(config: dict[str, Any]) -> None:
    """Work, and report the CPU time of it."""
    began = time.process_time()
    kept = KINDS[config["kind"]](config["size"])
    tune.report({"cpu_s": time.process_time() - began, "kept": len(kept)})


def run_trial(task: child.Task, kind: str) -> dict[str, Any]:
    """One trial: its CPU seconds, the size of its profile, and the share of the largest line."""
    child.set_environment(loggers=True)
    child.start_ray(task.directory, cpus=1)
    result = tune.Tuner(
        trial,
        param_space={"kind": kind, "size": task.size},
        run_config=tune.RunConfig(
            name=kind,
            storage_path=str(task.directory / "results"),
            callbacks=BASELINES[task.baseline].callbacks(),
            verbose=0,
        ),
    ).fit()
    if result.num_errors:
        raise RuntimeError(f"A trial failed: {result.errors[0]}")
    record = {"cpu_s": result[0].metrics["cpu_s"]}
    if task.baseline == RAY:
        return record
    [profile] = read_profiles(result.experiment_path)
    lines = read_peak(Path(result.experiment_path, profile.file)).lines
    return record | {"bytes": profile.size_bytes, "share": lines[0].share}
