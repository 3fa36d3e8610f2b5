"""Store arrays with ``ray.put`` and with a ``Keeper``: time, memory, and what outlives a kill."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
import ray

from benchmarks import child
from benchmarks.probes import anonymous_bytes, object_store_bytes
from ray_tune_memguard import Keeper

BYTES = 5_000_000
BATCH = 10


class Trial:
    """What a trial does with an array, in a process of its own."""

    def __init__(self) -> None:
        self.array = np.ones(BYTES, dtype=np.uint8)

    def store(self, keeper: Any) -> tuple[int, list[Any], Any]:
        return os.getpid(), [ray.put(self.array)], keeper.keep(self.array)

    def times(self, keeper: Any, rounds: int) -> dict[str, list[float]]:
        """Return the seconds of each step; the first round only warms up."""
        kept: list[Any] = []
        steps: dict[str, Callable[[], object]] = {
            "ray.put": lambda: ray.put(self.array),
            "copy": lambda: self.array.copy(),
            "keep": lambda: kept.append(keeper.keep(self.array)),
            "release": lambda: kept.pop().release(),
        }
        found: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(rounds + 1):
            for name, step in steps.items():
                began = time.perf_counter()
                step()
                found[name].append(time.perf_counter() - began)
        return {name: times[1:] for name, times in found.items()}

    def import_package(self) -> int:
        import ray_tune_memguard  # noqa: F401

        return anonymous_bytes(psutil.Process())


def _read(read: Callable[[], Any]) -> str:
    try:
        return "read" if int(read()[-1]) == 1 else "wrong"
    except Exception as error:
        return type(error).__name__


def _after_kills(keeper: Any, trials: int) -> dict[str, dict[str, int]]:
    alone: Counter[str] = Counter()
    kept: Counter[str] = Counter()
    for begun in range(0, trials, BATCH):
        actors = [
            ray.remote(num_cpus=0.1)(Trial).remote() for _ in range(min(BATCH, trials - begun))
        ]
        stored = [ray.get(actor.store.remote(keeper)) for actor in actors]
        for pid, _, _ in stored:
            os.kill(pid, signal.SIGKILL)
        time.sleep(1.0)
        for _, [reference], mine in stored:
            alone[_read(lambda one=reference: ray.get(one, timeout=10))] += 1
            kept[_read(lambda one=mine: one.get(timeout_s=10))] += 1
            mine.release()
    return {"Ray alone": dict(alone), "Keeper": dict(kept)}


def _left_after_release(keeper: Any) -> int:
    """Bytes that are in the object store after a release, and were not there before."""
    before = object_store_bytes()
    for _ in range(20):
        keeper.keep(np.ones(BYTES, dtype=np.uint8))
    time.sleep(2.0)
    keeper.release_all()
    until = time.monotonic() + 30.0
    while (left := object_store_bytes() - before) and time.monotonic() < until:
        time.sleep(0.1)
    return left


def _memory_bytes() -> dict[str, int]:
    mine = [
        anonymous_bytes(process)
        for process in psutil.Process().children(recursive=True)
        if process.cmdline()[:1] == ["ray::KeeperActor"]
    ]
    importing = ray.get(ray.remote(num_cpus=0)(Trial).remote().import_package.remote())
    return {"keeper": max(mine), "importing": importing}


def measure(task: child.Task, rounds: int) -> dict[str, Any]:
    """Measure all of it, in one Ray cluster."""
    child.set_environment(loggers=True)
    child.start_ray(task.directory, store_bytes=300 * 2**20)
    with Keeper() as keeper:
        left = _left_after_release(keeper)
        memory = _memory_bytes()
        trial = ray.remote(num_cpus=1)(Trial).remote()
        times = ray.get(trial.times.remote(keeper, rounds))
        ray.kill(trial)
        read = _after_kills(keeper, task.size)
    return {"left": left, "read": read, "times": times, "memory": memory}
