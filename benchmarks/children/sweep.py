"""Run one sweep in this process, measure it, and return its record."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from ray.tune import ResultGrid

from benchmarks import child
from benchmarks.baselines import BASELINES
from benchmarks.outcome import describe
from benchmarks.probes import (
    Recorder,
    object_store_bytes,
    peak_bytes,
    resident_bytes,
    time_checkpoints,
)
from benchmarks.problem import METRIC, make_trainable
from benchmarks.simulated import install_simulated_actors

TRIAL_PREFIX = "trainable_"


def run_sweep(
    task: child.Task,
    actors: str,
    *,
    unit: str = "trials",
    samples: int = 0,
    payload_kb: int = 0,
    carried_mb: int = 0,
    loggers: bool = True,
    verbose: int = 1,
    read: str = "all",
    more: str = "store",
    pending: int = 0,
    upload_every_s: float = 0.0,
) -> dict[str, Any]:
    """Run the sweep and return its record.

    Args:
        task: its baseline's callbacks and environment, its size, and the seed of its parameters.
        actors: "fresh" or "reused" for real ones, "simulated", or "simulated reused".
        unit: whether the size is "trials", or "results" of one trial.
        samples: how many are taken; 0: one for each 10 trials or 50 results.
        payload_kb: kilobytes that are added to each result; not for simulated actors.
        carried_mb: megabytes in the trainable's closure.
        loggers: whether Ray adds its own.
        verbose: Ray's level.
        read: what is read afterwards: "all", to compare it; the "frame", with the files that are
            there; or only the "number" of results.
        more: what else is sampled: the object "store", or what the "allocator" has.
        pending: the most trials that wait; 0: Ray's own number.
        upload_every_s: seconds between two experiment checkpoints on an S3 server; 0: no server.
    """
    child.set_environment(loggers)
    BASELINES[task.baseline].set_environment()
    if pending:
        os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(pending)
    trials, results = (task.size, 1) if unit == "trials" else (1, task.size)
    every = (
        task.size // samples if samples else min(10 if unit == "trials" else 50, task.size // 20)
    )
    child.start_ray(task.directory / "s")
    random.seed(task.number)
    np.random.seed(task.number)
    samples_path = child.samples_path(Path(os.environ[child.RECORD_VARIABLE]))
    recorder = Recorder(
        samples_path,
        trials=trials,
        every=max(1, every),
        unit=unit,
        # To ask for the object store is a call to the raylet.
        more=_allocator if more == "allocator" else _store if payload_kb else lambda: [0],
    )
    storage: dict[str, Any] = {"storage_path": str(task.directory.resolve() / "s" / "results")}
    sent = None
    if upload_every_s:
        from benchmarks.children.s3_server import start_server

        os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = str(upload_every_s)
        filesystem, sent = start_server("bucket")
        storage = {"storage_path": "bucket/results", "storage_filesystem": filesystem}
    tuner = child.make_tuner(
        trials,
        [*BASELINES[task.baseline].callbacks(), recorder],
        trainable=make_trainable(results, payload_kb, carried_mb),
        tune_options={"reuse_actors": actors.endswith("reused")},
        verbose=verbose,
        **storage,
    )
    checkpoints = time_checkpoints(lambda: recorder.finished, sent)
    is_simulated = actors.startswith("simulated")
    simulation = install_simulated_actors(results_per_trial=results)

    started = time.perf_counter()
    with simulation if is_simulated else contextlib.nullcontext():
        grid = tuner.fit()
    fit_seconds = time.perf_counter() - started
    before_loop_seconds = recorder.started - started
    rss_after_fit, peak = resident_bytes(), peak_bytes()
    gc.collect()
    rss_after_gc = resident_bytes()
    bytes_beside_trials = _bytes_beside_trials(Path(grid.experiment_path))

    started = time.perf_counter()
    outcome = _READ[read](grid)
    return {
        "memguard_imported": "ray_tune_memguard" in sys.modules,
        "fit_s": fit_seconds,
        "before_loop_s": before_loop_seconds,
        "read_all_s": time.perf_counter() - started,
        "peak": peak,
        "rss_after_fit": rss_after_fit,
        "rss_after_gc": rss_after_gc,
        "rss_after_read_all": resident_bytes(),
        "bytes_beside_trials": bytes_beside_trials,
        "sent": sent() if sent else 0,
        "checkpoints": checkpoints,
        "outcome": outcome,
        "samples": [json.loads(line) for line in samples_path.read_text().splitlines()],
    }


def _store() -> list[int]:
    return [object_store_bytes()]


def _allocator() -> list[int]:
    """Give free memory back, so that RSS is what is in use; read what the allocators have."""
    from ray_tune_memguard.system import allocator

    gc.collect()
    allocator.trim()
    counters = allocator.counters()
    in_use = counters["uordblks"] + counters["hblkhd"]
    return [0, in_use, counters["fordblks"], sys.getallocatedblocks()]


def _bytes_beside_trials(experiment: Path) -> int:
    """Return the size of what the experiment keeps on storage outside the trials' directories."""
    if not experiment.is_dir():
        return 0  # It is on a server.
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
    sizes: Counter[str] = Counter()
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
    kinds = {"histories.": "histories", "trials-": "trial_store", "experiment_state": "state_file"}
    for start, kind in kinds.items():
        if path.name.startswith(start):
            return kind
    return "trial_files" if path.parent.name.startswith(TRIAL_PREFIX) else "other"


_READ = {"all": describe, "frame": _frame, "number": _number}
