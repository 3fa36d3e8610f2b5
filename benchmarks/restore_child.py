"""Open or resume one experiment in this process, and print what it took as JSON.

The parent (``benchmarks.restore``) starts it afresh for each figure. Memory is what this process
has on top of what it had just before; its peak is the kernel's own (``VmHWM``).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune import ExperimentAnalysis, ResultGrid, Tuner

from benchmarks.probes import resident_bytes
from benchmarks.problem import METRIC, MODE, make_trainable, search_space
from benchmarks.runs import write_record
from benchmarks.simulated import install_simulated_actors
from benchmarks.sweep import set_environment, start_ray


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _peak_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmHWM")


@contextlib.contextmanager
def measured(record: dict[str, Any]) -> Iterator[None]:
    """Add the seconds that the block takes and the bytes that it adds, at its peak and after."""
    before = resident_bytes()
    _reset_peak()
    started = time.perf_counter()
    yield
    record["seconds"] = time.perf_counter() - started
    record["peak"] = _peak_bytes() - before
    record["rss"] = resident_bytes() - before


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
        analysis = tune.run(
            make_trainable(1, 0),
            config=search_space(),
            metric=METRIC,
            mode=MODE,
            name=path.name,
            storage_path=str(path.parent),
            resume=resume,
            callbacks=callbacks,
            verbose=0,
        )
    return {**record, "trials": len(analysis.trials), "rss_at_setup": probe.rss}


def main(argv: Sequence[str] | None = None) -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.restore_child")
    parser.add_argument("how", choices=[*OPENINGS, "resume", "begin"])
    parser.add_argument("experiment", type=Path)
    parser.add_argument("--with-memguard", action="store_true")
    parser.add_argument(
        "--read", type=int, default=0, help="look for the best and read so many results as well"
    )
    parser.add_argument("--dataframe", action="store_true", help="make one of all results, too")
    arguments = parser.parse_args(argv)
    set_environment(loggers=True)
    if arguments.how in OPENINGS:
        if arguments.with_memguard:
            import ray_tune_memguard  # noqa: F401
        record: dict[str, Any] = {}
        chance = random.Random(0)
        with measured(record):
            grid = OPENINGS[arguments.how](str(arguments.experiment))
            record["trials"] = len(grid)
            if arguments.read:
                grid.get_best_result(METRIC, MODE)
                for index in chance.sample(range(len(grid)), arguments.read):
                    assert grid[index].metrics[METRIC] is not None
        started = time.perf_counter()
        best = grid.get_best_result(METRIC, MODE)
        record["best"] = best.metrics[METRIC]
        record["seconds_to_best"] = time.perf_counter() - started
        if arguments.dataframe:
            started = time.perf_counter()
            assert len(grid.get_dataframe()) == len(grid)
            record["seconds_to_dataframe"] = time.perf_counter() - started
    else:
        os.dup2(2, 1)
        start_ray(arguments.experiment.parent / "r")
        record = _resume(
            arguments.experiment, arguments.with_memguard, resume=arguments.how == "resume"
        )
        ray.shutdown()
    assert ("ray_tune_memguard" in sys.modules) == arguments.with_memguard
    write_record(record)


if __name__ == "__main__":
    main()
