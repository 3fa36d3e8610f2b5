"""Write the records that a big sweep leaves (nothing runs), and make the page of them.

The page is made in a process of its own. Times are CPU times, so that they say something on a busy
machine as well; the command waits for nothing.
"""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.child import Task
from ray_tune_memguard.diagnostics.deaths.record import MemoryUser
from ray_tune_memguard.diagnostics.diagnosis import Diagnosis
from ray_tune_memguard.diagnostics.findings import GrowingSite, Quantity
from ray_tune_memguard.diagnostics.growth import GrowthRow
from ray_tune_memguard.report.gate_records import GateRecord
from ray_tune_memguard.report.head_records import HeadRecord
from ray_tune_memguard.report.records import RecordFile
from ray_tune_memguard.report.series import RssPoint, RssSeries
from ray_tune_memguard.report.series_file import SeriesFile
from tests.unit.measured_experiments import RUN, death, trial_memory

MIB, GIB = 2**20, 2**30
BEGIN = 1_795_000_000.0
SITE, SITE_SLOPE = "Dashboard.history", 2600


def _write_node(own: Path, trials: int) -> None:
    gate = RecordFile(own / f"gate-{RUN}.jsonl")
    for number in range(trials // 10, trials, trials // 6):
        at, until = BEGIN + 2 * number, BEGIN + 2.1 * number
        gate.add(GateRecord(at, "pause", "node", "93 % is in use", 30 * GIB, 32 * GIB, running=7))
        gate.add(GateRecord(until, "resume", "node", "70 % is in use", 22 * GIB, 32 * GIB))
    head = RecordFile(own / f"head-{RUN}.jsonl")
    for number in range(0, trials + 1, max(1, trials // 100)):
        gcs = 50 * MIB + 9000 * number
        processes = {"gcs_server": (gcs + 40 * MIB, gcs), "raylet": (110 * MIB, 60 * MIB)}
        head.add(HeadRecord(BEGIN + 2 * number, number, processes))


def _write_driver(own: Path, trials: int, chance: random.Random) -> None:
    series = RssSeries(own / f"rss-{RUN}.csv")
    growth = SeriesFile(own / f"growth-{RUN}.csv", GrowthRow)
    for number in range(0, trials + 1, 25):
        parts = {
            "python": 60 * MIB + 3000 * number,
            "native": (100 - 20 * math.exp(-number / 500)) * MIB,
            "slack": chance.uniform(0, 12) * MIB,
            "shared": 70 * MIB,
        }
        rss, now = sum(parts.values()), BEGIN + 2 * number
        rows = [("part", name, value) for name, value in {"rss": rss, **parts}.items()]
        rows += [("holder", f"module{index}.cache", 1000.0 * index) for index in range(60)]
        rows.append(("holder", SITE, SITE_SLOPE * number))
        growth.add([GrowthRow(now, number, 3 * number, *row) for row in rows])
        if number % 100 == 0:
            series.add(RssPoint(now, number, number - number // 50, number // 50, int(rss)))
    Diagnosis(
        trials,
        3 * trials,
        span=trials - 100,
        is_judged=True,
        parts=[Quantity("rss", 300 * MIB, 3100.0, 50.0)],
        holders=[GrowingSite(SITE, "python", SITE_SLOPE, 20.0, SITE_SLOPE * trials)],
    ).save(own / f"diagnosis-{RUN}.json")


def _write_trials(own: Path, trials: int, chance: random.Random) -> None:
    memories = RecordFile(own / f"trial-memory-{RUN}.jsonl")
    deaths = RecordFile(own / f"deaths-{RUN}.jsonl")
    for number in range(trials):
        layers, batch = chance.choice((2, 4, 8, 16, 32)), chance.choice((16, 32, 64, 128))
        peak = int((250 + 0.25 * layers * batch + chance.gauss(0, 20)) * MIB)
        began, is_failed = BEGIN + 2 * number, number % 50 == 7
        memory = replace(
            trial_memory(number),
            end="error" if is_failed else "completed",
            peak_rss_bytes=peak,
            peak_anonymous_bytes=peak - 60 * MIB,
            growth_bytes_per_s=chance.uniform(0, 1e5),
            started=began,
            ended=began + 8 + layers / 2,
            config={
                "layers": layers,
                "batch_size": batch,
                "lr": 10 ** chance.uniform(-5, -1),
                "dropout": chance.random(),
                "optimizer": "adam",
            },
        )
        memories.add(memory)
        if is_failed:
            cause = chance.choice(("kernel_oom", "ray_memory_monitor", "crash"))
            died = replace(death(), time=began + 8, trial_id=memory.trial_id, cause=cause)
            culprit = MemoryUser(1, 2 * GIB, "train_t00000")
            deaths.add(replace(died, size_bytes=peak, culprit=culprit))


def _cpu_seconds(*arguments: str) -> float:
    """The CPU seconds that a Python process takes."""
    began = os.times()
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    ended = os.times()
    return sum(ended[2:4]) - sum(began[2:4])


def measure(task: Task) -> dict[str, Any]:
    """Make the page once, and import what it needs once."""
    experiment, page = task.directory / "sweep", task.directory / "memguard-report.html"
    own, chance = experiment / ".memguard", random.Random(0)
    own.mkdir(parents=True)
    _write_driver(own, task.size, chance)
    _write_trials(own, task.size, chance)
    _write_node(own, task.size)
    script = "from ray_tune_memguard_command import main; main()"
    return {
        "import_s": _cpu_seconds("-c", "import ray_tune_memguard"),
        "command_s": _cpu_seconds("-c", script, "report", str(experiment), "-o", str(page)),
        "bytes": page.stat().st_size,
    }
