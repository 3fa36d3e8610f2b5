"""Leaks that are planted in a sweep, one at a time, each as a user's code would have it."""

from __future__ import annotations

import ctypes
import gc
import os
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ray import tune
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from ray_tune_memguard.system import allocator
from ray_tune_memguard.system.process import rss_bytes
from ray_tune_memguard.system.pymalloc import pymalloc_use

PAYLOAD = 3000
CACHE: dict[str, bytes] = {}
END = threading.Event()


def in_use() -> int:
    """Bytes that Python's allocator and C's have in use: what clearing a leak makes less."""
    small, counters = pymalloc_use(), allocator.counters()
    return (small.used if small else 0) + counters["uordblks"] + counters["hblkhd"]


class Plant(tune.Callback):
    """Leaks something for every trial. ``name``: how what the report names first is to begin."""

    name = ""
    part = "python"
    guard_options: dict[str, Any] = {}  # noqa: RUF012
    search_alg: Any = None
    scheduler: Any = None

    def __init__(self) -> None:
        self.planted = 0

    def leak(self, trial: Any, result: dict[str, Any]) -> None:
        """Leak for one trial."""

    def clear(self) -> None:
        """Let go of everything that was leaked."""

    def on_trial_result(
        self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        self.planted += 1
        self.leak(trial, result)

    def truth(self) -> float:
        """Bytes that were really planted for each trial: what clearing them makes less."""
        # What a collection sets free, the next one collects.
        for _ in range(3):
            gc.collect()
        before = in_use()
        self.clear()
        return (before - in_use()) / self.planted


class Nothing(Plant):
    """A clean sweep."""

    def truth(self) -> float:
        return 0.0


class Results(Plant):
    """Appends each result."""

    name = "Results.kept"

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Any] = []

    def leak(self, trial: Any, result: dict[str, Any]) -> None:
        self.kept.append({**result, "payload": os.urandom(PAYLOAD)})

    def clear(self) -> None:
        self.kept.clear()


class Trials(Plant):
    """Keeps each Trial."""

    name = "Trials.kept"

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Any] = []

    def leak(self, trial: Any, result: dict[str, Any]) -> None:
        self.kept.append(trial)

    def clear(self) -> None:
        self.kept.clear()


class ModuleGlobal(Plant):
    """A cache in a module, by trial id."""

    name = "tests.acceptance.plants.CACHE"

    def leak(self, trial: Any, result: dict[str, Any]) -> None:
        CACHE[trial.trial_id] = os.urandom(PAYLOAD)

    def clear(self) -> None:
        CACHE.clear()


class Remembering(Searcher):
    """A user's searcher, with a closure that remembers."""

    def __init__(self) -> None:
        super().__init__(metric="score", mode="max")
        self.deal, self.forget = self._make()

    @staticmethod
    def _make() -> tuple[Callable[[], dict[str, Any]], Callable[[], None]]:
        seen: list[dict[str, Any]] = []

        def deal() -> dict[str, Any]:
            number = len(seen)
            config = {"x": number % 7 / 7, "lr": 1e-3, "layers": 1 + number % 8}
            seen.append({**config, "noise": os.urandom(PAYLOAD)})
            return config

        return deal, lambda: seen.clear()

    def suggest(self, trial_id: str) -> dict[str, Any]:
        return self.deal()

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        pass

    def save(self, checkpoint_path: str) -> None:
        pass

    def restore(self, checkpoint_path: str) -> None:
        pass


class Closure(Plant):
    """A closure in a searcher."""

    name = "Remembering."

    def __init__(self) -> None:
        super().__init__()
        self.search_alg = Remembering()

    def clear(self) -> None:
        self.search_alg.forget()


