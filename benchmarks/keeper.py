"""Values that outlive their trial: ``python -m benchmarks keeper``.

- 100 trials store 5 MB, once with ``ray.put``, whose reference they return (Ray alone), and once
  with a ``Keeper``, and are killed with SIGKILL. How many of each can be read a second later?
- Time in a trial for 5 MB, in turns: ``ray.put``, a copy of the array, and ``keep``.
- Bytes in the object store before a value is kept, and after all are released.
- Anonymous memory (RSS without shared memory, of which the object store is part) of the keeper's
  process, and of an actor that imports this package, which is what the keeper's process would be if
  it did.

Ends with 1 if a kept value cannot be read, if ``keep`` takes more than 1.3 times as long as
``ray.put`` and a copy, or if anything is left in the object store.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine, machine_line
from benchmarks.runs import RESULTS_DIRECTORY, positive

BYTES = 5_000_000
BATCH = 10
MAX_RATIO = 1.3


def _timed(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


class Trial:
    """What a trial does with an array, in a process of its own."""

    def __init__(self) -> None:
        import numpy as np

        self.array = np.ones(BYTES, dtype=np.uint8)

    def store(self, keeper: Any) -> tuple[int, list[Any], Any]:
        import ray

        return os.getpid(), [ray.put(self.array)], keeper.keep(self.array)

    def times(self, keeper: Any, rounds: int) -> dict[str, list[float]]:
        import ray

        kept: list[Any] = []
        steps: dict[str, Callable[[], object]] = {
            "ray.put": lambda: ray.put(self.array),
            "copy": lambda: self.array.copy(),
            "keep": lambda: kept.append(keeper.keep(self.array)),
            "release": lambda: kept.pop().release(),
        }
        for step in steps.values():
            step()
        found: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(rounds):
            for name, step in steps.items():
                found[name].append(_timed(step))
        return found

    def import_package(self) -> int:
        import psutil

        import ray_tune_memguard  # noqa: F401

        return _anonymous_bytes(psutil.Process())


def _read(read: Callable[[], Any]) -> str:
    try:
        return "read" if int(read()[-1]) == 1 else "wrong"
    except Exception as error:
        return type(error).__name__


def _after_kills(keeper: Any, trials: int) -> dict[str, dict[str, int]]:
    import ray

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


def _stored_bytes() -> int:
    import ray

    total = ray.cluster_resources()["object_store_memory"]
    return int(total - ray.available_resources().get("object_store_memory", 0.0))


def _left_after_release(keeper: Any) -> dict[str, int]:
    import numpy as np

    before = _stored_bytes()
    for _ in range(20):
        keeper.keep(np.ones(BYTES, dtype=np.uint8))
    time.sleep(2.0)
    full = _stored_bytes()
    keeper.release_all()
    until = time.monotonic() + 30.0
    while (left := _stored_bytes()) != before and time.monotonic() < until:
        time.sleep(0.1)
    return {"before": before, "kept": full, "after": left}


def _anonymous_bytes(process: Any) -> int:
    memory = process.memory_info()
    return int(memory.rss - memory.shared)


def _memory_bytes() -> dict[str, int]:
    import psutil
    import ray

    mine = [
        _anonymous_bytes(process)
        for process in psutil.Process().children(recursive=True)
        if process.cmdline()[:1] == ["ray::KeeperActor"]
    ]
    importing = ray.get(ray.remote(num_cpus=0)(Trial).remote().import_package.remote())
    return {"keeper": max(mine), "importing": importing}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks keeper", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--trials", type=positive, default=100, help="that are killed")
    parser.add_argument("--rounds", type=positive, default=200, help="of the measurement of time")
    parser.add_argument("--results", type=Path, default=RESULTS_DIRECTORY)
    arguments = parser.parse_args(argv)

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    from ray_tune_memguard import Keeper

    machine = describe_machine()
    print(machine_line(machine), flush=True)
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=300 * 2**20,
    )
    try:
        with Keeper() as keeper:
            left = _left_after_release(keeper)
            memory = _memory_bytes()
            trial = ray.remote(num_cpus=1)(Trial).remote()
            times = ray.get(trial.times.remote(keeper, arguments.rounds))
            ray.kill(trial)
            read = _after_kills(keeper, arguments.trials)
    finally:
        ray.shutdown()

    medians = {name: statistics.median(values) * 1000 for name, values in times.items()}
    ratio = medians["keep"] / (medians["ray.put"] + medians["copy"])
    checks = {
        "read": read["Keeper"] == {"read": arguments.trials},
        "time": ratio <= MAX_RATIO,
        "left": left["before"] == left["after"],
    }

    def say(check: str, text: str) -> None:
        print(f"{text}  {'ok' if checks[check] else 'MISS'}", flush=True)

    for name, outcomes in read.items():
        listed = ", ".join(f"{count} {what}" for what, count in sorted(outcomes.items()))
        text = f"of {arguments.trials} arrays of killed trials, {name}: {listed}"
        print(text) if name == "Ray alone" else say("read", text)
    say(
        "time",
        f"5 MB, median of {arguments.rounds}: ray.put {medians['ray.put']:.2f} ms, copy "
        f"{medians['copy']:.2f} ms, keep {medians['keep']:.2f} ms ({ratio:.2f} x put + copy), "
        f"release {medians['release']:.2f} ms",
    )
    say(
        "left",
        f"object store: {left['before']} bytes before, {left['kept']} with 20 arrays, "
        f"{left['after']} after release_all()",
    )
    print(
        f"anonymous memory: keeper {memory['keeper'] / 2**20:.0f} MiB, an actor that imports "
        f"ray_tune_memguard {memory['importing'] / 2**20:.0f} MiB"
    )
    found = {"read": read, "medians_ms": medians, "ratio": ratio, "left": left, "memory": memory}
    text = json.dumps({"machine": machine, **found, "checks": checks}, indent=1)
    (arguments.results / "keeper.json").write_text(text + "\n")
    return 0 if all(checks.values()) else 1
