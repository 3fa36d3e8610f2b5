"""One sweep in which the head node's processes grow.

Beside :class:`HeadNodeReporter` a callback reads ``VmRSS`` of ``gcs_server`` itself: the truth that
the reporter's slope is compared with.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import ray
from ray import tune

from benchmarks import child
from ray_tune_memguard import HeadNodeReporter
from ray_tune_memguard.notices import logger
from tests.integration.own_process import CLUSTER

EVERY_TRIALS = 10


def run_sweep(storage: str, trials: int, watched: bool) -> dict[str, Any]:
    """The slope of ``gcs_server``, what the reporter said, and what its looks cost."""
    child.set_environment(loggers=False)
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    ray.init(**CLUSTER)
    node = ray._private.worker._global_node
    gcs = node.all_processes["gcs_server"][0].process.pid
    truth: list[tuple[int, int]] = []
    lines: list[str] = []

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

    logger.addFilter(lambda record: bool(lines.append(record.getMessage())) or True)
    reporter = HeadNodeReporter()
    callbacks: list[Any] = [Truth(), *([reporter] if watched else [])]
    began = time.monotonic()
    tune.Tuner(
        train,
        tune_config=tune.TuneConfig(num_samples=trials, reuse_actors=True),
        run_config=tune.RunConfig(
            name="head", storage_path=storage, verbose=0, callbacks=callbacks
        ),
    ).fit()
    seconds = time.monotonic() - began
    said = [one for one in reporter.processes() if one.name == "gcs_server"]
    return {
        "seconds": seconds,
        "truth": truth,
        "per_trial": said[0].per_trial if said else None,
        "lines": [line for line in lines if "head node" in line],
        **child.pace_of(reporter._state),
    }


if __name__ == "__main__":
    child.answer(run_sweep)
