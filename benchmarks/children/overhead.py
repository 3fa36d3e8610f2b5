"""Run one sweep with clocks on MemGuard's work, and return what it adds to each trial."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from ray import tune
from ray.tune.search import BasicVariantGenerator

from benchmarks import child
from benchmarks.baselines import BASELINES, MEMGUARD
from benchmarks.metrics import WARM_UP
from benchmarks.probes import Clocks
from benchmarks.simulated import install_simulated_actors

READ = 1000
_HOOKS = ("on_step_begin", "on_step_end", "on_trial_result", "on_trial_complete")


def _put_clocks_on(clocks: Clocks) -> list[float]:
    """Time all that MemGuard does; return the list of each trial's share in its spill."""
    from ray.tune.execution.tune_controller import TuneController

    from ray_tune_memguard import MemGuard
    from ray_tune_memguard.adapter.run.checkpoint import CheckpointWriter
    from ray_tune_memguard.adapter.run.spiller import Spiller

    shares: list[float] = []
    original = Spiller.spill

    def timed(spiller: Spiller, finished: list[Any]) -> Any:
        began = time.perf_counter()
        outcome = original(spiller, finished)
        # One that found nothing to spill is part of its hook.
        if outcome.count:
            took = time.perf_counter() - began
            clocks.seconds["spill"] += took
            shares.extend([took / outcome.count] * outcome.count)
        return outcome

    Spiller.spill = timed  # type: ignore[method-assign]
    for hook in _HOOKS:
        clocks.put_on(MemGuard, hook, "other hooks", "spill")
    clocks.put_on(TuneController, "save_to_dir", "Ray's checkpoint")
    clocks.put_on(CheckpointWriter, "write", "checkpoint", "Ray's checkpoint")
    return shares


def _put_clocks_on_parts(clocks: Clocks) -> None:
    from ray_tune_memguard.adapter.run.spiller import Spiller
    from ray_tune_memguard.adapter.serialization.trial_json import StateWriter
    from ray_tune_memguard.adapter.serialization.trial_pickle import TrialStateCodec
    from ray_tune_memguard.callbacks.object_growth_tracker import ObjectGrowthTracker
    from ray_tune_memguard.callbacks.rss_reporter import RssReporter
    from ray_tune_memguard.store.state_file import ExperimentStateFile
    from ray_tune_memguard.store.trial_store import TrialStore

    for hook in _HOOKS:
        for part in (RssReporter, ObjectGrowthTracker):
            if hook in part.__dict__:
                clocks.put_on(part, hook, "reports and looks")
    clocks.put_on(TrialStateCodec, "row", "writing it down")
    clocks.put_on(StateWriter, "write", "its texts as JSON")
    clocks.put_on(TrialStateCodec, "_dump", "its state as a pickle")
    clocks.put_on(TrialStore, "put", "packing and inserting both")
    clocks.put_on(ExperimentStateFile, "add", "to the state file")
    clocks.put_on(Spiller, "_release", "letting go")


class Marks(tune.Callback):
    """Notes when each trial is over, and the seconds of each part since the last one was."""

    def __init__(self, clocks: Clocks) -> None:
        self.times: list[float] = []
        self.parts: list[dict[Any, float]] = []
        self._clocks = clocks

    def on_trial_complete(self, **info: Any) -> None:
        """Note it."""
        self.times.append(time.perf_counter())
        self.parts.append(dict(self._clocks.seconds))
        self._clocks.seconds.clear()

    def __getstate__(self) -> dict[str, Any]:
        return {}


def run_sweep(task: child.Task, in_parts: bool = False) -> dict[str, Any]:
    """Run one sweep; ``in_parts``: with clocks on the parts of MemGuard's work."""
    child.set_environment(loggers=False)
    clocks = Clocks()
    marks = Marks(clocks)
    shares = _put_clocks_on(clocks) if task.baseline == MEMGUARD else []
    if in_parts:
        _put_clocks_on_parts(clocks)
    child.start_ray(task.directory)
    with install_simulated_actors(results_per_trial=1):
        grid = child.make_tuner(
            task.size,
            [*BASELINES[task.baseline].callbacks(), marks],
            tune_options={"search_alg": BasicVariantGenerator(random_state=0)},
            storage_path=str(task.directory / "results"),
        ).fit()
    # The mean: most trials wait for the spill of another one.
    record: dict[str, Any] = {"per_trial_s": float(np.diff(marks.times[WARM_UP:]).mean())}
    if task.baseline == MEMGUARD:
        parts = pd.DataFrame(marks.parts).fillna(0.0)
        record["added"] = _added(parts, shares)
        record["parts"] = parts[WARM_UP:].drop(columns="Ray's checkpoint").mean().to_dict()
        record |= _disk_and_reading(grid)
    return record


def _added(parts: pd.DataFrame, shares: list[float]) -> dict[str, float]:
    """Return what was added to a trial; the checkpoint comes every ten seconds, in equal shares."""
    checkpoint = parts["checkpoint"].mean()
    # Trials that are spilled last have no hook after them.
    times = (parts["other hooks"] + pd.Series(shares)).dropna() + checkpoint
    late = times[WARM_UP:]
    return {
        "median_s": late.median(),
        "mean_s": late.mean(),
        "p95_s": late.quantile(0.95),
        "mean_of_all_s": times.mean(),
        "checkpoint_share_s": checkpoint,
    }


def _disk_and_reading(grid: Any) -> dict[str, Any]:
    experiment = Path(grid.experiment_path)
    [store] = experiment.glob(".memguard/trials-*.sqlite")
    [state_file] = experiment.glob("experiment_state-*.json")
    trials = grid._experiment_analysis.trials
    took = []
    for index in random.Random(0).sample(range(len(trials)), READ):
        began = time.perf_counter()
        assert trials[index].config
        took.append(time.perf_counter() - began)
    return {
        "read_back_s": float(np.median(took)),
        "store_bytes_per_trial": store.stat().st_size / len(trials),
        "state_file_bytes_per_trial": state_file.stat().st_size / len(trials),
    }
