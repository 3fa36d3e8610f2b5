"""Leak tests as users write them, of things that leak 10 KB per trial and of things that do not.

``python -m tests.acceptance pytest-plugin`` runs them with pytest, all in one process, as users do.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, MutableSequence
from typing import Any

import numpy as np
import pytest
from ray import tune
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from ray_tune_memguard.diagnostics.trend import trend
from ray_tune_memguard.report.series import WARM_UP_TRIALS
from ray_tune_memguard.system import allocator
from ray_tune_memguard.system.process import rss_bytes
from ray_tune_memguard.testing import LeakTest

BYTES_PER_TRIAL = 10_000
#: What has no leak keeps so many of the same things.
MAX_KEPT = 10
_MEASURE_EVERY = 12


def _dicts(number: int) -> Any:
    return [{"step": step, "loss": number / (step + 1)} for step in range(43)]


def _bytes(number: int) -> Any:
    return bytes([number % 256]) * BYTES_PER_TRIAL


def _array(number: int) -> Any:
    return np.full(BYTES_PER_TRIAL // 8, float(number))


def _container(leaks: bool) -> MutableSequence[Any]:
    return [] if leaks else deque(maxlen=MAX_KEPT)


class Watcher(tune.Callback):
    """Keeps something for each trial."""

    def __init__(self, leaks: bool, make: Callable[[int], Any]) -> None:
        self.kept = _container(leaks)
        self._make = make

    def on_trial_complete(self, **info: Any) -> None:
        self.kept.append(self._make(len(self.kept)))


class Learner(Searcher):
    """A searcher that keeps what trials reported."""

    def __init__(self, leaks: bool) -> None:
        super().__init__(metric="score", mode="max")
        self.kept = _container(leaks)

    def suggest(self, trial_id: str) -> dict[str, Any]:
        return {"x": len(self.kept) % 7 / 7}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        self.kept.append({"result": result, "curve": _dicts(len(self.kept))[:36]})

    def save(self, checkpoint_path: str) -> None:
        pass

    def restore(self, checkpoint_path: str) -> None:
        pass


class Judge(FIFOScheduler):
    """A scheduler that keeps a curve of each trial."""

    def __init__(self, leaks: bool) -> None:
        super().__init__()
        self.kept = _container(leaks)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: Any) -> None:
        self.kept.append([float(step) for step in range(245)])


class Others(tune.Callback):
    """What the plugin does not go by: RSS, and what ``malloc`` has in use."""

    def __init__(self) -> None:
        self._finished = 0
        self._values: list[tuple[int, int, int]] = []

    def on_trial_complete(self, **info: Any) -> None:
        self._finished += 1
        if self._finished >= WARM_UP_TRIALS and not self._finished % _MEASURE_EVERY:
            found = allocator.counters()
            used = found["uordblks"] + found["hblkhd"]
            self._values.append((self._finished, rss_bytes(), used))

    def slopes(self) -> dict[str, float]:
        """Bytes per trial."""
        trials, *columns = zip(*self._values, strict=True)
        found = {}
        for name, values in zip(("rss", "malloc"), columns, strict=True):
            grows = trend(trials, values)
            found[name] = grows.slope if grows else 0.0
        return found


CASES: dict[str, Callable[[bool], tuple[list[tune.Callback], dict[str, Any]]]] = {
    "Watcher.kept: dicts": lambda leaks: ([Watcher(leaks, _dicts)], {}),
    "Watcher.kept: bytes": lambda leaks: ([Watcher(leaks, _bytes)], {}),
    "Watcher.kept: arrays": lambda leaks: ([Watcher(leaks, _array)], {}),
    "Learner.kept: results": lambda leaks: ([], {"search_alg": Learner(leaks), "param_space": {}}),
    "Judge.kept: floats": lambda leaks: ([], {"scheduler": Judge(leaks)}),
}


@pytest.mark.memguard(bytes_per_trial="2 KB", trials=300)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("leaks", [True, False])
def test_leaks(
    memguard: LeakTest, case: str, leaks: bool, record_property: Callable[[str, object], None]
) -> None:
    callbacks, options = CASES[case](leaks)
    others = Others()
    began = time.perf_counter()
    memguard.run(*callbacks, others, **options)
    record_property("case", case)
    record_property("leaks", int(leaks))
    record_property("seconds", time.perf_counter() - began)
    found = memguard.callback.measurements[-1].growth
    assert found is not None
    for name in ("slope", "low", "high"):
        record_property(name, getattr(found, name))
    for name, slope in others.slopes().items():
        record_property(name, slope)
