"""Run one sweep in this process, measure it, and write one JSON record.

The parent starts it afresh for each run, as ``python -m benchmarks.sweep --rival ray ...``. The
rivals differ in one line, see ``benchmarks.rivals``. None but MemGuard imports the library.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import tune

from benchmarks.outcome import describe
from benchmarks.probes import Recorder, object_store_bytes, resident_bytes, time_checkpoints
from benchmarks.problem import METRIC, MODE, make_trainable, search_space
from benchmarks.record import samples_path
from benchmarks.rivals import RIVALS
from benchmarks.simulated import CPUS, install_simulated_actors

EXPERIMENT = "sweep"
TRIAL_PREFIX = "trainable_"
OBJECT_STORE_BYTES = 1 << 30
# Ray puts sockets, whose paths may have 107 characters, some 70 deep in its temporary directory.
LONGEST_RAY_TEMP_DIR = 36


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweep", description=__doc__)
    parser.add_argument("--rival", choices=list(RIVALS), required=True)
    parser.add_argument("--actors", choices=("reused", "fresh", "simulated"), required=True)
    parser.add_argument("--trials", type=int, required=True)
    parser.add_argument("--results-per-trial", type=int, default=1)
    parser.add_argument("--payload-kb", type=int, default=0, help="added to each result")
    parser.add_argument("--carried-mb", type=int, default=0, help="in the trainable's closure")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--storage", type=Path, required=True, help="an empty directory")
    parser.add_argument("--out", type=Path, required=True, help="the record, JSON")
    parser.add_argument("--sample-every", type=int, help="default: 10 trials, or 50 results")
    parser.add_argument("--sample-unit", choices=("trials", "results"), default="trials")
    parser.add_argument("--loggers", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--describe", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--verbose-level", type=int, choices=(0, 1), default=1)
    arguments = parser.parse_args(argv)
    if arguments.actors == "simulated" and arguments.payload_kb:
        parser.error("simulated actors carry no payload: they do not use the object store")
    if arguments.sample_every is None:
        arguments.sample_every = 10 if arguments.sample_unit == "trials" else 50
    return arguments


def set_environment(loggers: bool) -> None:
    """Give both rivals the same environment, with nothing from outside that changes a sweep."""
    for name in list(os.environ):
        if name == "RAY_ADDRESS" or name.startswith(("TUNE_", "RAY_TUNE_", "RAY_AIR_")):
            del os.environ[name]
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    if not loggers:
        os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"


def start_ray(directory: Path) -> None:
    """Start a Ray of our own, which keeps its session in ``directory`` if the path is short."""
    temp_dir = str(directory.resolve() / "ray")
    ray.init(
        address="local",
        num_cpus=CPUS,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=OBJECT_STORE_BYTES,
        _temp_dir=temp_dir if len(temp_dir) <= LONGEST_RAY_TEMP_DIR else None,
    )


def _make_tuner(arguments: argparse.Namespace, recorder: Recorder) -> tune.Tuner:
    return tune.Tuner(
        make_trainable(arguments.results_per_trial, arguments.payload_kb, arguments.carried_mb),
        param_space=search_space(),
        tune_config=tune.TuneConfig(
            metric=METRIC,
            mode=MODE,
            num_samples=arguments.trials,
            reuse_actors=arguments.actors == "reused",
        ),
        run_config=tune.RunConfig(
            name=EXPERIMENT,
            storage_path=str(arguments.storage.resolve() / "results"),
            callbacks=[*RIVALS[arguments.rival].callbacks(), recorder],
            verbose=arguments.verbose_level,
        ),
    )


def _actors(arguments: argparse.Namespace) -> contextlib.AbstractContextManager[None]:
    if arguments.actors == "simulated":
        return install_simulated_actors(results_per_trial=arguments.results_per_trial)
    return contextlib.nullcontext()


def _bytes_beside_trials(experiment: Path) -> int:
    """Return the size of what the experiment keeps on storage outside the trials' directories."""
    entries = [entry for entry in experiment.iterdir() if not entry.name.startswith(TRIAL_PREFIX)]
    files = [file for entry in entries for file in (entry, *entry.rglob("*")) if file.is_file()]
    return sum(file.stat().st_size for file in files)


def _read_samples(path: Path) -> list[list[float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def run_sweep(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the sweep and return its record."""
    random.seed(arguments.seed)
    np.random.seed(arguments.seed)
    recorder = Recorder(
        samples_path(arguments.out),
        trials=arguments.trials,
        every=arguments.sample_every,
        unit=arguments.sample_unit,
        watch_store=arguments.payload_kb > 0,
    )
    tuner = _make_tuner(arguments, recorder)
    checkpoints = time_checkpoints(lambda: recorder.finished)

    started = time.perf_counter()
    with _actors(arguments):
        grid = tuner.fit()
    fit_seconds = time.perf_counter() - started
    rss_after_fit = resident_bytes()
    gc.collect()
    rss_after_gc = resident_bytes()
    store_after_fit = object_store_bytes() if arguments.payload_kb else 0

    bytes_beside_trials = _bytes_beside_trials(Path(grid.experiment_path))

    started = time.perf_counter()
    outcome = describe(grid) if arguments.describe else {"len": len(grid)}
    return {
        "arguments": {n: v for n, v in vars(arguments).items() if n not in ("storage", "out")},
        "experiment_path": grid.experiment_path,
        "ray": ray.__version__,
        "memguard_imported": "ray_tune_memguard" in sys.modules,
        "fit_s": fit_seconds,
        "read_all_s": time.perf_counter() - started,
        "rss_after_fit": rss_after_fit,
        "rss_after_gc": rss_after_gc,
        "rss_after_read_all": resident_bytes(),
        "store_after_fit": store_after_fit,
        "bytes_beside_trials": bytes_beside_trials,
        "checkpoints": checkpoints,
        "outcome": outcome,
        "samples": _read_samples(samples_path(arguments.out)),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Run the sweep that the command line describes."""
    arguments = parse_arguments(argv)
    set_environment(arguments.loggers)
    RIVALS[arguments.rival].set_environment()
    start_ray(arguments.storage)
    try:
        record = run_sweep(arguments)
    finally:
        ray.shutdown()
    arguments.out.write_text(json.dumps(record))


if __name__ == "__main__":
    main()
