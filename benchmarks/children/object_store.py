"""One sweep whose trials leave objects in an actor, or hold them."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np
import ray
from ray import tune

from benchmarks import child
from ray_tune_memguard import ObjectStoreReporter
from ray_tune_memguard.notices import logger
from tests.integration.own_process import CLUSTER


def run_sweep(storage: str, trials: int, left: int, held: int, watched: bool) -> dict[str, Any]:
    """What the reporter said, and what its looks cost."""
    child.set_environment(loggers=False)
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    ray.init(**CLUSTER, namespace="benchmark")

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
    lines: list[str] = []
    logger.addFilter(lambda record: bool(lines.append(record.getMessage())) or True)
    reporter = ObjectStoreReporter()
    began = time.monotonic()
    tune.Tuner(
        train,
        tune_config=tune.TuneConfig(num_samples=trials, reuse_actors=True),
        run_config=tune.RunConfig(
            name="store", storage_path=storage, verbose=0, callbacks=[reporter] if watched else []
        ),
    ).fit()
    seconds = time.monotonic() - began
    del archive
    found = [line for line in lines if "object store: " in line]
    return {
        "seconds": seconds,
        "per_trial": reporter.bytes_per_trial() if watched else None,
        "named_at": int(found[0].partition("#")[2].split()[0]) if found else None,
        "lines": found,
        **child.pace_of(reporter._state),
    }


if __name__ == "__main__":
    child.answer(run_sweep)