class Noting(FIFOScheduler):
    """A user's scheduler with a table of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: dict[str, Any] = {}

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: Any) -> None:
        self.notes[trial.trial_id] = {"curve": [float(i) for i in range(100)]}


class SchedulerTable(Plant):
    """A dictionary in a scheduler."""

    name = "Noting.notes"

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Noting()

    def clear(self) -> None:
        self.scheduler.notes.clear()


class OpenFiles(Plant):
    """A logger that never closes its files."""

    name = "OpenFiles.files"

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="tmp-"))
        self.files: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def leak(self, trial: Any, result: dict[str, Any]) -> None:
        file = self.files[trial.trial_id] = (self.directory / trial.trial_id).open("w")
        file.write(f"{result}\n")

    def clear(self) -> None:
        for file in self.files.values():
            file.close()
        self.files.clear()


class Threads(Plant):
    """A thread for each trial."""

    name = "threading._active"

    def leak(self, trial: Any, result: dict[str, Any]) -> None:
        threading.Thread(target=END.wait, daemon=True).start()

    def truth(self) -> float:
        """By starting more of them: a stack is not given back when its thread ends."""
        # So many that what Python has free already, and would use first, does not count.
        more = 1000
        allocator.trim()  # Or they would live in what is free already.
        before = rss_bytes()
        for _ in range(more):
            self.leak(None, {})
        time.sleep(0.5)
        found = (rss_bytes() - before) / more
        END.set()
        return found


class Node:
    """Refers to itself."""

    def __init__(self) -> None:
        self.me = self
        self.payload = [float(i) for i in range(100)]

    def __del__(self) -> None:
        self.payload.clear()


class Cycles(Plant):
    """A cycle with ``__del__`` that lives for a while, and then waits for a full collection.

    Longer than it takes until the next one of the younger generations (some fifty trials), which
    would collect those that died before it.
    """

    name = "unreachable tests.acceptance.plants.Node"

    def __init__(self) -> None:
        super().__init__()
        self.latest: deque[Node] = deque(maxlen=120)

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def leak(self, trial: Any, result: dict[str, Any]) -> None:
        self.latest.append(Node())

    def truth(self) -> float:
        """What the collection frees is Ray's, too; so this is what as many more nodes take."""
        gc.collect()
        before = in_use()
        nodes = [Node() for _ in range(1000)]
        return (in_use() - before) / len(nodes)


class Arrays(Plant):
    """A NumPy buffer for each trial."""

    name = "Arrays.kept"
    part = "native"

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Any] = []

    def leak(self, trial: Any, result: dict[str, Any]) -> None:
        self.kept.append(np.ones(4000))

    def clear(self) -> None:
        self.kept.clear()


_C = ctypes.CDLL(None)
_C.malloc.restype = ctypes.c_void_p
_C.malloc.argtypes = [ctypes.c_size_t]
_C.free.argtypes = [ctypes.c_void_p]


def _malloc(size: int) -> int:
    block: int = _C.malloc(size)
    ctypes.memset(block, 1, size)
    return block


def _free(block: int) -> None:
    _C.free(block)


class Malloc(Plant):
    """Native memory that Python does not know of."""

    name = "native memory"
    part = "native"

    def leak(self, trial: Any, result: dict[str, Any]) -> None:
        _malloc(30_000)

    def truth(self) -> float:
        return 30_000.0


class Slack(Plant):
    """Takes a little more memory each time and frees it all, below what stays; nobody trims."""

    name = "allocator slack"
    part = "slack"
    guard_options = {"trim_slack_mib": None}  # noqa: RUF012
    #: Blocks more than the time before. Smaller than what `malloc` maps one by one.
    more, size = 10, 4000

    def __init__(self) -> None:
        super().__init__()
        self.last: int | None = None

    def leak(self, trial: Any, result: dict[str, Any]) -> None:
        blocks = [_malloc(self.size) for _ in range(self.more * self.planted)]
        pin = _malloc(self.size)
        for block in blocks:
            _free(block)
        if self.last is not None:
            _free(self.last)
        self.last = pin

    def truth(self) -> float:
        """What the system gets back."""
        before = rss_bytes()
        allocator.trim()
        return (before - rss_bytes()) / self.planted


class Small(Plant):
    """1 KB for every ten trials."""

    name = "Small.kept"

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[bytes] = []

    def leak(self, trial: Any, result: dict[str, Any]) -> None:
        if self.planted % 10 == 0:
            self.kept.append(os.urandom(1000))

    def clear(self) -> None:
        self.kept.clear()


PLANTS: dict[str, type[Plant]] = {
    plant.__name__: plant
    for plant in (
        Nothing,
        Results,
        Trials,
        ModuleGlobal,
        Closure,
        SchedulerTable,
        OpenFiles,
        Threads,
        Cycles,
        Arrays,
        Malloc,
        Slack,
        Small,
    )
}
