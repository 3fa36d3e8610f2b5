"""Run one sweep in this process, measure it, and return its record."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import random
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.tune import ResultGrid

from benchmarks import child
from benchmarks.baselines import BASELINES
from benchmarks.outcome import describe
from benchmarks.probes import Recorder, resident_bytes, time_checkpoints
from benchmarks.problem import METRIC, make_trainable
from benchmarks.simulated import install_simulated_actors

TRIAL_PREFIX = "trainable_"


def run_sweep(
    baseline: str,
    actors: str,
    trials: int,
    storage: str,
    *,
    seed: int = 0,
    results_per_trial: int = 1,
    payload_kb: int = 0,
    carried_mb: int = 0,
    sample_every: int = 10,
    unit: str = "trials",
    loggers: bool = True,
    verbose: int = 1,
    read: str = "all",
) -> dict[str, Any]:
    """Run the sweep and return its record.

    Args:
        baseline: whose callbacks and environment it has.
        actors: "fresh" or "reused" for real ones, "simulated", or "simulated reused".
        trials: how many.
        storage: a directory.
        seed: of the sampled parameters.
        results_per_trial: how many each trial reports.
        payload_kb: kilobytes that are added to each result; not for simulated actors.
        carried_mb: megabytes in the trainable's closure.
        sample_every: trials, or results, between two samples.
        unit: what is counted for that, "trials" or "results".
        loggers: whether Ray adds its own.
        verbose: Ray's level.
        read: what is read afterwards: "all", to compare it; the "frame", with the files that are
            there; or only the "number" of results.
    """
    child.set_environment(loggers)
    BASELINES[baseline].set_environment()
    child.start_ray(Path(storage))
    random.seed(seed)
    np.random.seed(seed)
    samples_path = child.samples_path(Path(os.environ[child.RECORD_VARIABLE]))
    recorder = Recorder(
        samples_path, trials=trials, every=sample_every, unit=unit, watch_store=payload_kb > 0
    )
    tuner = child.make_tuner(
        trials,
        [*BASELINES[baseline].callbacks(), recorder],
        trainable=make_trainable(results_per_trial, payload_kb, carried_mb),
        tune_options={"reuse_actors": actors.endswith("reused")},
        storage_path=str(Path(storage).resolve() / "results"),
        verbose=verbose,
    )
    checkpoints = time_checkpoints(lambda: recorder.finished)
    is_simulated = actors.startswith("simulated")
    simulation = install_simulated_actors(results_per_trial=results_per_trial)

    started = time.perf_counter()
    with simulation if is_simulated else contextlib.nullcontext():
        grid = tuner.fit()
    fit_seconds = time.perf_counter() - started
    rss_after_fit = resident_bytes()
    gc.collect()
    rss_after_gc = resident_bytes()
    bytes_beside_trials = _bytes_beside_trials(Path(grid.experiment_path))

    started = time.perf_counter()
    outcome = _READ[read](grid)
    return {
        "experiment_path": grid.experiment_path,
        "memguard_imported": "ray_tune_memguard" in sys.modules,
        "fit_s": fit_seconds,
        "read_all_s": time.perf_counter() - started,
        "rss_after_fit": rss_after_fit,
        "rss_after_gc": rss_after_gc,
        "rss_after_read_all": resident_bytes(),
        "bytes_beside_trials": bytes_beside_trials,
        "checkpoints": checkpoints,
        "outcome": outcome,
        "samples": [json.loads(line) for line in samples_path.read_text().splitlines()],
    }


def _bytes_beside_trials(experiment: Path) -> int:
    """Return the size of what the experiment keeps on storage outside the trials' directories."""
    entries = [entry for entry in experiment.iterdir() if not entry.name.startswith(TRIAL_PREFIX)]
    files = [file for entry in entries for file in (entry, *entry.rglob("*")) if file.is_file()]
    return sum(file.stat().st_size for file in files)


def _number(grid: ResultGrid) -> dict[str, Any]:
    return {"len": len(grid)}


def _frame(grid: ResultGrid) -> dict[str, Any]:
    """The DataFrame of all trials, and the files on storage and in the driver's staging."""
    trial = grid._experiment_analysis.trials[0]
    places = [Path(grid.experiment_path), Path(trial.local_experiment_path)]
    paths = [path for place in places for path in place.rglob("*")]
    files = [path for path in paths if path.is_file()]
    sizes: dict[str, int] = defaultdict(int)
    for path in files:
        sizes[_kind_of(path)] += path.stat().st_size
    began = time.perf_counter()
    frame = grid.get_dataframe()
    return {
        "frame_s": time.perf_counter() - began,
        "rows": len(frame),
        "score": float(frame[METRIC].sum()),
        "history": len(grid[0].metrics_dataframe),
        "files": len(files),
        "directories": sum(path.is_dir() for path in paths),
        "bytes": dict(sizes),
    }


def _kind_of(path: Path) -> str:
    if path.name.startswith("histories."):
        return "histories"
    if path.name.startswith("trials-"):
        return "trial_store"
    if path.name.startswith("experiment_state"):
        return "state_file"
    return "trial_files" if path.parent.name.startswith(TRIAL_PREFIX) else "other"


_READ = {"all": describe, "frame": _frame, "number": _number}


if __name__ == "__main__":
    child.answer(run_sweep)
    ray.shutdown()
