"""A sweep by a script whose own classes keep state in the script's globals.

Prints one JSON object: what the globals have when ``fit()`` has returned.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import ray
from ray import tune

from tests.integration.small_cluster import start_ray

SEEN_BY_STOPPER: list[str] = []
SEEN_BY_SEARCHER: list[str] = []
SEEN_BY_CALLBACK: list[str] = []
READ: list[int] = []


class Depth:
    """A value in the configuration of a trial."""

    made = 0

    def __init__(self, layers: int) -> None:
        self.layers = layers

    def read(self) -> int:
        READ.append(self.layers)
        return self.layers


class Stopper(tune.Stopper):
    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        SEEN_BY_STOPPER.append(trial_id)
        return False

    def stop_all(self) -> bool:
        return False


class Searcher(tune.search.Searcher):
    def suggest(self, trial_id: str) -> dict[str, Any]:
        return {"x": 1, "depth": Depth(len(SEEN_BY_SEARCHER))}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        SEEN_BY_SEARCHER.append(trial_id)

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).write_text("{}")

    def restore(self, checkpoint_path: str) -> None:
        pass


class Mine(tune.Callback):
    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        SEEN_BY_CALLBACK.append(trial.trial_id)
        Depth.made += 1
        # Of trials that finished long ago.
        for other in trials[:3]:
            if other.is_finished():
                other.config["depth"].read()


def train(config: dict[str, Any]) -> None:
    for step in range(2):
        tune.report({"loss": step})


def main(folder: Path, guarded: bool) -> None:
    callbacks: list[tune.Callback] = [Mine()]
    if guarded:
        from ray_tune_memguard import MemGuard

        callbacks.append(MemGuard())
    start_ray(1, object_store_memory=100 * 2**20)
    searcher = tune.search.ConcurrencyLimiter(Searcher("loss", "min"), max_concurrent=1)
    grid = tune.Tuner(
        train,
        tune_config=tune.TuneConfig(search_alg=searcher, num_samples=12, reuse_actors=True),
        run_config=tune.RunConfig(
            name="sweep",
            storage_path=str(folder),
            verbose=0,
            stop=Stopper(),
            callbacks=callbacks,
            checkpoint_config=tune.CheckpointConfig(),
        ),
    ).fit()
    for result in grid:
        assert result.config is not None
        result.config["depth"].read()
    said = {
        "stopper": len(SEEN_BY_STOPPER),
        "searcher": len(SEEN_BY_SEARCHER),
        "callback": len(SEEN_BY_CALLBACK),
        "read": len(READ),
        "made": Depth.made,
        "results": len(grid),
    }
    print(json.dumps(said))
    ray.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] == "guarded")
