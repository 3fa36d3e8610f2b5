"""Sweeps on three nodes of which one dies; run in a process of its own by ``test_doctor.py``.

The head has no CPUs. One sweep is driven from it, another one from a worker node, where the
reporter has to ask the head. Prints one JSON object.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_tune_memguard import HeadNodeReporter, read_head_node
from ray_tune_memguard.cluster.doctor import checks, gather
from ray_tune_memguard.cluster.doctor.facts import PlanFacts

MIB = 2**20
TRIALS = 60


class Kills(tune.Callback):
    """Kills a node when half of the trials have finished; goes on when the head has answered."""

    def __init__(self, reporter: HeadNodeReporter, kill: Any = None) -> None:
        self.reporter = reporter
        self.kill = kill
        self.finished = 0
        self.waited_s = 0.0

    def on_step_end(self, *args: object, **kwargs: object) -> None:
        # The small actor on the head takes seconds to start.
        is_half = self.finished >= TRIALS // 2
        if is_half and not self.reporter.processes() and self.waited_s < 60:
            time.sleep(0.5)
            self.waited_s += 0.5

    def on_trial_complete(self, *args: object, **kwargs: object) -> None:
        self.finished += 1
        if self.finished == TRIALS // 2 and self.kill is not None:
            self.kill()


def train(config: dict[str, Any]) -> None:
    tune.report({"i": config["i"]})


def sweep(storage: str, kill: Any = None) -> dict[str, Any]:
    reporter = HeadNodeReporter(head_every_seconds=0.1)
    results = tune.Tuner(
        train,
        param_space={"i": tune.grid_search([*range(TRIALS)])},
        tune_config=tune.TuneConfig(reuse_actors=True),
        run_config=tune.RunConfig(
            name="watched",
            storage_path=storage,
            verbose=0,
            callbacks=[Kills(reporter, kill), reporter],
            failure_config=tune.FailureConfig(max_failures=3),
        ),
    ).fit()
    looks = read_head_node(results.experiment_path)
    return {
        "errors": results.num_errors,
        "results": len(results),
        "processes": sorted(set(looks["process"])),
        "trials": sorted(set(map(int, looks["trials"]))),
        "smallest": int(looks["rss_bytes"].min()),
    }


def examine() -> dict[str, Any]:
    facts = gather.of_cluster(ray.get_runtime_context().gcs_address, PlanFacts())
    return {
        "nodes": len(facts.nodes),
        "cpus": sorted(node.cpus for node in facts.nodes),
        "findings": [finding.check for finding in checks.examine(facts)],
    }


def main(folder: Path) -> None:
    node = {"object_store_memory": 80 * MIB}
    settings = {"health_check_period_ms": 500, "health_check_timeout_ms": 500}
    head = {**node, "num_cpus": 0, "include_dashboard": False, "_system_config": settings}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    cluster.add_node(num_cpus=2, **node)
    second = cluster.add_node(num_cpus=2, **node)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    here = ray.get_runtime_context().get_node_id()
    [worker_node] = {node["NodeID"] for node in ray.nodes()} - {here, second.node_id}
    placed = NodeAffinitySchedulingStrategy(worker_node, soft=False)
    remote: Any = ray.remote(num_cpus=0)(sweep)
    said = {"before": examine()}
    said["elsewhere"] = ray.get(
        remote.options(scheduling_strategy=placed).remote(str(folder / "elsewhere"))
    )
    said["head"] = sweep(
        str(folder / "head"), lambda: cluster.remove_node(second, allow_graceful=False)
    )
    said["after"] = examine()
    print(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
