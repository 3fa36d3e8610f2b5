"""Who is measured: Ray alone, what its users can do today, and MemGuard.

Each baseline is the same sweep with other callbacks, or another environment variable. Only those
of this package import it.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from ray.tune import Callback
from ray.tune.execution.tune_controller import TuneController
from ray.tune.logger import LoggerCallback

# What Ray's default loggers keep of a trial that is over.
_KEPT_BY_LOGGERS = ("_trial_configs", "_trial_continue")


def _calling_controller() -> Any:
    """The controller that is calling this callback's ``setup``; Ray hands callbacks none."""
    frame: Any = sys._getframe(1)
    while not isinstance(frame.f_locals.get("self"), TuneController):
        frame = frame.f_back
    return frame.f_locals["self"]


class Forgets(Callback):
    """Takes each trial that is over out of what keeps it, at the end of the step."""

    def __init__(self, *ways: Callable[[Any, Any], None]) -> None:
        self._ways = ways

    def setup(self, **info: Any) -> None:
        """Find the controller."""
        self._controller = _calling_controller()
        self._over: list[Any] = []

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Remember a trial that is over."""
        self._over.append(trial)

    on_trial_error = on_trial_complete

    def on_step_end(self, **info: Any) -> None:
        """Forget those that are over by now."""
        for trial in self._over:
            for forget in self._ways:
                forget(self._controller, trial)
        self._over.clear()


def _in_loggers(controller: Any, trial: Any) -> None:
    """The loggers' part of what was proposed upstream, see ray issue 64231.

    By itself it frees little: the controller has the trials, too.
    """
    for callback in controller._callbacks._callbacks:
        if isinstance(callback, LoggerCallback):
            for name in _KEPT_BY_LOGGERS:
                getattr(callback, name, {}).pop(trial, None)


def _in_controller(controller: Any, trial: Any) -> None:
    """What a user can do in ten lines: drop finished trials from the controller's lists."""
    if trial in controller._trials:
        controller._trials.remove(trial)
    for name in ("_live_trials", "_stopped_trials", "_failed_trials"):
        getattr(controller, name).discard(trial)


def _in_experiment_state(controller: Any, trial: Any) -> None:
    """What Ray would write of a trial. Without it, finished trials are not in the state."""
    controller._trial_metadata.pop(trial.trial_id, None)
    controller._trials_to_cache.discard(trial)
    trial.invalidate_json_state()
    trial.run_metadata.invalidate_cache()


def _ours(name: str, **options: Any) -> Callable[[], Callback]:
    """How to make a callback of this package, which is imported only then."""
    return lambda: getattr(importlib.import_module("ray_tune_memguard"), name)(**options)


_gate = partial(_ours, "LaunchGate", pause=0.95, resume=0.85)


@dataclass(frozen=True)
class Baseline:
    """One way to run a sweep."""

    title: str
    colour: str
    callback: Callable[[], Callback] | None = None
    environment: tuple[tuple[str, str], ...] = ()

    def callbacks(self) -> list[Callback]:
        """Return what it adds to the sweep's callbacks."""
        return [] if self.callback is None else [self.callback()]

    def set_environment(self) -> None:
        """Set its environment variables in this process."""
        os.environ.update(self.environment)


RAY, MEMGUARD = "ray", "memguard"
BASELINES = {
    RAY: Baseline("Ray alone", "#c44e52"),
    "no-loggers": Baseline(
        "no auto loggers",
        "#dd8452",
        environment=(("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1"),),
    ),
    "logger-clean-up": Baseline("logger clean-up", "#937860", partial(Forgets, _in_loggers)),
    "naive-pruner": Baseline("naive pruner", "#8172b3", partial(Forgets, _in_controller)),
    "by-hand": Baseline(
        "both and more",
        "#64b5cd",
        partial(Forgets, _in_controller, _in_loggers, _in_experiment_state),
    ),
    MEMGUARD: Baseline("MemGuard", "#4c72b0", _ours("MemGuard")),
    # Of `histories`.
    "files": Baseline("MemGuard, Ray's loggers", "#8172b3", _ours("MemGuard", histories="files")),
    "store": Baseline("MemGuard, store", "#4c72b0", _ours("MemGuard", histories="store")),
    # Of `gate`.
    "gate": Baseline("gate", "#4c72b0", _gate()),
    "slow-start": Baseline("slow_start", "#64b5cd", _gate(slow_start=True)),
    "memory-per-trial": Baseline("memory_per_trial", "#8172b3", _gate(memory_per_trial="325 MiB")),
    # Of `profile`.
    "profiler": Baseline("MemrayProfiler()", "#4c72b0", _ours("MemrayProfiler")),
    "survive-kill": Baseline(
        "survive_kill=True", "#64b5cd", _ours("MemrayProfiler", survive_kill=True)
    ),
    "native": Baseline("native=True", "#8172b3", _ours("MemrayProfiler", native=True)),
}
#: Ray alone, what its users can do today, and MemGuard.
SIX = (RAY, "no-loggers", "logger-clean-up", "naive-pruner", "by-hand", MEMGUARD)
#: Where nothing finishes, or loggers are off, the others do what Ray does.
TWO = (RAY, MEMGUARD)
HISTORIES = (RAY, "files", "store")
GATES = ("gate", "slow-start", "memory-per-trial")
PROFILES = ("profiler", "survive-kill", "native")
