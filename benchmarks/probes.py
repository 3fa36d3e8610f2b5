"""What is measured inside a process: memory, samples of a sweep, experiment checkpoints, parts.

Nothing here knows of MemGuard, and it is the same for all baselines. Samples go straight to a file,
so the measuring itself keeps nothing in the driver's memory and the parent can follow the sweep.
"""

from __future__ import annotations

import contextlib
import functools
import json
import time
from collections import Counter
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
    record["peak"] = peak_bytes() - before
    record["rss"] = resident_bytes() - before


def peak_bytes() -> int:
    """Return the highest RSS that this process has had, as the kernel has it (``VmHWM``)."""
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

    A sample is ``[finished trials, results, RSS, seconds since the start]`` and what ``more``
    returns. ``unit`` says what is counted: ``"trials"`` or ``"results"``. The step in which the
    last trial finishes is always sampled.
    """

    def __init__(
        self, path: Path, *, trials: int, every: int, unit: str, more: Callable[[], list[int]]
    ) -> None:
        self.finished = 0
        self.results = 0
        self._path = path
        self._trials = trials
        self._every = every
        self._unit = ("trials", "results").index(unit)
        self._more = more
        self._sampled = (0, 0)
        self._file: TextIO | None = None
        #: When Ray has set up its callbacks; its loop begins.
        self.started = 0.0

    def setup(self, **info: Any) -> None:
        """Open the file and start the clock (not before: Ray pickles callbacks first)."""
        self._file = self._path.open("w", buffering=1)
        self.started = time.perf_counter()

    def on_trial_result(self, **info: Any) -> None:
        """Count a result."""
        self.results += 1

    def on_trial_complete(self, **info: Any) -> None:
        """Count a trial that is over."""
        self.finished += 1

    on_trial_error = on_trial_complete

    def on_step_end(self, **info: Any) -> None:
        """Write a sample if one is due."""
        now = (self.finished, self.results)
        due = now[self._unit] - self._sampled[self._unit] >= self._every
        last = self.finished == self._trials and now != self._sampled
        if not due and not last:
            return
        self._sampled = now
        more = self._more()
        seconds = round(time.perf_counter() - self.started, 4)
        self._file.write(json.dumps([*now, resident_bytes(), seconds, *more]) + "\n")

    def on_experiment_end(self, **info: Any) -> None:
        """Close the file."""
        self._file.close()


def _find_state_file(storage: Any) -> Path:
    """Return this run's experiment state file, in the experiment or the driver's staging."""
    places = (storage.experiment_fs_path, storage.experiment_driver_staging_path)
    found = [file for place in places for file in Path(place).glob("experiment_state-*.json")]
    return max(found, key=lambda file: file.name)


def time_checkpoints(
    finished: Callable[[], int], sent: Callable[[], int] | None = None
) -> list[dict[str, Any]]:
    """Time every experiment checkpoint from now on, into the list that is returned.

    The clock is on the ``save_fn`` that Ray's checkpoint manager is given, whoever gives it, and
    on the manager's whole call, which also waits for an earlier upload when it is forced. With
    ``sent``, the bytes that were uploaded before the checkpoint are noted, too.
    """
    records: list[dict[str, Any]] = []
    state_file: Path | None = None
    original = _ExperimentCheckpointManager.sync_up_experiment_state

    def timed(
        self: Any, save_fn: Callable[[], None], force: bool = False, wait: bool = False
    ) -> None:
        nonlocal state_file
        saved: dict[str, Any] = {}

        def timed_save() -> None:
            if sent is not None:
                # What came since the last checkpoint is its upload.
                self._storage.syncer.wait()
                saved["bytes"] = sent()
            began = time.perf_counter()
            save_fn()
            saved["save_s"] = round(time.perf_counter() - began, 5)

        began = time.perf_counter()
        original(self, save_fn=timed_save, force=force, wait=wait)
        if saved:
            total = round(time.perf_counter() - began, 5)
            state_file = state_file or _find_state_file(self._storage)
            own = {"finished": finished(), "forced": force, "last": wait, "total_s": total}
            records.append({**own, **saved, "state_bytes": state_file.stat().st_size})

    _ExperimentCheckpointManager.sync_up_experiment_state = timed
    return records


class Clocks:
    """Seconds by part of the work, since the last trial was over."""

    def __init__(self) -> None:
        self.seconds: Counter[str | None] = Counter()

    def put_on(self, owner: Any, name: str, part: str, without: str | None = None) -> None:
        """Time a method as ``part``; ``without``: another part, called in it, that is not."""
        original = getattr(owner, name)

        @functools.wraps(original)
        def timed(*args: Any, **kwargs: Any) -> Any:
            inner, began = self.seconds[without], time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                took = time.perf_counter() - began
                self.seconds[part] += took - (self.seconds[without] - inner)

        setattr(owner, name, timed)
