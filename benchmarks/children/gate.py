"""Sweeps of the launch gate."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import psutil
from ray import tune
from ray.tune.experiment import Trial

from benchmarks import child
from benchmarks.baselines import BASELINES
from benchmarks.probes import Clocks, anonymous_bytes
from ray_tune_memguard import LaunchGate, MemGuard, read_gate
from ray_tune_memguard.adapter import boundary
from ray_tune_memguard.adapter.run import launches  # noqa: F401 - registers its entries
from tests.integration import gated_sweeps

MIB = 2**20
BUDGET = 700 * MIB
CPUS = 4


def _start_ray(task: child.Task, cpus: int) -> None:
    child.set_environment(loggers=False)
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    child.start_ray(task.directory, cpus, store_bytes=80 * MIB, logging_level="ERROR")


def _fit(
    task: child.Task, name: str, trainable: Any, space: dict[str, Any], callbacks: list[Any], n: int
) -> tune.ResultGrid:
    return tune.Tuner(
        trainable,
        param_space=space,
        tune_config=tune.TuneConfig(num_samples=n),
        run_config=tune.RunConfig(
            name=name, storage_path=str(task.directory), verbose=0, callbacks=callbacks
        ),
    ).fit()


def _pauses(task: child.Task) -> int:
    records = read_gate(task.directory / "gated" / "gated")
    return [record.action for record in records].count("pause")


# A budget for trials that grow.


def grows(_config: dict[str, Any]) -> None:
    """Takes 210 MiB beside the 110 MiB of a worker, in three seconds."""
    held = []
    for step in range(6):
        held.append(bytearray(b"1") * (35 * MIB))
        time.sleep(0.5)
        tune.report({"step": step})


class Watch(tune.Callback):
    """What trials use in all; measured in a thread, not by the gate."""

    def __init__(self) -> None:
        self.highest = self.later = 0
        #: Processes of the first trials to end; they are there for a moment after that.
        self._first_wave: list[int] = []
        self._workers: list[psutil.Process] = []
        self._workers_at = 0.0
        children = psutil.Process().children(recursive=True)
        [self._raylet] = [process for process in children if process.name() == "raylet"]
        self._over = threading.Event()
        threading.Thread(target=self._measure, daemon=True).start()

    def used(self) -> int:
        """Return what Ray's workers with an actor hold."""
        now = time.monotonic()
        if now >= self._workers_at + 0.5:
            self._workers, self._workers_at = list(filter(_is_trial, self._raylet.children())), now
        return sum(map(_held_by, self._workers))

    def _measure(self) -> None:
        while not self._over.wait(0.1):
            used = self.used()
            self.highest = max(self.highest, used)
            if len(self._first_wave) >= CPUS and not any(map(psutil.pid_exists, self._first_wave)):
                self.later = max(self.later, used)

    def on_trial_complete(self, *, trial: Trial, **info: Any) -> None:
        if len(self._first_wave) < CPUS:
            self._first_wave.append(trial.last_result["pid"])

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        self._over.set()

    def __getstate__(self) -> dict[str, Any]:
        return {}


def _is_trial(process: psutil.Process) -> bool:
    try:
        title = " ".join(process.cmdline())
    except psutil.Error:
        return False
    return title.startswith("ray::") and "IDLE" not in title and "Agent" not in title


def _held_by(process: psutil.Process) -> int:
    try:
        return anonymous_bytes(process)
    except psutil.Error:
        return 0  # It has ended.


def toy(task: child.Task) -> dict[str, Any]:
    """Run trials that grow, with a budget for all of them."""
    _start_ray(task, CPUS)
    watch = Watch()
    callbacks = [watch, *BASELINES[task.baseline].callbacks()]
    began = time.monotonic()
    with gated_sweeps.memory(lambda: watch.used() / BUDGET, BUDGET):
        grid = _fit(task, "toy", grows, {}, callbacks, task.size)
    assert len(grid) == task.size
    assert not grid.errors
    return {
        "most": watch.highest / BUDGET,
        "later": watch.later / BUDGET,
        "seconds": time.monotonic() - began,
    }


