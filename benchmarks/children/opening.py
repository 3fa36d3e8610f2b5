"""Open, read or resume one experiment in this process, and return what it took.

Memory is what this process has on top of what it had just before.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune import ExperimentAnalysis, ResultGrid, Tuner

from benchmarks import child
from benchmarks.probes import measured, resident_bytes
from benchmarks.problem import METRIC, MODE, make_trainable
from benchmarks.simulated import install_simulated_actors


def _open_analysis(path: str) -> Any:
    return ResultGrid(ExperimentAnalysis(path, default_metric=METRIC, default_mode=MODE))


def _get_results(path: str) -> Any:
    return Tuner.restore(path, make_trainable(1, 0)).get_results()


def _open_experiment(path: str) -> Any:
    from ray_tune_memguard import open_experiment

    return open_experiment(path, metric=METRIC, mode=MODE)


OPENINGS = {
    "analysis": _open_analysis,
    "get_results": _get_results,
    "open_experiment": _open_experiment,
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
    written = 0
    for trial in ExperimentAnalysis(str(path)).trials:
        directory = path / trial.relative_logdir
        directory.mkdir(exist_ok=True)
        (directory / "result.json").write_text(json.dumps(trial.last_result) + "\n")
        written += 1
    return written


def _frame(path: Path) -> int:
    return len(ExperimentAnalysis(str(path)).dataframe())


def _filtered(path: Path) -> int:
    return len(ExperimentAnalysis(str(path)).dataframe(METRIC, MODE))


def _last_results(path: Path) -> int:
    return len(ExperimentAnalysis(str(path)).results_df)


def _configs(path: Path) -> int:
    return len(ExperimentAnalysis(str(path)).get_all_configs(prefix=True))


def _each_frame(path: Path) -> int:
    return sum(len(frame) for frame in ExperimentAnalysis(str(path)).trial_dataframes.values())


def _stream(path: Path) -> int:
    from ray_tune_memguard import iter_results

    return sum(1 for _ in iter_results(path))


def _whole(path: Path) -> int:
    from ray_tune_memguard import read_results

    return len(read_results(path))


def _arrow(path: Path) -> int:
    from ray_tune_memguard import read_results

    return int(read_results(path, as_arrow=True).num_rows)


#: All results; this is what Ray alone can do as well.
READS: dict[str, Callable[[Path], int]] = {
    "frame": _frame,
    "filtered": _filtered,
    "last results": _last_results,
    "configs": _configs,
    "each frame": _each_frame,
}
STREAMS: dict[str, Callable[[Path], int]] = {"stream": _stream, "whole": _whole, "arrow": _arrow}


class AtSetup(tune.Callback):
    """What the driver has when the controller is there and the first trial is not."""

    rss = 0

    def setup(self, **info: Any) -> None:
        """Called by Ray when the controller has read what it resumes."""
        self.rss = resident_bytes()


def _resume(path: Path, guarded: bool, resume: bool) -> dict[str, Any]:
    probe = AtSetup()
    callbacks: list[tune.Callback] = [probe]
    if guarded:
        from ray_tune_memguard import MemGuard

        callbacks = [MemGuard(), probe]
    record: dict[str, Any] = {}
    with install_simulated_actors(results_per_trial=1), measured(record):
        analysis = child.run_in(path, callbacks, resume=resume)
    return {**record, "trials": len(analysis.trials), "rss_at_setup": probe.rss}


def open_experiment(how: str, experiment: str, guarded: bool, read: int = 0) -> dict[str, Any]:
    """Do one thing with an experiment.

    Args:
        how: one of ``OPENINGS``, ``READS`` or ``STREAMS``; "resume"; "begin", for a new experiment
            to compare with; or "write", for each trial's ``result.json``.
        experiment: its path.
        guarded: whether MemGuard is there.
        read: so many results are read as part of an opening, instead of a DataFrame after it.
    """
    child.set_environment(loggers=True)
    path, readings = Path(experiment), {**READS, **STREAMS}
    if how in ("resume", "begin"):
        os.dup2(2, 1)
        child.start_ray(path.parent / "r")
        record = _resume(path, guarded, resume=how == "resume")
        ray.shutdown()
    else:
        if guarded:
            import ray_tune_memguard  # noqa: F401
        if how in OPENINGS:
            record = _open(how, experiment, read)
        elif how == "write":
            record = {"trials": _write_histories(path)}
        else:
            record = {}
            with measured(record):
                record["trials"] = readings[how](path)
    assert ("ray_tune_memguard" in sys.modules) == guarded
    return record


if __name__ == "__main__":
    child.answer(open_experiment)
