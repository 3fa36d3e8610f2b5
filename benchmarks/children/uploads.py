"""Run one sweep of simulated trials on a local S3 server; return what each checkpoint uploaded."""

from __future__ import annotations

import os
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.fs
import ray
from ray import tune
from ray.tune.execution.experiment_state import _ExperimentCheckpointManager

from benchmarks import child
from benchmarks.baselines import BASELINES
from benchmarks.children.s3_server import COUNT
from benchmarks.simulated import install_simulated_actors


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


def run_sweep(
    baseline: str, trials: int, port: str, directory: str, every_s: float
) -> dict[str, Any]:
    """Run a sweep with an experiment checkpoint every so many seconds."""
    child.set_environment(loggers=False)
    os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = str(every_s)
    child.start_ray(Path(directory))
    server = f"127.0.0.1:{port}"
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
    tuner = child.make_tuner(
        trials,
        [*BASELINES[baseline].callbacks(), counts],
        storage_path="bucket/results",
        storage_filesystem=filesystem,
    )
    with install_simulated_actors(results_per_trial=1):
        grid = tuner.fit()
    record = {"trials": len(grid), "checkpoints": checkpoints}
    ray.shutdown()
    return record


if __name__ == "__main__":
    child.answer(run_sweep)
