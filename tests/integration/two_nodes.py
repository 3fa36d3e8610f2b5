"""Two nodes on one machine, of which the second dies; run in a process of its own by the tests.

Prints one JSON object for each part.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import ray
from ray import tune
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_tune_memguard import (
    Keeper,
    KeptLostError,
    LaunchGate,
    MemGuard,
    MemrayProfiler,
    TrialMemoryReporter,
    read_deaths,
    read_gate,
    read_head_node,
    read_object_store,
    read_profiles,
    read_trial_memory,
)
from ray_tune_memguard.cluster import probe
from ray_tune_memguard.cluster.node_readings import ClusterMemory
from ray_tune_memguard.cluster.probe import Answer, NoAnswerError, NodeProbes
from ray_tune_memguard.notices import Notices, logger
from ray_tune_memguard.report.memray_file import read_peak
from ray_tune_memguard.system.node_memory import MACHINE, NodeMemory
from tests.integration import own_process
from tests.integration.memory_users import take, uses_memory
from tests.integration.profiled_trials import uses_memory_then_dies_elsewhere

MIB = 2**20


@contextmanager
def two_nodes(head_cpus: int = 2) -> Iterator[tuple[Cluster, Any]]:
    """A cluster, and its second node. The driver is on the first one, the head."""
    node = {"num_cpus": head_cpus, "object_store_memory": 80 * MIB, "include_dashboard": False}
    # A node that is gone is noticed within seconds.
    settings = {"health_check_period_ms": 500, "health_check_timeout_ms": 500}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "_system_config": settings})
    # While there is no other one, the driver cannot but connect to the head.
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    second = cluster.add_node(num_cpus=2, object_store_memory=80 * MIB)
    try:
        yield cluster, second
    finally:
        ray.shutdown()
        cluster.shutdown()


def outcome(answer: Answer[Any]) -> Any:
    assert answer.is_ready(60), "no answer"
    try:
        return answer.get()
    except NoAnswerError as error:
        return type(error.__cause__).__name__


def until(is_right: Callable[[Any], bool], probes: NodeProbes, node: str) -> Any:
    """The first answer of a node that is right; the last one if none is."""
    for _ in range(150):
        answer = outcome(probes.ask(node, os.getpid))
        if is_right(answer):
            break
        time.sleep(0.2)
    return answer


def refuse(self: object) -> None:
    raise ModuleNotFoundError("planned")


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def ask_a_node_that_dies() -> dict[str, Any]:
    kept = Kept()
    logger.addHandler(kept)
    with two_nodes() as (cluster, second):
        probes = NodeProbes(Notices()).take("test")
        others = [node for node in probes.nodes() if node != probes.own_node]
        [other] = others
        answers = probes.ask_all(os.getpid)
        own_is_ready = answers[probes.own_node].is_ready()
        pid = outcome(answers[other])
        wrong = outcome(probes.ask(other, int, "no number"))
        died = outcome(probes.ask(other, os._exit, 1))
        again = until(lambda value: isinstance(value, int), probes, other)
        cluster.remove_node(second, allow_graceful=False)
        lost = until(lambda _: bool(kept.lines), probes, other)
        of_a_lost_node = list(kept.lines)

        # A node whose probe cannot start.
        cluster.add_node(num_cpus=1, object_store_memory=80 * MIB)
        probe.NodeProbe.__init__ = refuse  # type: ignore[method-assign]
        nodes = {node["NodeID"] for node in ray.nodes() if node["Alive"]} - {probes.own_node}
        [third] = nodes
        refused = [outcome(probes.ask(third, os.getpid)) for _ in range(3)]
        probes.give_back("test")
        closed = outcome(probes.ask(third, os.getpid))
        return {
            "own_is_ready": own_is_ready,
            "own_pid": answers[probes.own_node].get() == os.getpid(),
            "other_pid": isinstance(pid, int) and pid != os.getpid(),
            "wrong": wrong,
            "died": died,
            "restarted": isinstance(again, int) and again != pid,
            "lost": lost,
            "lines_of_a_lost_node": of_a_lost_node,
            "refused": [isinstance(value, int) for value in refused].count(True),
            "lines": kept.lines,
            "closed": closed,
        }


@ray.remote(num_cpus=0.1)
def keep(keeper: Keeper, number: float) -> Any:
    return keeper.keep(np.full(MIB, number))


@ray.remote(num_cpus=0.1)
def make(number: float) -> Any:
    return np.full(MIB, number)


def lost(kept: Any) -> str:
    try:
        return f"{kept.get(timeout_s=60)[0]} was read"
    except KeptLostError as error:
        return str(error).partition("because ")[2]


def is_kept_here() -> bool:
    with Keeper() as keeper:
        return keeper.keep(1).node == ray.get_runtime_context().get_node_id()


def keep_on_a_node_that_dies() -> dict[str, Any]:
    with two_nodes() as (cluster, second), Keeper() as keeper:
        are_here = [is_kept_here() for _ in range(6)]
        there = NodeAffinitySchedulingStrategy(second.node_id, soft=True)
        here = keeper.keep(np.full(MIB, 1.0))
        elsewhere = ray.get(keep.options(scheduling_strategy=there).remote(keeper, 2.0))
        is_there = elsewhere.node == second.node_id
        read = elsewhere.get()[0]

        # The keeper's process on that node.
        ray.kill(ray.get_actor("keeper-1", f"memguard-{elsewhere.keeper}"))
        of_process = lost(elsewhere)
        again = ray.get(keep.options(scheduling_strategy=there).remote(keeper, 3.0))
        of_task = keeper.run(make.options(scheduling_strategy=there), 4.0)
        while keeper.held()["bytes"].isna().any():
            time.sleep(0.1)
        held = len(keeper.held())

        cluster.remove_node(second, allow_graceful=False)
        # Until Ray knows, the value may still be readable.
        while any(one["Alive"] for one in ray.nodes() if one["NodeID"] == second.node_id):
            time.sleep(0.1)
        return {
            "are_here": are_here,
            "is_there": is_there,
            "read": read,
            "of_process": of_process,
            "held": held,
            "of_node": lost(again),
            "held_then": len(keeper.held()),
            "here": here.get()[0],
            "made_again": lost(of_task),
            "node": second.node_id,
        }


class Timed(TrialMemoryReporter):
    """Notes how long its hooks keep a step waiting."""

    longest_s = 0.0

    def _timed(self, hook: Callable[..., None], *args: Any, **info: Any) -> None:
        began = time.perf_counter()
        hook(*args, **info)
        Timed.longest_s = max(Timed.longest_s, time.perf_counter() - began)

    def on_trial_start(self, *args: Any, **info: Any) -> None:
        self._timed(super().on_trial_start, *args, **info)

    def on_step_end(self, *args: Any, **info: Any) -> None:
        self._timed(super().on_step_end, *args, **info)

    def on_trial_complete(self, *args: Any, **info: Any) -> None:
        self._timed(super().on_trial_complete, *args, **info)

    def on_trial_error(self, *args: Any, **info: Any) -> None:
        self._timed(super().on_trial_error, *args, **info)


class WaitForProbes(tune.Callback):
    """Lets trials start when all nodes answer: on a busy machine a probe takes long to start."""

    def __init__(self, reporter: TrialMemoryReporter) -> None:
        self._reporter = reporter

    def setup(self, **info: Any) -> None:
        probes = self._reporter.run.node_probes(self)
        assert probes is not None
        for answer in probes.ask_all(os.getpid).values():
            assert answer.is_ready(150)
        probes.give_back(self)


class Kill(tune.Callback):
    """Kills the second node once trials on it have been looked at."""

    def __init__(self, cluster: Cluster, second: Any, reporter: tune.Callback) -> None:
        self.killed: list[str] = []
        self.at = 0.0
        self._node = second.node_id
        self._kill = lambda: cluster.remove_node(second, allow_graceful=False)
        self._reporter = reporter

    def __reduce__(self) -> Any:  # The cluster does not pickle.
        return tune.Callback, ()

    def on_step_end(self, **info: Any) -> None:
        if not self.killed:
            uses = self._reporter.run.trial_memory().running()
            self.killed = [use.trial_id for use in uses if use.node == self._node]
            if self.killed:
                self._kill()
                self.at = time.time()


def measure_trials_on_both(folder: str) -> dict[str, Any]:
    def fit(name: str, kind: str, callbacks: list[Any]) -> tuple[Any, Any]:
        tuner = tune.Tuner(
            uses_memory,
            param_space={"size": tune.grid_search([20, 60, 100, 140]), "kind": kind},
            run_config=tune.RunConfig(
                name=name,
                storage_path=folder,
                verbose=0,
                callbacks=callbacks,
                failure_config=tune.FailureConfig(max_failures=3),
            ),
        )
        return tuner.fit(), read_trial_memory(f"{folder}/{name}")

    def off_by(grid: Any, memory: Any) -> list[float]:
        """How far each peak is from what its trial saw, in MiB."""
        truth = {result.metrics["trial_id"]: result.metrics["rss"] for result in grid}
        return [abs(row.peak_rss_bytes - truth[row.trial_id]) / MIB for row in memory.itertuples()]

    with two_nodes() as (cluster, second):
        own = ray.get_runtime_context().get_node_id()
        reporter = Timed()
        grid, memory = fit("whole", "short", [reporter, WaitForProbes(reporter)])
        said = {
            "nodes": memory["node"].nunique(),
            "exact": memory[memory["node"] == own]["is_exact"].tolist(),
            "off_by_mib": off_by(grid, memory),
            "longest_hook_ms": Timed.longest_s * 1000,
        }
        Timed.longest_s = 0.0
        reporter = Timed()
        kill = Kill(cluster, second, reporter)
        grid, memory = fit("lost", "level", [reporter, WaitForProbes(reporter), kill])
        again = memory[memory["starts"] > 1]
        return said | {
            "killed": sorted(kill.killed),
            "started_again": sorted(again["trial_id"]),
            "errors": grid.num_errors,
            "off_by_mib_after": off_by(grid, memory),
            "longest_hook_ms_lost_node": Timed.longest_s * 1000,
        }


def says_where(config: dict[str, Any]) -> None:
    began = time.time()
    time.sleep(config["sleep"])
    node = ray.get_runtime_context().get_node_id()
    tune.report({"node": node, "began": began, "ended": time.time()})


def gate_with_a_full_node() -> dict[str, Any]:
    """The driver's node is full, so it runs one trial after the other; the second node is not."""
    real = ClusterMemory.limits

    def limits(memory: ClusterMemory, node: str) -> Any:
        found = real(memory, node)
        return [NodeMemory(97, 100, MACHINE)] if node == memory.own_node else found

    with (
        two_nodes(),
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(ClusterMemory, "limits", limits),
    ):
        own = ray.get_runtime_context().get_node_id()
        grid = tune.Tuner(
            says_where,
            param_space={"sleep": tune.grid_search([0.5] * 6)},
            run_config=tune.RunConfig(
                name="gate", storage_path=folder, verbose=0, callbacks=[LaunchGate()]
            ),
        ).fit()
        records = read_gate(Path(folder, "gate"))
    on_own = sorted(
        (result.metrics["began"], result.metrics["ended"])
        for result in grid
        if result.metrics["node"] == own
    )
    return {
        "errors": len(grid.errors),
        "trials": len(grid),
        "elsewhere": len(grid) - len(on_own),
        "overlaps_on_own": sum(late[0] < early[1] for early, late in itertools.pairwise(on_own)),
        "paused_elsewhere": [record.node for record in records if record.node != own],
        "pauses": [record.action for record in records].count("pause"),
    }


