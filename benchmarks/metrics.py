"""Time of a scrape: ``python -m benchmarks metrics``.

Serves the metrics of a run with 64 running trials (nothing runs), with the metrics of a node and of
Ray's processes on the head beside them, and scrapes them 500 times over HTTP, each through a new
connection, as Prometheus does at times. Prints the median and the 99th percentile, and beside them
those of a page that is empty: the cost of HTTP alone. Ends with 1 if the median of the metrics is
more than 5 ms.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.machine import describe_machine, machine_line
from benchmarks.runs import positive
from ray_tune_memguard import MetricsExporter
from ray_tune_memguard.cluster.trial_memory import MAX_POINTS, TrialMemories, _Tracked
from ray_tune_memguard.report.metrics import MetricsServer
from ray_tune_memguard.report.readings import NodeLevel, Readings
from ray_tune_memguard.system.process_tree import begin_reading

MAX_S = 0.005
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


def fill(memories: TrialMemories, trials: int) -> None:
    """Add trials that run, each with as many readings as are kept."""
    reading = begin_reading(os.getpid(), reset=False)
    assert reading is not None
    for number in range(trials):
        tracked = _Tracked(f"{number:08x}", {}, 0.0, node=f"{number % 8:056x}")
        tracked.key = reading.root.key
        for at in range(MAX_POINTS):
            tracked.peaks.add(reading._replace(at=float(at)))
        memories._tracked[tracked.trial_id] = tracked


def scrapes(url: str, count: int) -> tuple[list[float], int]:
    """The seconds that each of some scrapes took, and the bytes of the last one."""
    found, size = [], 0
    for _ in range(count):
        began = time.perf_counter()
        with urllib.request.urlopen(url, timeout=60) as answer:
            size = len(answer.read())
        found.append(time.perf_counter() - began)
    return found, size


def show(name: str, times: list[float], size: int) -> float:
    median, highest = statistics.median(times), statistics.quantiles(times, n=100)[98]
    print(f"{name:<24}{median * 1e3:6.2f} ms   99 %: {highest * 1e3:6.2f} ms   {size:,} B")
    return median


def main(argv: Sequence[str] | None = None) -> int:
    """Scrape both pages and print a row for each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks metrics", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--trials", type=positive, default=64)
    parser.add_argument("--scrapes", type=positive, default=500)
    parser.add_argument("--results", type=Path, help="where figures go; only printed here")
    arguments = parser.parse_args(argv)
    print(machine_line(describe_machine()))
    empty = MetricsServer("127.0.0.1", 0, lambda: None)
    exporter = MetricsExporter(metrics_port=0)
    exporter.setup()
    state = exporter._state
    assert state is not None
    fill(state.memories, arguments.trials)
    state.readings = replace(READINGS, step_time=time.time())
    try:
        show("an empty page", *scrapes(empty.url, arguments.scrapes))
        median = show(
            f"{arguments.trials} running trials", *scrapes(state.server.url, arguments.scrapes)
        )
    finally:
        empty.stop()
        exporter.stop()
    print("pass" if median <= MAX_S else f"MISS: at most {MAX_S * 1e3:.0f} ms are allowed")
    return 0 if median <= MAX_S else 1
