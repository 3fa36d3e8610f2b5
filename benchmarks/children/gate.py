"""One sweep of the launch gate."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from ray import tune
from ray.tune.experiment import Trial

from benchmarks import child
from benchmarks.baselines import BASELINES
from benchmarks.probes import anonymous_bytes
from ray_tune_memguard import LaunchGate, MemGuard, read_gate
from ray_tune_memguard.adapter import boundary
from ray_tune_memguard.adapter.run import launches  # noqa: F401 - registers its entries
from tests.integration import gated_sweeps

MIB = 2**20
BUDGET = 700 * MIB
CPUS = 4


def start_ray(folder: Path, cpus: int) -> None:
    """Start a small Ray."""
    child.start_ray(folder, cpus, store_bytes=80 * MIB, logging_level="ERROR")


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
        self._processes: list[int] = []
        self._processes_at = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._measure, daemon=True)
        self._thread.start()

    def used(self) -> int:
        now = time.monotonic()
        if now >= self._processes_at + 0.5:
            self._processes, self._processes_at = trial_processes(), now
        return sum(map(anonymous_bytes_of, self._processes))

    def _measure(self) -> None:
        while not self._over.wait(0.1):
            used = self.used()
            self.highest = max(self.highest, used)
            if self._is_first_wave_over():
                self.later = max(self.later, used)

    def _is_first_wave_over(self) -> bool:
        return len(self._first_wave) >= CPUS and not any(map(psutil.pid_exists, self._first_wave))

    def on_trial_complete(self, *, trial: Trial, **info: Any) -> None:
        if len(self._first_wave) < CPUS:
            self._first_wave.append(trial.last_result["pid"])

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        self._over.set()

    def __getstate__(self) -> dict[str, Any]:
        return {}


def anonymous_bytes_of(pid: int) -> int:
    """Return what a process holds; nothing of one that has ended."""
    try:
        return anonymous_bytes(psutil.Process(pid))
    except psutil.Error:
        return 0


_raylet: list[psutil.Process] = []


def trial_processes() -> list[int]:
    """Ray's workers that run an actor."""
    if not _raylet:
        _raylet.extend(
            process
            for process in psutil.Process().children(recursive=True)
            if process.name() == "raylet"
        )
    found = []
    for process in _raylet[0].children():
        try:
            title = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if title.startswith("ray::") and "IDLE" not in title and "Agent" not in title:
            found.append(process.pid)
    return found


def toy(folder: Path, baseline: str, trials: int) -> dict[str, Any]:
    """Trials that grow, with a budget for all of them."""
    start_ray(folder, CPUS)
    watch = Watch()
    callbacks = [watch, *BASELINES[baseline].callbacks()]
    began = time.monotonic()
    with gated_sweeps.memory(lambda: watch.used() / BUDGET, BUDGET):
        grid = tune.Tuner(
            grows,
            tune_config=tune.TuneConfig(num_samples=trials),
            run_config=tune.RunConfig(
                name="toy", storage_path=str(folder), verbose=0, callbacks=callbacks
            ),
        ).fit()
    assert len(grid) == trials
    assert not grid.errors
    return {
        "most": watch.highest / BUDGET,
        "later": watch.later / BUDGET,
        "seconds": time.monotonic() - began,
    }


def sweep(
    folder: Path, scheduler: str, reuse: bool, max_concurrent: int | None, two_shapes: bool
) -> dict[str, Any]:
    start_ray(folder, 3)
    options: dict[str, Any] = {
        "scheduler": scheduler,
        "reuse_actors": reuse,
        "max_concurrent": max_concurrent,
        "two_shapes": two_shapes,
        "trials": 8,
    }
    gate = LaunchGate(memory_per_trial=0.3 * gated_sweeps.TOTAL, pause=0.9, resume=0.8)
    alone = gated_sweeps.sweep(folder / "alone", [], **options)
    with gated_sweeps.memory(gated_sweeps.comes_and_goes()):
        grid = gated_sweeps.sweep(folder / "gated", [gate], **options)
    actions = [record.action for record in read_gate(folder / "gated" / "gated")]
    return {
        "trials": len(alone),
        "ended": len(grid),
        "errors": len(grid.errors),
        "outcome": gated_sweeps.outcome(grid),
        "alone": gated_sweeps.outcome(alone),
        "pauses": actions.count("pause"),
    }


class Steps(tune.Callback):
    """Steps and CPU time of the driver while a trial waits or runs."""

    def __init__(self, begins_after_s: float) -> None:
        self._begins_after_s = begins_after_s
        self._began = 0.0
        self._first: tuple[float, float] | None = None
        self.count = 0
        self.per_second = self.cpu = 0.0

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        now = time.monotonic()
        self._began = self._began or now
        if not 0 <= now - self._began - self._begins_after_s <= 15:
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


def paused(folder: Path) -> dict[str, Any]:
    """A trial of 25 s; with the gate another one waits until it has ended."""
    start_ray(folder, 2)
    found = {}
    for name, sleep, callbacks in (("alone", [25], []), ("gated", [25, 0.1], [MemGuard()])):
        steps = found[name] = Steps(begins_after_s=5)
        with gated_sweeps.memory(lambda: 0.95):
            tune.Tuner(
                sleeps,
                param_space={"sleep": tune.grid_search(sleep)},
                run_config=tune.RunConfig(
                    name=name, storage_path=str(folder), verbose=0, callbacks=[*callbacks, steps]
                ),
            ).fit()
    return {
        "steps": found["gated"].per_second,
        "cpu": found["gated"].cpu,
        "steps_alone": found["alone"].per_second,
        "cpu_alone": found["alone"].cpu,
    }


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

    def seconds(self) -> float:
        return self.ends[-1] - self.ends[0]


def ample(folder: Path, first: int, trials: int) -> dict[str, Any]:
    """A sweep of short trials with reused actors, where starting is most of the work."""
    start_ray(folder, 2)
    own = [0.0]
    for name in (
        "PlacementGroupResourceManager.has_resources_ready",
        "PlacementGroupResourceManager.acquire_resources",
        "_ObjectCache.cache_object",
        "LaunchGate.on_step_end",
    ):
        _time(name, own)
    seconds: dict[str, float] = {}
    order: list[tuple[str, list[Any]]] = [("alone", []), ("gated", [LaunchGate()])]
    gated_sweeps.sweep(
        folder / "warm", [Stopwatch()], trainable=quick, reuse_actors=True, trials=10
    )
    for name, callbacks in order if first else order[::-1]:
        watch = Stopwatch()
        gated_sweeps.sweep(
            folder / name, [*callbacks, watch], trainable=quick, reuse_actors=True, trials=trials
        )
        seconds[name] = watch.seconds()
    pauses = [record.action for record in read_gate(folder / "gated" / "gated")]
    return {**seconds, "own": own[0] / seconds["gated"], "pauses": pauses.count("pause")}


def _time(name: str, total: list[float]) -> None:
    """Put a clock on one of our entries. What Ray takes below it counts as ours."""
    entry = boundary.ENTRIES[name]
    ours: Callable[..., Any] = entry.ours

    def timed(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return ours(*args, **kwargs)
        finally:
            total[0] += time.perf_counter() - began

    entry.ours = timed


PARTS: dict[str, Callable[..., dict[str, Any]]] = {
    "toy": toy,
    "sweep": sweep,
    "paused": paused,
    "ample": ample,
}


def run_part(part: str, folder: str, **options: Any) -> dict[str, Any]:
    """Run one part."""
    child.set_environment(loggers=False)
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    return PARTS[part](Path(folder), **options)


if __name__ == "__main__":
    child.answer(run_part)
