"""Open, read or resume one experiment in this process, and return what it took.

Memory is what this process has on top of what it had just before.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune import ExperimentAnalysis, ResultGrid, Tuner

from benchmarks import child
from benchmarks.baselines import BASELINES, MEMGUARD
from benchmarks.probes import measured, resident_bytes
from benchmarks.problem import METRIC, MODE, make_trainable
from benchmarks.simulated import install_simulated_actors

PACKAGE = "ray_tune_memguard"


def _ours() -> Any:
    return importlib.import_module(PACKAGE)


OPENINGS: dict[str, Callable[[str], ResultGrid]] = {
    "analysis": lambda path: ResultGrid(
        ExperimentAnalysis(path, default_metric=METRIC, default_mode=MODE)
    ),
    "get_results": lambda path: Tuner.restore(path, make_trainable(1, 0)).get_results(),
    "open_experiment": lambda path: _ours().open_experiment(path, metric=METRIC, mode=MODE),
}
#: All results; this is what Ray alone can do as well.
READS: dict[str, Callable[[str], int]] = {
    "frame": lambda path: len(ExperimentAnalysis(path).dataframe()),
    "filtered": lambda path: len(ExperimentAnalysis(path).dataframe(METRIC, MODE)),
    "last results": lambda path: len(ExperimentAnalysis(path).results_df),
    "configs": lambda path: len(ExperimentAnalysis(path).get_all_configs(prefix=True)),
    "each frame": lambda path: sum(map(len, ExperimentAnalysis(path).trial_dataframes.values())),
}
STREAMS: dict[str, Callable[[str], int]] = {
    "stream": lambda path: sum(1 for _ in _ours().iter_results(path)),
    "whole": lambda path: len(_ours().read_results(path)),
    "arrow": lambda path: int(_ours().read_results(path, as_arrow=True).num_rows),
}


def _open(how: str, path: str, read: int) -> dict[str, Any]:
    record: dict[str, Any] = {}
    chance = random.Random(0)
    with measured(record):
        grid = OPENINGS[how](path)
        record["trials"] = len(grid)
        if read:
            grid.get_best_result(METRIC, MODE)
            for index in chance.sample(range(len(grid)), read):
                assert grid[index].metrics[METRIC] is not None
    started = time.perf_counter()
    record["best"] = grid.get_best_result(METRIC, MODE).metrics[METRIC]
    record["seconds_to_best"] = time.perf_counter() - started
    if not read:
        started = time.perf_counter()
        assert len(grid.get_dataframe()) == len(grid)
        record["seconds_to_dataframe"] = time.perf_counter() - started
    return record


def _write_histories(path: Path) -> int:
    """Write each trial's ``result.json``, as Ray's logger does; return the number of trials."""
    trials = ExperimentAnalysis(str(path)).trials
    for trial in trials:
        directory = path / trial.relative_logdir
        directory.mkdir(exist_ok=True)
        (directory / "result.json").write_text(json.dumps(trial.last_result) + "\n")
    return len(trials)


class Starts(tune.Callback):
    """RSS when the controller is there and the first trial is not; how many trials start."""

    rss = started = 0

    def setup(self, **info: Any) -> None:
        """Called by Ray when the controller has read what it resumes."""
        self.rss = resident_bytes()

    def on_trial_start(self, **info: Any) -> None:
        """Count one."""
        self.started += 1


def open_experiment(task: child.Task, how: str, experiment: str, read: int = 0) -> dict[str, Any]:
    """Do one thing with an experiment.

    Args:
        task: whether MemGuard is there.
        how: one of ``OPENINGS``, ``READS`` or ``STREAMS``; "resume"; "begin", for a new experiment
            to compare with; or "write", for each trial's ``result.json``.
        experiment: its path.
        read: so many results are read as part of an opening, instead of a DataFrame after it.
    """
    child.set_environment(loggers=True)
    record: dict[str, Any] = {}
    if how in ("resume", "begin"):
        os.dup2(2, 1)
        child.start_ray(task.directory)
        starts = Starts()
        callbacks = [*BASELINES[task.baseline].callbacks(), starts]
        with install_simulated_actors(results_per_trial=1), measured(record):
            analysis = child.run_in(Path(experiment), callbacks, resume=how == "resume")
        record |= {"trials": len(analysis.trials), "rss_at_setup": starts.rss}
    else:
        if task.baseline == MEMGUARD:
            _ours()
        if how in OPENINGS:
            record = _open(how, experiment, read)
        elif how == "write":
            record = {"trials": _write_histories(Path(experiment))}
        else:
            with measured(record):
                record["trials"] = {**READS, **STREAMS}[how](experiment)
    assert (PACKAGE in sys.modules) == (task.baseline == MEMGUARD)
    return record


def open_with_ray(task: child.Task, experiment: str) -> dict[str, Any]:
    """Open a finished experiment with Ray alone, in a process that cannot import MemGuard.

    Three ways, each Ray's own: read it, load its ``tuner.pkl``, and resume it from its experiment
    state (the controller must find every trial finished and run none again).
    """
    assert PACKAGE not in sys.modules
    sys.modules[PACKAGE] = None  # type: ignore[assignment] # Importing it fails from now on.
    child.set_environment(loggers=True)
    analysis = ExperimentAnalysis(experiment, default_metric=METRIC, default_mode=MODE)
    # None if the finished trials are not in it.
    best = analysis.best_trial
    read = {
        "trials": len(analysis.trials),
        "best": best and {"config": best.config, METRIC: best.last_result[METRIC]},
    }
    child.start_ray(task.directory / "o")
    try:
        Tuner.restore(experiment, make_trainable(1, 0))
        tuner = {"restored": True, "error": ""}
    except Exception as error:
        tuner = {"restored": False, "error": f"{type(error).__name__}: {error}"}
    starts = Starts()
    analysis = child.run_in(Path(experiment), [starts], resume=True)
    resumed = {"trials": len(analysis.trials), "run_again": starts.started}
    return {"read": read, "tuner": tuner, "resume": resumed}
