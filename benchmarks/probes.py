"""What is measured inside a sweep: a plain Ray callback, and a clock on experiment checkpoints.

Neither knows of MemGuard, and both are the same for all baselines. Samples go straight to a file,
so the measuring itself keeps nothing in the driver's memory and the parent can follow the sweep.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import psutil
import ray
from ray.tune import Callback
from ray.tune.execution.experiment_state import _ExperimentCheckpointManager


def resident_bytes() -> int:
    """Return this process's resident set size."""
    return psutil.Process().memory_info().rss


def anonymous_bytes(process: psutil.Process) -> int:
    """Return a process's RSS without shared memory, of which the object store is part."""
    memory = process.memory_info()
    return int(memory.rss - memory.shared)


@contextlib.contextmanager
def measured(record: dict[str, Any]) -> Iterator[None]:
    """Add the seconds that the block takes and the bytes that it adds, at its peak and after.

    The peak is the kernel's own (``VmHWM``).
    """
    before = resident_bytes()
    Path("/proc/self/clear_refs").write_text("5")
    started = time.perf_counter()
    yield
    record["seconds"] = time.perf_counter() - started
    record["peak"] = _peak_bytes() - before
    record["rss"] = resident_bytes() - before


def _peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def object_store_bytes() -> int:
    """Return the bytes that objects take in the cluster's object stores, at most 0.2 s old.

    The raylet subtracts what it holds from the ``object_store_memory`` resource: exact to the byte
    and needs no dashboard. The size of ``/dev/shm`` would say nothing, it is allocated ahead.
    """
    total = ray.cluster_resources().get("object_store_memory", 0.0)
    return int(total - ray.available_resources().get("object_store_memory", 0.0))


class Recorder(Callback):
    """Write a sample at the end of a controller step, each time ``every`` more have come in.

    A sample is ``[finished trials, results, RSS, seconds since the start, object-store bytes]``.
    ``unit`` says what is counted: ``"trials"`` or ``"results"``. The step in which the last trial
    finishes is always sampled. Object-store bytes are asked for only with ``watch_store``, since
    that is a call to the raylet.
    """

    def __init__(
        self, path: Path, *, trials: int, every: int, unit: str, watch_store: bool
    ) -> None:
        self.finished = 0
        self.results = 0
        self._path = path
        self._trials = trials
        self._every = every
        self._unit = unit
        self._watch_store = watch_store
        self._sampled = (0, 0)
        self._file: TextIO | None = None

    def setup(self, **info: Any) -> None:
        """Open the file and start the clock (not before: Ray pickles callbacks first)."""
        self._file = self._path.open("w", buffering=1)
        self._started = time.perf_counter()

    def on_trial_result(self, **info: Any) -> None:
        """Count a result."""
        self.results += 1

    def on_trial_complete(self, **info: Any) -> None:
        """Count a trial that completed."""
        self.finished += 1

    def on_trial_error(self, **info: Any) -> None:
        """Count a trial that failed for good."""
        self.finished += 1

    def on_step_end(self, **info: Any) -> None:
        """Write a sample if one is due."""
        now = (self.finished, self.results)
        unit = 0 if self._unit == "trials" else 1
        due = now[unit] - self._sampled[unit] >= self._every
        last = self.finished == self._trials and now != self._sampled
        if not due and not last:
            return
        self._sampled = now
        store = object_store_bytes() if self._watch_store else 0
        seconds = round(time.perf_counter() - self._started, 4)
        sample = [*now, resident_bytes(), seconds, store]
        self._file.write(json.dumps(sample) + "\n")

    def on_experiment_end(self, **info: Any) -> None:
        """Close the file."""
        self._file.close()


def _find_state_file(storage: Any) -> str:
    """Return the path of this run's experiment state file, in the experiment or the staging."""
    found = (
        os.path.join(directory, name)
        for directory in (storage.experiment_fs_path, storage.experiment_driver_staging_path)
        if os.path.isdir(directory)
        for name in os.listdir(directory)
        if name.startswith("experiment_state-") and name.endswith(".json")
    )
    return max(found, key=os.path.basename)


def time_checkpoints(finished: Callable[[], int]) -> list[dict[str, Any]]:
    """Time every experiment checkpoint from now on, into the list that is returned.

    The clock is on the ``save_fn`` that Ray's checkpoint manager is given, whoever gives it, and
    on the manager's whole call, which also waits for an earlier upload when it is forced.
    """
    records: list[dict[str, Any]] = []
    state_file = ""
    original = _ExperimentCheckpointManager.sync_up_experiment_state

    def timed(
        self: Any, save_fn: Callable[[], None], force: bool = False, wait: bool = False
    ) -> None:
        nonlocal state_file
        save_seconds: list[float] = []

        def timed_save() -> None:
            started = time.perf_counter()
            save_fn()
            save_seconds.append(time.perf_counter() - started)

        started = time.perf_counter()
        original(self, save_fn=timed_save, force=force, wait=wait)
        if save_seconds:
            total = time.perf_counter() - started
            state_file = state_file or _find_state_file(self._storage)
            records.append(
                {
                    "finished": finished(),
                    "forced": force,
                    "save_s": round(save_seconds[0], 5),
                    "total_s": round(total, 5),
                    "state_bytes": os.path.getsize(state_file),
                }
            )

    _ExperimentCheckpointManager.sync_up_experiment_state = timed
    return records
