"""Run one sweep of simulated trials on a local S3 server; write what each checkpoint uploaded.

The parent (``benchmarks.uploads``) starts it afresh for each rival.
"""

from __future__ import annotations

import argparse
import os
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.fs
import ray
from ray import tune
from ray.tune.execution.experiment_state import _ExperimentCheckpointManager

from benchmarks.problem import METRIC, MODE, make_trainable, search_space
from benchmarks.rivals import RIVALS
from benchmarks.runs import write_record
from benchmarks.s3_server import COUNT
from benchmarks.simulated import install_simulated_actors
from benchmarks.sweep import set_environment, start_ray


class Counts(tune.Callback):
    """Counts finished trials."""

    finished = 0

    def on_trial_complete(self, **info: Any) -> None:
        """Count one."""
        self.finished += 1


def record_uploads(received: Callable[[], int], counts: Counts) -> list[dict[str, Any]]:
    """Record, before each checkpoint and after the last, the trials and the bytes so far."""
    records: list[dict[str, Any]] = []
    original = _ExperimentCheckpointManager.sync_up_experiment_state

    def sync(self: Any, save_fn: Any, force: bool = False, wait: bool = False) -> None:
        def save() -> None:
            # What came since the last checkpoint is its upload.
            if self._storage.syncer is not None:
                self._storage.syncer.wait()
            records.append({"finished": counts.finished, "bytes": received(), "last": wait})
            save_fn()

        original(self, save_fn=save, force=force, wait=wait)
        if wait:
            records.append({"finished": counts.finished, "bytes": received(), "last": wait})

    _ExperimentCheckpointManager.sync_up_experiment_state = sync
    return records


def main(argv: Sequence[str] | None = None) -> None:
    """Run the sweep that the command line describes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.uploads_child")
    parser.add_argument("rival", choices=list(RIVALS))
    parser.add_argument("trials", type=int)
    parser.add_argument("port", type=int)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--every-s", type=float, required=True)
    arguments = parser.parse_args(argv)
    set_environment(loggers=False)
    os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = str(arguments.every_s)
    RIVALS[arguments.rival].set_environment()
    start_ray(arguments.directory)
    server = f"127.0.0.1:{arguments.port}"
    filesystem = pyarrow.fs.S3FileSystem(
        access_key="any",
        secret_key="any",
        region="us-east-1",
        scheme="http",
        endpoint_override=server,
        allow_bucket_creation=True,
    )
    filesystem.create_dir("bucket")

    def received() -> int:
        with urllib.request.urlopen(f"http://{server}{COUNT}") as answer:
            return int(answer.read())

    counts = Counts()
    checkpoints = record_uploads(received, counts)
    tuner = tune.Tuner(
        make_trainable(1, 0),
        param_space=search_space(),
        tune_config=tune.TuneConfig(metric=METRIC, mode=MODE, num_samples=arguments.trials),
        run_config=tune.RunConfig(
            name=arguments.rival,
            storage_path="bucket/results",
            storage_filesystem=filesystem,
            callbacks=[*RIVALS[arguments.rival].callbacks(), counts],
            verbose=0,
        ),
    )
    with install_simulated_actors(results_per_trial=1):
        grid = tuner.fit()
    record = {"trials": len(grid), "checkpoints": checkpoints}
    ray.shutdown()
    write_record(record)


if __name__ == "__main__":
    main()
