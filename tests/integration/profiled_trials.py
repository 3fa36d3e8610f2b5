"""Trials that allocate a known size on a known line. This module imports no memray.

A worker imports it for its trial, and a trial whose code has imported memray is not profiled.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import tune

SIZE = 80 * 2**20
#: What the trial of each number does in the end.
KINDS = ("plain", "fails", "killed", "own", "plain")


def allocate() -> Any:
    return np.ones(SIZE, dtype=np.uint8)  # The line that counts.


LINE = allocate.__code__.co_firstlineno + 1


def uses_memory(config: dict[str, Any]) -> None:
    kept = allocate()
    tune.report({"score": int(kept[0]) + config["number"]})
    kind = KINDS[config["number"]]
    if kind == "fails":
        raise RuntimeError("planned")
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "own":
        import memray

        with memray.Tracker(Path(tempfile.mkdtemp(), "own.bin")):
            kept = allocate()
        tune.report({"score": -1})


def uses_memory_then_dies_elsewhere(config: dict[str, Any]) -> None:
    """Two trials at once are on both nodes of two, if each node has room for one."""
    kept = allocate()
    tune.report({"score": int(kept[0])})
    if ray.get_runtime_context().get_node_id() != config["own"]:
        os.kill(os.getpid(), signal.SIGKILL)


class InSteps(tune.Trainable):
    """It works in the thread that carries out the actor's calls, and can pause."""

    def setup(self, config: dict[str, Any]) -> None:
        self.kept: list[Any] = []

    def step(self) -> dict[str, Any]:
        self.kept.append(allocate())
        return {"score": self.config["number"], "done": self.training_iteration == 1}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        pass

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        pass


class Hider(InSteps):
    """A trial in whose process memray cannot be imported."""

    def setup(self, config: dict[str, Any]) -> None:
        sys.modules["memray"] = None  # type: ignore[assignment]

    def step(self) -> dict[str, Any]:
        return {"score": self.config["number"], "done": True}
