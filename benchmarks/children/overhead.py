"""Run one sweep with clocks on MemGuard's work, and return the seconds of each trial."""

from __future__ import annotations

import functools
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.search import BasicVariantGenerator

from benchmarks import child
from benchmarks.metrics import WARM_UP
from benchmarks.simulated import install_simulated_actors

READ = 1000
_HOOKS = ("on_step_begin", "on_step_end", "on_trial_result", "on_trial_complete")


class Clock:
    """Seconds by part of the work, since the last trial was over and in all."""

    def __init__(self) -> None:
        self.by_part: dict[str, list[float]] = {}
        #: The share of each trial in the spill that it was in.
        self.spilled: list[float] = []
        self._since: dict[str, float] = {}

    def put_on(self, owner: Any, name: str, part: str, without: str | None = None) -> None:
        """Time a method as ``part``; ``without``: another part, called in it, that is not."""
        original = getattr(owner, name)

        @functools.wraps(original)
        def timed(*args: Any, **kwargs: Any) -> Any:
            inner = self._since.get(without or "", 0.0)
            began = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                took = time.perf_counter() - began
                if without is not None:
                    took -= self._since.get(without, 0.0) - inner
                self._since[part] = self._since.get(part, 0.0) + took

        setattr(owner, name, timed)

    def put_on_spills(self, part: str) -> None:
        """Time the spills as ``part``, but for those that found nothing to spill."""
        from ray_tune_memguard.adapter.run.spiller import Spiller

        original = Spiller.spill

        @functools.wraps(original)
        def timed(sweep: Spiller, finished: list[Any]) -> Any:
            began = time.perf_counter()
            outcome = original(sweep, finished)
            if outcome.count:
                took = time.perf_counter() - began
                self._since[part] = self._since.get(part, 0.0) + took
                self.spilled += [took / outcome.count] * outcome.count
            return outcome

        Spiller.spill = timed  # type: ignore[method-assign]

    def next_trial(self) -> None:
        """A trial is over: what was done since the last one was done for it."""
        for part in {*self.by_part, *self._since}:
            self.by_part.setdefault(part, []).append(self._since.get(part, 0.0))
        self._since.clear()


def _put_clocks_on(clock: Clock) -> None:
    from ray.tune.execution.tune_controller import TuneController

    from ray_tune_memguard import MemGuard
    from ray_tune_memguard.adapter.run.checkpoint import CheckpointWriter

    clock.put_on_spills("spill")
    for hook in _HOOKS:
        clock.put_on(MemGuard, hook, "other hooks", "spill")
    clock.put_on(TuneController, "save_to_dir", "Ray's checkpoint")
    clock.put_on(CheckpointWriter, "write", "checkpoint", "Ray's checkpoint")


def _put_clocks_on_parts(clock: Clock) -> None:
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
                clock.put_on(part, hook, "reports and looks")
    clock.put_on(TrialStateCodec, "row", "writing it down")
    clock.put_on(StateWriter, "write", "its texts as JSON")
    clock.put_on(TrialStateCodec, "_dump", "its state as a pickle")
    clock.put_on(TrialStore, "put", "packing and inserting both")
    clock.put_on(ExperimentStateFile, "add", "to the state file")
    clock.put_on(Spiller, "_release", "letting go")


class Marks(tune.Callback):
    """Notes when a trial is over, and that the clock goes on to the next one."""

    def __init__(self, clock: Clock) -> None:
        self.times: list[float] = []
        self._clock = clock

    def on_trial_complete(self, **info: Any) -> None:
        """Note it."""
        self.times.append(time.perf_counter())
        self._clock.next_trial()

    def __getstate__(self) -> dict[str, Any]:
        return {}


def run_sweep(how: str, trials: int, directory: str) -> dict[str, Any]:
    """Run one sweep: by Ray alone ("ray"), guarded ("memguard"), or with clocks on the "parts"."""
    child.set_environment(loggers=False)
    clock = Clock()
    marks = Marks(clock)
    callbacks: list[tune.Callback] = [marks]
    if how != "ray":
        from ray_tune_memguard import MemGuard

        _put_clocks_on(clock)
        if how == "parts":
            _put_clocks_on_parts(clock)
        callbacks = [MemGuard(), marks]
    child.start_ray(Path(directory))
    with install_simulated_actors(results_per_trial=1):
        grid = child.make_tuner(
            trials,
            callbacks,
            tune_options={"search_alg": BasicVariantGenerator(random_state=0)},
            storage_path=str(Path(directory) / "results"),
        ).fit()
    # The mean: most trials wait for the spill of another one.
    times = marks.times
    record: dict[str, Any] = {
        "per_trial_s": (times[-1] - times[WARM_UP]) / (len(times) - 1 - WARM_UP)
    }
    if how != "ray":
        record |= {"parts": clock.by_part, "spilled": clock.spilled, **_disk_and_reading(grid)}
    ray.shutdown()
    return record


def _disk_and_reading(grid: Any) -> dict[str, Any]:
    experiment = Path(grid.experiment_path)
    [store] = experiment.glob(".memguard/trials-*.sqlite")
    [state_file] = experiment.glob("experiment_state-*.json")
    trials = grid._experiment_analysis.trials
    chosen = random.Random(0).sample(range(len(trials)), READ)
    took = [_seconds(lambda index=index: trials[index].config) for index in chosen]
    return {
        "read_back_s": statistics.median(took),
        "store_bytes_per_trial": store.stat().st_size / len(trials),
        "state_file_bytes_per_trial": state_file.stat().st_size / len(trials),
    }


def _seconds(act: Callable[[], Any]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


if __name__ == "__main__":
    child.answer(run_sweep)
