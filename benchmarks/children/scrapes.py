"""Scrape the metrics of a run with running trials (nothing runs), and a page that is empty.

With the metrics of a node and of Ray's processes on the head beside them. Each scrape is a new
connection, as Prometheus makes at times; the empty page is the cost of HTTP alone.
"""

from __future__ import annotations

import os
import time
import urllib.request
from dataclasses import replace
from typing import Any

from benchmarks.child import Task
from ray_tune_memguard import MetricsExporter
from ray_tune_memguard.cluster.trial_memory import MAX_POINTS, TrialMemories, _Tracked
from ray_tune_memguard.report.metrics import MetricsServer
from ray_tune_memguard.report.readings import NodeLevel, Readings
from ray_tune_memguard.system.process_tree import begin_reading

STATUSES = ("PENDING", "RUNNING", "PAUSED", "TERMINATED", "ERROR")
READINGS = Readings(
    step_time=1.0,
    rss=1.0,
    categories=dict.fromkeys(("python", "native", "slack", "shared"), 1e8),
    trials=dict.fromkeys(STATUSES, 64),
    deaths=dict.fromkeys(("kernel_oom", "ray_memory_monitor", "crash"), 3),
    nodes=[NodeLevel(f"{number:056x}", 0.7, 0.9, False) for number in range(8)],
    gate_actions=dict.fromkeys(("pause", "resume"), 3),
    head=dict.fromkeys(("driver", "gcs_server", "raylet", "dashboard", "log_monitor"), (1e8, 1e8)),
)


def _fill(memories: TrialMemories, trials: int) -> None:
    """Add trials that run, each with as many readings as are kept."""
    reading = begin_reading(os.getpid(), reset=False)
    assert reading is not None
    for number in range(trials):
        tracked = _Tracked(f"{number:08x}", {}, 0.0, node=f"{number % 8:056x}")
        tracked.key = reading.root.key
        for at in range(MAX_POINTS):
            tracked.peaks.add(reading._replace(at=float(at)))
        memories._tracked[tracked.trial_id] = tracked


def _scrapes(url: str, count: int) -> tuple[list[float], int]:
    """The seconds that each of some scrapes took, and the bytes of the last one."""
    found, size = [], 0
    for _ in range(count):
        began = time.perf_counter()
        with urllib.request.urlopen(url, timeout=60) as answer:
            size = len(answer.read())
        found.append(time.perf_counter() - began)
    return found, size


def measure(task: Task, count: int) -> dict[str, Any]:
    """Scrape both pages."""
    empty = MetricsServer("127.0.0.1", 0, lambda: None)
    exporter = MetricsExporter(metrics_port=0)
    exporter.setup()
    state = exporter._state
    assert state is not None
    _fill(state.memories, task.size)
    state.readings = replace(READINGS, step_time=time.time())
    try:
        empty_s, _ = _scrapes(empty.url, count)
        metrics_s, size = _scrapes(state.server.url, count)
    finally:
        empty.stop()
        exporter.stop()
    return {"empty_s": empty_s, "metrics_s": metrics_s, "bytes": size}
