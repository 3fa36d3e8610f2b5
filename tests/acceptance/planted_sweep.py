"""A real sweep with a planted leak, and what the tracker says of it at trial 500, as JSON.

The parent starts it afresh for each plant, as ``python -m tests.acceptance.planted_sweep PLANT``.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import ray
from ray import tune

from benchmarks.child import set_environment, start_ray, write_record
from benchmarks.problem import METRIC, MODE, make_trainable, search_space
from ray_tune_memguard import MemGuard
from tests.acceptance.plants import PLANTS, Plant

#: Of a longer sweep, so that Ray's queue of waiting trials does not drain while it is measured.
JUDGED_AT, TRIALS = 500, 800


class Judge(tune.Callback):
    """Asks the tracker once; then what was really planted."""

    def __init__(self, guard: MemGuard, plant: Plant) -> None:
        self._guard = guard
        self._plant = plant

    def on_step_end(self, iteration: int, trials: Any, **info: Any) -> None:
        if self._plant.planted < JUDGED_AT:
            return
        found = self._guard.tracker.diagnosis()
        record = {"diagnosis": dataclasses.asdict(found), "truth": self._plant.truth()}
        record |= {"name": self._plant.name, "table": str(found)}
        write_record(record)
        # The rest of the sweep has nothing to tell.
        ray.shutdown()
        os._exit(0)


def main() -> None:
    """Run the sweep."""
    plant = PLANTS[sys.argv[1]]()
    set_environment(loggers=True)
    guard = MemGuard(**plant.guard_options)
    with tempfile.TemporaryDirectory(prefix="tmp-") as storage:
        start_ray(Path(storage))
        tune.Tuner(
            make_trainable(1, 0),
            param_space=None if plant.search_alg else search_space(),
            tune_config=tune.TuneConfig(
                metric=METRIC,
                mode=MODE,
                num_samples=TRIALS,
                reuse_actors=True,
                search_alg=plant.search_alg,
                scheduler=plant.scheduler,
                max_concurrent_trials=2 if plant.search_alg else None,
            ),
            run_config=tune.RunConfig(
                storage_path=storage, verbose=0, callbacks=[plant, guard, Judge(guard, plant)]
            ),
        ).fit()


if __name__ == "__main__":
    main()
