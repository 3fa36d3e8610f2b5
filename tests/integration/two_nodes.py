"""Two nodes on one machine, of which the second dies; run in a process of its own by the tests.

Prints one JSON object for each part.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.cluster_utils import Cluster

from ray_tune_memguard.cluster import probe
from ray_tune_memguard.cluster.probe import Answer, NoAnswerError, NodeProbes
from ray_tune_memguard.notices import Notices, logger

MIB = 2**20


@contextmanager
def two_nodes() -> Iterator[tuple[Cluster, Any]]:
    """A cluster, and its second node. The driver is on the first one."""
    node = {"num_cpus": 2, "object_store_memory": 80 * MIB, "include_dashboard": False}
    # A node that is gone is noticed within seconds.
    settings = {"health_check_period_ms": 500, "health_check_timeout_ms": 500}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "_system_config": settings})
    second = cluster.add_node(num_cpus=2, object_store_memory=80 * MIB)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
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
        lost = until(lambda value: not isinstance(value, int), probes, other)
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


PARTS = {"probes": ask_a_node_that_dies}

if __name__ == "__main__":
    print(json.dumps(PARTS[sys.argv[1]]()))
