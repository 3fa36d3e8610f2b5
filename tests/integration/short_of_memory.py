"""A sweep in which Ray's memory monitor kills a trial, run in a process of its own: the monitor
reads its settings when Ray starts.

Prints one JSON object: what ``fit()`` raised, or its results and those after a restore; and how
many trials the monitor killed, which only a guarded sweep can tell.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from tests.integration.small_cluster import start_ray

MIB = 2**20
#: How much more than now may be in use before the monitor kills.
HEADROOM = 1200 * MIB
# The trial that takes too much does so in such steps until so much more than allowed is in use, and
# waits: on a busy machine others free memory, and the monitor is slow and kills others first.
STEP, EXCESS, MAX_STEPS = 150 * MIB, 600 * MIB, 600


def share_in_use(more: int) -> float:
    """The share of the machine's memory that would be in use with so many bytes more."""
    memory = psutil.virtual_memory()
    return (memory.total - memory.available + more) / memory.total


def set_up_monitor(headroom: int = HEADROOM) -> None:
    os.environ.update(
        RAY_memory_usage_threshold=f"{share_in_use(headroom):.4f}",
        RAY_memory_monitor_refresh_ms="100",
        # Otherwise it frees 5 % of the machine at a time, and kills innocent trials, too.
        RAY_max_kill_memory_buffer_bytes=str(50 * MIB),
    )


def is_more_wanted() -> bool:
    """Whether less is in use than what the monitor certainly kills at."""
    threshold = float(os.environ["RAY_memory_usage_threshold"])  # noqa: SIM112 (Ray's spelling)
    return share_in_use(-EXCESS) < threshold


def grows(config: dict[str, Any]) -> None:
    from ray import tune

    held = []
    for step in range(MAX_STEPS if config["hog"] else 10):
        if config["hog"] and is_more_wanted():
            held.append(bytearray(os.urandom(1)) * STEP)
        time.sleep(0.1)
        tune.report({"step": step})


def what_came(grid: Any) -> list[dict[str, Any]]:
    return [
        {
            # A trial that is killed before its first report has no config there.
            "hog": (result.config or {}).get("hog", 0),
            "error": type(result.error).__name__ if result.error else None,
            "text": str(result.error or ""),
        }
        for result in grid
    ]


def main(folder: Path, max_failures: int, reuse_actors: bool, guarded: bool) -> None:
    set_up_monitor()
    import ray
    from ray import tune

    callbacks = []
    if guarded:
        from ray_tune_memguard import MemGuard

        callbacks = [MemGuard()]
    start_ray(2, object_store_memory=100 * MIB)
    tuner = tune.Tuner(
        grows,
        param_space={"hog": tune.grid_search([0, 1, 0])},
        tune_config=tune.TuneConfig(reuse_actors=reuse_actors),
        run_config=tune.RunConfig(
            name="sweep",
            storage_path=str(folder),
            verbose=0,
            callbacks=callbacks,
            failure_config=tune.FailureConfig(max_failures=max_failures),
        ),
    )
    try:
        said: dict[str, Any] = {"results": what_came(tuner.fit())}
        restored = tune.Tuner.restore(str(folder / "sweep"), grows)
        said["restored"] = what_came(restored.get_results())
    except Exception as error:
        said = {"raised": f"{type(error).__name__}: {error}"}
    if guarded:
        from ray_tune_memguard import read_deaths

        deaths = read_deaths(folder / "sweep")
        said["killed"] = sum(death.cause == "ray_memory_monitor" for death in deaths)
    print(json.dumps(said))
    ray.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "reuse", sys.argv[4] == "guarded")
