"""The object store in seven situations, and sweeps that leave objects behind, or do not.

Run in a process of its own by ``test_object_store.py``; prints one JSON object for each part.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import tune
from ray._private.state import workers

from ray_tune_memguard import MemGuard, ObjectStoreReporter, read_object_store
from ray_tune_memguard.notices import logger
from tests.integration.own_process import CLUSTER

MIB = 2**20
#: What a raylet writes of spilled objects is up to 10 s old.
MAX_WAIT_S = 40.0
TRIALS = 95


def command(*arguments: str) -> str:
    """What ``memguard objects`` prints in a process of its own."""
    address = ray.get_runtime_context().gcs_address
    line = [sys.executable, "-m", "ray_tune_memguard", "objects", "--address", address, *arguments]
    return subprocess.run(line, capture_output=True, text=True, check=True).stdout


def settled(held: int) -> dict[str, Any]:
    """What the command says once the store holds this, in MiB; or what it says in the end."""
    began = time.monotonic()
    while True:
        said: dict[str, Any] = json.loads(command("--json"))
        [node] = said["nodes"]
        if abs(node["primary"] + node["spilled"] - held * MIB) < MIB:
            break
        if time.monotonic() - began > MAX_WAIT_S:
            break
        time.sleep(0.5)
    kinds: dict[str, int] = {}
    for holding in said["held"]:
        if holding["holder"]["kind"] == "driver":
            kinds[holding["kind"]] = kinds.get(holding["kind"], 0) + holding["size"]
    amounts = ("capacity", "used", "primary", "spilled", "created", "fallback")
    return {
        **{name: round(node[name] / MIB) for name in amounts},
        "kinds": {kind: round(amount / MIB) for kind, amount in kinds.items()},
        "words": " ".join(node["sentences"]),
        "unseen": said["unseen"],
    }


def put() -> Any:
    return ray.put(np.ones(10 * MIB, dtype=np.uint8))


def situations() -> dict[str, Any]:
    ray.init(**CLUSTER)
    before = len(workers())
    said = {"start": settled(0)}
    said["started"] = len(workers()) - before
    first = [put() for _ in range(5)]
    said["put"] = settled(50)
    views = [ray.get(one) for one in first]
    said["mapped"] = settled(50)
    more = [put() for _ in range(6)]
    said["over capacity"] = settled(110)
    del views
    said["views dropped"] = settled(110)
    for one in [*first, *more]:
        ray.get(one)
    said["read once"] = settled(110)
    said["text"] = command()
    del first, more, one
    said["dropped"] = settled(0)
    return said


@ray.remote(num_cpus=0)
class Archive:
    """Keeps what it gets."""

    def __init__(self) -> None:
        self.kept: list[Any] = []

    def keep(self, bytes_each: int) -> None:
        self.kept.append(ray.put(np.ones(bytes_each, dtype=np.uint8)))


#: Two at once make 40 trials a second. A look comes at most ten times a second, and what it sees
#: must not lag behind the trials.
TRIAL_S = 0.05


def leaves_objects(config: dict[str, Any]) -> None:
    time.sleep(TRIAL_S)
    ray.get(ray.get_actor("archive", namespace="tests").keep.remote(200_000))
    tune.report({"i": 1})


def holds_until_it_ends(config: dict[str, Any]) -> None:
    held = [ray.put(np.ones(1_000_000, dtype=np.uint8)) for _ in range(4)]
    tune.report({"sum": sum(int(ray.get(one)[0]) for one in held)})


def fit(train: Callable[..., None], folder: str, callback: Any) -> dict[str, Any]:
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    grid = tune.Tuner(
        train,
        tune_config=tune.TuneConfig(num_samples=TRIALS, reuse_actors=True),
        run_config=tune.RunConfig(
            name="store", storage_path=folder, verbose=0, callbacks=[callback]
        ),
    ).fit()
    store = read_object_store(Path(folder, "store"))
    part = getattr(callback, "objects", callback)
    return {
        "errors": grid.num_errors,
        "lines": [line for line in lines if "object store" in line],
        "looks": len(store),
        "per_trial": part.bytes_per_trial(),
        "held": int((store["primary_bytes"] + store["spilled_bytes"]).iloc[-1]),
        "leaks": [leak for leak in store["leak"] if leak],
    }


def leak(folder: str) -> dict[str, Any]:
    os.environ.update(RAY_record_ref_creation_sites="1")
    ray.init(**CLUSTER, namespace="tests")
    archive = Archive.options(name="archive").remote()  # type: ignore[attr-defined]
    said = fit(leaves_objects, folder, MemGuard())
    del archive
    return said


def no_leak(folder: str) -> dict[str, Any]:
    ray.init(**CLUSTER)
    return fit(holds_until_it_ends, folder, ObjectStoreReporter())


PARTS: dict[str, Callable[..., dict[str, Any]]] = {
    "situations": situations,
    "leak": leak,
    "no leak": no_leak,
}

if __name__ == "__main__":
    print(json.dumps(PARTS[sys.argv[1]](*sys.argv[2:])))
