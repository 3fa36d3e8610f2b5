"""Sweeps whose launch gate reads the memory of a node that does not exist."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from ray import tune
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    HyperBandScheduler,
    PopulationBasedTraining,
    TrialScheduler,
)
from ray.tune.search.basic_variant import BasicVariantGenerator

from ray_tune_memguard.adapter.handle import RunHandle
from ray_tune_memguard.system.node_memory import (
    MACHINE,
    MemoryLimits,
    MonitorSettings,
    NodeMemory,
)

TOTAL = 1000 * 2**30
SCHEDULERS = ("fifo", "asha", "hyperband", "pbt", "pbt-synch")
ITERATIONS = 6


class FakeMemory:
    """The memory of the driver's node; ``used_share`` says how much of it is used."""

    def __init__(self, own_node: str, used_share: Callable[[], float], total: int = TOTAL) -> None:
        self.own_node = own_node
        self._used_share = used_share
        self._total = total

    def nodes(self) -> list[str]:
        return [self.own_node]

    def limits(self, node: str) -> list[NodeMemory]:
        return self.limits_of_own_node().known()

    def limits_of_own_node(self) -> MemoryLimits:
        used = int(self._used_share() * self._total)
        return MemoryLimits(NodeMemory(used, self._total, MACHINE), None)


@contextmanager
def memory(used_share: Callable[[], float], total: int = TOTAL) -> Iterator[None]:
    """Let every gate of this process read this memory."""
    real = RunHandle.memory_of_nodes

    def fake(run: RunHandle, user: object) -> Any:
        found = real(run, user)
        if found is None:
            return None
        return MonitorSettings(), FakeMemory(found[1].own_node, used_share, total)

    with mock.patch.object(RunHandle, "memory_of_nodes", fake):
        yield


def comes_and_goes(period_s: float = 1.5) -> Callable[[], float]:
    """Another program takes 95 % for a third of the time, and 20 % for the rest."""
    began = time.monotonic()
    return lambda: 0.95 if (time.monotonic() - began) % period_s < period_s / 3 else 0.2


class Counts(tune.Trainable):
    """Counts its steps, keeps them in its checkpoint, and can be reused."""

    def setup(self, config: dict[str, Any]) -> None:
        self.count = 0

    def step(self) -> dict[str, Any]:
        time.sleep(self.config.get("sleep", 0.02))
        self.count += 1
        done = self.count >= ITERATIONS
        return {"count": self.count, "score": self.config["x"] * self.count, "done": done}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        Path(checkpoint_dir, "count.json").write_text(json.dumps(self.count))

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        self.count = json.loads(Path(checkpoint_dir, "count.json").read_text())

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.count = 0
        return True


def reports(config: dict[str, Any]) -> None:
    """Counts on from its checkpoint; saves one with each report."""
    checkpoint = tune.get_checkpoint()
    count = 0
    if checkpoint:
        with checkpoint.as_directory() as folder:
            count = json.loads(Path(folder, "count.json").read_text())
    while count < config.get("iterations", ITERATIONS):
        time.sleep(config.get("sleep", 0.02))
        count += 1
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "count.json").write_text(json.dumps(count))
            tune.report(
                {"count": count, "score": config["x"] * count},
                checkpoint=tune.Checkpoint.from_directory(folder),
            )


def scheduler_named(name: str) -> TrialScheduler:
    if name == "fifo":
        return FIFOScheduler()
    if name == "asha":
        return AsyncHyperBandScheduler(max_t=ITERATIONS, grace_period=2, reduction_factor=2)
    if name == "hyperband":
        return HyperBandScheduler(max_t=ITERATIONS, reduction_factor=2)
    return PopulationBasedTraining(
        time_attr="training_iteration",
        perturbation_interval=2,
        hyperparam_mutations={"x": [1, 2, 3, 4]},
        synch=name == "pbt-synch",
    )


def sweep(
    storage: Path,
    callbacks: list[Any],
    *,
    scheduler: str = "fifo",
    reuse_actors: bool = False,
    max_concurrent: int | None = None,
    two_shapes: bool = False,
    trials: int = 8,
    trainable: Any = Counts,
    space: dict[str, Any] | None = None,
) -> Any:
    """One sweep; its results."""
    cpus: Any = {"CPU": 1}
    if two_shapes:
        cpus = two_resources
    search = BasicVariantGenerator(random_state=7, max_concurrent=max_concurrent or 0)
    return tune.Tuner(
        tune.with_resources(trainable, cpus),
        param_space={"x": tune.choice([1, 2, 3, 4]), **(space or {})},
        tune_config=tune.TuneConfig(
            num_samples=trials,
            scheduler=None if scheduler == "fifo" else scheduler_named(scheduler),
            search_alg=search,
            metric="score",
            mode="max",
            reuse_actors=reuse_actors,
        ),
        run_config=tune.RunConfig(
            name="gated", storage_path=str(storage), verbose=0, callbacks=callbacks
        ),
    ).fit()


def two_resources(config: dict[str, Any]) -> Any:
    return tune.PlacementGroupFactory([{"CPU": 1 + config["x"] % 2}])


def outcome(grid: Any) -> list[tuple[Any, ...]]:
    """What a sweep came to, in the order of its trials."""
    return [
        (result.config["x"], result.metrics.get("count"), result.metrics.get("score"), result.error)
        for result in grid
    ]
