"""What child programs share: how they get their job, start Ray, and hand back a record.

A child program is a function in a module of ``benchmarks.children``. Each call has a fresh process:
``python -m benchmarks.child MODULE.FUNCTION JOB OPTIONS``.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import cloudpickle, tune

from benchmarks.problem import METRIC, MODE, make_trainable, search_space
from benchmarks.simulated import CPUS

#: Where a child program writes its record.
RECORD_VARIABLE = "MEMGUARD_BENCHMARK_RECORD"
EXPERIMENT = "sweep"
OBJECT_STORE_BYTES = 1 << 30
# Ray puts sockets, whose paths may have 107 characters, some 70 deep in its temporary directory.
LONGEST_RAY_TEMP_DIR = 36


@dataclass(frozen=True)
class Task:
    """What every child program is told.

    Args:
        baseline: who runs.
        size: trials, or whatever the section counts.
        number: of the round, from 0 on; also the seed.
        directory: where it may write.
    """

    baseline: str
    size: int
    number: int
    directory: Path


def main() -> None:
    """Call a child program's function; write the record that it returns."""
    name, task, options = sys.argv[1:]
    module, _, function = name.partition(".")
    program = importlib.import_module(f"benchmarks.children.{module}")
    # Workers get what a child program defines without importing the rest of it.
    cloudpickle.register_pickle_by_value(program)
    told = json.loads(task)
    own = Task(**{**told, "directory": Path(told["directory"])})
    write_record(getattr(program, function)(own, **json.loads(options)))
    if ray.is_initialized():
        ray.shutdown()


def write_record(record: dict[str, Any]) -> None:
    """Write what this process found, for ``runner.record_of``."""
    Path(os.environ[RECORD_VARIABLE]).write_text(json.dumps(record, default=str))


def samples_path(record: Path) -> Path:
    """Return where the samples of a record are written while its sweep runs."""
    return record.with_suffix(".samples.jsonl")


def set_environment(loggers: bool) -> None:
    """Give all baselines the same environment, with nothing from outside that changes a sweep."""
    for name in list(os.environ):
        if name == "RAY_ADDRESS" or name.startswith(("TUNE_", "RAY_TUNE_", "RAY_AIR_")):
            del os.environ[name]
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    if not loggers:
        os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"


def start_ray(
    directory: Path, cpus: int = CPUS, store_bytes: int = OBJECT_STORE_BYTES, **options: Any
) -> None:
    """Start a Ray of our own, which keeps its session in ``directory`` if the path is short."""
    temp_dir = str(directory.resolve() / "ray")
    ray.init(
        address="local",
        num_cpus=cpus,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=store_bytes,
        _temp_dir=temp_dir if len(temp_dir) <= LONGEST_RAY_TEMP_DIR else None,
        **options,
    )


def make_tuner(
    trials: int,
    callbacks: Sequence[tune.Callback],
    *,
    trainable: Any = None,
    tune_options: dict[str, Any] | None = None,
    **run_options: Any,
) -> tune.Tuner:
    """Return the sweep that the benchmarks run; by default each trial has one result."""
    return tune.Tuner(
        trainable or make_trainable(1, 0),
        param_space=search_space(),
        tune_config=tune.TuneConfig(
            metric=METRIC, mode=MODE, num_samples=trials, **(tune_options or {})
        ),
        run_config=tune.RunConfig(
            callbacks=list(callbacks), **{"name": EXPERIMENT, "verbose": 0, **run_options}
        ),
    )


def run_in(path: Path, callbacks: Sequence[tune.Callback], *, resume: bool) -> Any:
    """Run one trial in this experiment's place, or resume the experiment that is there."""
    return tune.run(
        make_trainable(1, 0),
        config=search_space(),
        metric=METRIC,
        mode=MODE,
        name=path.name,
        storage_path=str(path.parent),
        resume=resume,
        callbacks=list(callbacks),
        verbose=0,
    )


if __name__ == "__main__":
    main()
