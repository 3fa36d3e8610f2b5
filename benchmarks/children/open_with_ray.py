"""Open a finished experiment with Ray alone, in a process that cannot import MemGuard.

Three ways, each Ray's own: read it (``ExperimentAnalysis``), load its ``tuner.pkl``
(``Tuner.restore``), and resume it from its experiment state (``tune.run(resume=True)``: the
controller must find every trial finished and run none again).
"""

from __future__ import annotations

import importlib.abc
import sys
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune import ExperimentAnalysis, Tuner

from benchmarks import child
from benchmarks.problem import METRIC, MODE, make_trainable

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
    analysis = ExperimentAnalysis(str(path), default_metric=METRIC, default_mode=MODE)
    # None if the finished trials are not in it.
    best = analysis.best_trial
    return {
        "trials": len(analysis.trials),
        "best": best and {"config": best.config, METRIC: best.last_result[METRIC]},
    }


def _restore_tuner(path: Path) -> dict[str, Any]:
    try:
        Tuner.restore(str(path), make_trainable(1, 0))
    except Exception as error:
        return {"restored": False, "error": f"{type(error).__name__}: {error}"}
    return {"restored": True, "error": ""}


def _resume(path: Path) -> dict[str, Any]:
    counter = StartCounter()
    analysis = child.run_in(path, [counter], resume=True)
    return {"trials": len(analysis.trials), "run_again": counter.started}


def open_experiment(experiment: str, ray_directory: str) -> dict[str, Any]:
    """Open the experiment in all three ways."""
    assert BLOCKED not in sys.modules
    sys.meta_path.insert(0, Blocker())
    child.set_environment(loggers=True)
    path = Path(experiment)
    record = {"read": _read(path)}
    child.start_ray(Path(ray_directory))
    record["tuner"] = _restore_tuner(path)
    record["resume"] = _resume(path)
    return record


if __name__ == "__main__":
    child.answer(open_experiment)
    ray.shutdown()