def holds(config: dict[str, Any], keeper: Keeper) -> None:
    """Keeps an array, and holds memory for some time."""
    keeper.keep(np.full(MIB // 8, config["number"], dtype=np.float64))
    held = take(30)
    time.sleep(1.5 if config["number"] < 8 else 0.1)
    tune.report({"node": ray.get_runtime_context().get_node_id(), "bytes": len(held)})


def examined(address: str) -> tuple[int, dict[str, Any]]:
    """Exit code and findings of the doctor."""
    command = ["ray_tune_memguard", "doctor", "--address", address, "--json"]
    done = own_process.run(command)
    return done.returncode, json.loads(done.stdout)


def lose_a_node_in_a_whole_sweep(folder: str) -> dict[str, Any]:
    """The head runs no trials, and one of two other nodes is killed in mid-sweep."""
    kept = Kept()
    with two_nodes(head_cpus=0) as (cluster, second), Keeper() as keeper:
        third = cluster.add_node(num_cpus=2, object_store_memory=80 * MIB)
        logger.addHandler(kept)
        before = examined(cluster.address)
        guard = MemGuard(head_every_seconds=0.2, objects_every_seconds=0.2)
        kill = Kill(cluster, second, guard)
        grid = tune.Tuner(
            tune.with_parameters(holds, keeper=keeper),
            param_space={"number": tune.grid_search(list(range(40)))},
            tune_config=tune.TuneConfig(reuse_actors=True),
            run_config=tune.RunConfig(
                name="lost",
                storage_path=folder,
                verbose=0,
                callbacks=[guard, WaitForProbes(guard), kill],
                failure_config=tune.FailureConfig(max_failures=3),
            ),
        ).fit()
        path = Path(folder, "lost")
        head, stores = read_head_node(path), read_object_store(path)
        held = keeper.held()
        after = examined(cluster.address)
        return {
            "results": len(grid),
            "errors": grid.num_errors,
            "killed": len(kill.killed),
            "ran_on_the_head": sum(
                r.metrics["node"] == ray.get_runtime_context().get_node_id() for r in grid
            ),
            "verdicts": sorted({death.cause for death in read_deaths(path)}),
            "measured": len(read_trial_memory(path)),
            "looks_after": [int((part["time"] > kill.at).sum()) for part in (head, stores)],
            "capacity": int(stores["capacity_bytes"].iloc[-1]) // MIB,
            "held_on": sorted(held["node"].unique()),
            "third": third.node_id,
            "before": before,
            "after": after,
            "lines": [line for line in kept.lines if "has left the cluster" in line],
        }


def profile_trials_on_both() -> dict[str, Any]:
    """The trial on the other node is killed; its profile comes through the probe."""
    with two_nodes(), tempfile.TemporaryDirectory() as folder:
        own = ray.get_runtime_context().get_node_id()
        grid = tune.Tuner(
            tune.with_resources(uses_memory_then_dies_elsewhere, {"cpu": 2}),
            param_space={"own": own, "number": tune.grid_search([0, 1])},
            run_config=tune.RunConfig(
                name="profiles",
                storage_path=folder,
                verbose=0,
                callbacks=[MemrayProfiler(2, survive_kill=True)],
            ),
        ).fit()
        profiles = read_profiles(grid.experiment_path)
        lines = [read_peak(Path(grid.experiment_path, one.file)).lines[0] for one in profiles]
        return {
            "errors": len(grid.errors),
            "nodes": len({one.node for one in profiles}),
            "states": {one.node == own: one.state for one in profiles},
            "lines": [line.line for line in lines],
            "shares": [line.share for line in lines],
        }


PARTS: dict[str, Callable[..., dict[str, Any]]] = {
    "probes": ask_a_node_that_dies,
    "keeper": keep_on_a_node_that_dies,
    "trials": measure_trials_on_both,
    "gate": gate_with_a_full_node,
    "sweep": lose_a_node_in_a_whole_sweep,
    "profiles": profile_trials_on_both,
}

if __name__ == "__main__":
    print(json.dumps(PARTS[sys.argv[1]](*sys.argv[2:])))