# Sweeps of all kinds.


def sweep(task: child.Task, **kind: Any) -> dict[str, Any]:
    """Run one kind of sweep, see ``gated_sweeps.sweep``, without and with the gate."""
    _start_ray(task, 3)
    gate = LaunchGate(memory_per_trial=0.3 * gated_sweeps.TOTAL, pause=0.9, resume=0.8)
    alone = gated_sweeps.sweep(task.directory / "alone", [], **kind)
    with gated_sweeps.memory(gated_sweeps.comes_and_goes()):
        grid = gated_sweeps.sweep(task.directory / "gated", [gate], **kind)
    return {
        "trials": len(alone),
        "ended": len(grid),
        "errors": len(grid.errors),
        "outcome": gated_sweeps.outcome(grid),
        "alone": gated_sweeps.outcome(alone),
        "pauses": _pauses(task),
    }


# A driver that waits.


class Steps(tune.Callback):
    """Steps and CPU time of the driver while a trial waits or runs, from the sixth second on."""

    def __init__(self) -> None:
        self._began = 0.0
        self._first: tuple[float, float] | None = None
        self.count = 0
        self.per_second = self.cpu = 0.0

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        now = time.monotonic()
        self._began = self._began or now
        if not 5 <= now - self._began <= 20:
            return
        if self._first is None:
            self._first = now, time.process_time()
            return
        self.count += 1
        seconds = now - self._first[0]
        if seconds > 1:
            self.per_second = self.count / seconds
            self.cpu = (time.process_time() - self._first[1]) / seconds


def sleeps(config: dict[str, Any]) -> None:
    time.sleep(config["sleep"])
    tune.report({"done": 1})


def paused(task: child.Task) -> dict[str, Any]:
    """Run a trial of 25 s; with the gate another one waits until it has ended."""
    _start_ray(task, 2)
    alone, gated = Steps(), Steps()
    with gated_sweeps.memory(lambda: 0.95):
        _fit(task, "alone", sleeps, {"sleep": 25}, [alone], 1)
        space = {"sleep": tune.grid_search([25, 0.1])}
        _fit(task, "gated", sleeps, space, [MemGuard(), gated], 1)
    return {
        "steps": gated.per_second,
        "cpu": gated.cpu,
        "steps_alone": alone.per_second,
        "cpu_alone": alone.cpu,
    }


# A sweep that never waits.


def quick(config: dict[str, Any]) -> None:
    tune.report({"score": config["x"]})


class Stopwatch(tune.Callback):
    """Times a sweep without the start of its first workers, which varies by seconds.

    Ray alone has it, too: with the first callback of any kind, Ray imports what it finds of MLflow.
    """

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_trial_complete(self, **info: Any) -> None:
        self.ends.append(time.monotonic())


def ample(task: child.Task) -> dict[str, Any]:
    """Run a sweep of short trials with reused actors, where starting is most of the work."""
    _start_ray(task, 2)
    clocks = Clocks()
    # What Ray takes below them counts as the gate's.
    for name in (
        "PlacementGroupResourceManager.has_resources_ready",
        "PlacementGroupResourceManager.acquire_resources",
        "_ObjectCache.cache_object",
        "LaunchGate.on_step_end",
    ):
        clocks.put_on(boundary.ENTRIES[name], "ours", "gate")

    def seconds(folder: Path, callbacks: list[Any], trials: int) -> float:
        watch = Stopwatch()
        gated_sweeps.sweep(
            folder, [*callbacks, watch], trainable=quick, reuse_actors=True, trials=trials
        )
        return watch.ends[-1] - watch.ends[0]

    seconds(task.directory / "warm", [], 10)
    order: list[tuple[str, list[Any]]] = [("alone", []), ("gated", [LaunchGate()])]
    took = {
        name: seconds(task.directory / name, callbacks, task.size)
        for name, callbacks in (order if task.number % 2 else order[::-1])
    }
    return {**took, "own": clocks.seconds["gate"] / took["gated"], "pauses": _pauses(task)}
