"""One sweep with a reporter, or by Ray alone without it: what it said, and what its looks cost."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import tune

from benchmarks import child
from benchmarks.baselines import MEMGUARD
from ray_tune_memguard import HeadNodeReporter, ObjectStoreReporter
from ray_tune_memguard.notices import logger
from tests.integration.own_process import CLUSTER

EVERY_TRIALS = 10


def _start(**options: Any) -> None:
    child.set_environment(loggers=False)
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    ray.init(**CLUSTER, **options)


def _sweep(
    task: child.Task, reporter: Any, trainable: Callable[..., None], about: str, *more: Any
) -> dict[str, Any]:
    lines: list[str] = []
    logger.addFilter(lambda record: bool(lines.append(record.getMessage())) or True)
    callbacks = [*more, *([reporter] if task.baseline == MEMGUARD else [])]
    began = time.monotonic()
    tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(num_samples=task.size, reuse_actors=True),
        run_config=tune.RunConfig(
            name="watched", storage_path=str(task.directory), verbose=0, callbacks=callbacks
        ),
    ).fit()
    pace = reporter._state and reporter._state.pace
    return {
        "seconds": time.monotonic() - began,
        "lines": [line for line in lines if about in line],
        "looks": pace.looks if pace else 0,
        "first_look_s": pace.first_s if pace else 0.0,
        "look_s": pace.seconds_per_look if pace else 0.0,
    }


def head_node(task: child.Task) -> dict[str, Any]:
    """Let ``gcs_server`` grow, and read its RSS: the truth that the reporter is compared with."""
    _start()
    node = ray._private.worker._global_node
    gcs = node.all_processes["gcs_server"][0].process.pid
    truth: list[tuple[int, int]] = []

    class Truth(tune.Callback):
        finished = 0

        def on_trial_complete(self, *args: object, **kwargs: object) -> None:
            self.finished += 1
            if self.finished % EVERY_TRIALS == 0:
                status = Path(f"/proc/{gcs}/status").read_text()
                rss = next(line for line in status.splitlines() if line.startswith("VmRSS"))
                truth.append((self.finished, int(rss.split()[1]) * 1024))

    def train(_config: dict[str, Any]) -> None:
        tune.report({"i": 1})

    reporter = HeadNodeReporter()
    record = _sweep(task, reporter, train, "head node", Truth())
    said = [one.per_trial for one in reporter.processes() if one.name == "gcs_server"]
    return {**record, "truth": truth, "per_trial": said[0] if said else None}


def object_store(task: child.Task, left: int, held: int) -> dict[str, Any]:
    """Let trials leave bytes in an actor, or hold some until they end."""
    _start(namespace="benchmark")

    @ray.remote(num_cpus=0)
    class Archive:
        def __init__(self) -> None:
            self.kept: list[Any] = []

        def keep(self) -> None:
            self.kept.append(ray.put(np.ones(left, dtype=np.uint8)))

    def train(_config: dict[str, Any]) -> None:
        if left:
            ray.get(ray.get_actor("archive", namespace="benchmark").keep.remote())
        mine = ray.put(np.ones(held, dtype=np.uint8)) if held else None
        tune.report({"i": 1})
        del mine

    archive = Archive.options(name="archive").remote()  # type: ignore[attr-defined]
    reporter = ObjectStoreReporter()
    record = _sweep(task, reporter, train, "object store: ")
    del archive
    lines = record["lines"]
    return {
        **record,
        "per_trial": reporter.bytes_per_trial() if reporter._state else None,
        "named_at": int(lines[0].partition("#")[2].split()[0]) if lines else None,
    }
