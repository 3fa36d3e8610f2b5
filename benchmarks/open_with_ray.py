"""Open a finished experiment with Ray alone, in a process that cannot import MemGuard.

Three ways, each Ray's own: read it (``ExperimentAnalysis``), resume it from its experiment state
(``tune.run(resume=True)``: the controller must find every trial finished and run none again), and
load its ``tuner.pkl`` (``Tuner.restore``). Writes one JSON object.
"""

from __future__ import annotations

import argparse
import importlib.abc
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune import ExperimentAnalysis, Tuner

from benchmarks.probes import resident_bytes
from benchmarks.problem import METRIC, MODE, make_trainable, search_space
from benchmarks.sweep import set_environment, start_ray

BLOCKED = "ray_tune_memguard"


class Blocker(importlib.abc.MetaPathFinder):
    """Make ``import ray_tune_memguard`` fail as it does where it is not installed."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        """Refuse the blocked package, leave the rest to the other finders."""
        if fullname.partition(".")[0] == BLOCKED:
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


class StartCounter(tune.Callback):
    """Count the trials that start."""

    started = 0

    def on_trial_start(self, **info: Any) -> None:
        """Count one."""
        self.started += 1


def _read(path: Path) -> dict[str, Any]:
    rss = resident_bytes()
    started = time.perf_counter()
    analysis = ExperimentAnalysis(str(path), default_metric=METRIC, default_mode=MODE)
    seconds = time.perf_counter() - started
    # None if the finished trials are not in it.
    best = analysis.best_trial
    return {
        "trials": len(analysis.trials),
        "best": best and {"config": best.config, METRIC: best.last_result[METRIC]},
        "seconds": seconds,
        "rss_added": resident_bytes() - rss,
    }


def _restore_tuner(path: Path) -> dict[str, Any]:
    try:
        Tuner.restore(str(path), make_trainable(1, 0))
    except Exception as error:
        return {"restored": False, "error": f"{type(error).__name__}: {error}"}
    return {"restored": True, "error": ""}


def _resume(path: Path) -> dict[str, Any]:
    counter = StartCounter()
    analysis = tune.run(
        make_trainable(1, 0),
        config=search_space(),
        metric=METRIC,
        mode=MODE,
        name=path.name,
        storage_path=str(path.parent),
        resume=True,
        callbacks=[counter],
        verbose=0,
    )
    return {"trials": len(analysis.trials), "run_again": counter.started}


def main(argv: Sequence[str] | None = None) -> None:
    """Open the experiment that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.open_with_ray", description=__doc__)
    parser.add_argument("--experiment", type=Path, required=True)
    parser.add_argument("--ray-directory", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args(argv)

    assert BLOCKED not in sys.modules
    sys.meta_path.insert(0, Blocker())
    set_environment(loggers=True)
    record = {"read": _read(arguments.experiment)}
    start_ray(arguments.ray_directory)
    record["tuner"] = _restore_tuner(arguments.experiment)
    record["resume"] = _resume(arguments.experiment)
    ray.shutdown()
    arguments.out.write_text(json.dumps(record))


if __name__ == "__main__":
    main()
