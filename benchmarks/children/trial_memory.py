"""What measuring trials costs: the CPU of looks, and the bytes that stay of each trial."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from benchmarks.child import Task
from ray_tune_memguard.cluster import gcs
from ray_tune_memguard.cluster.probe import Answer
from ray_tune_memguard.cluster.trial_memory import TrialMemories

TRIALS = 64
_IDLE = """
import threading, time
for _ in range(30):
    threading.Thread(target=time.sleep, args=(9999,)).start()
"""


class _Probes:
    """Asks this machine, without Ray."""

    def ask(self, node: str, function: Callable[..., Any], *args: object) -> Any:
        answer: Answer[Any] = Answer(node)
        answer.resolve(function(*args))
        return answer


@contextmanager
def _memories(pids: dict[str, int]) -> Iterator[Any]:
    """Measures actors of which the processes are known."""

    def actor_info(actor_id: str) -> gcs.ActorInfo:
        return gcs.ActorInfo(actor_id, pids[actor_id], "node", "worker", "ALIVE")

    memories = TrialMemories()
    memories.measure_with(_Probes(), keeps_actors=False)  # type: ignore[arg-type]
    with mock.patch.object(gcs, "actor_info", actor_info):
        yield memories


def _cost_of_looks(seconds: int) -> float:
    """The share of a core, over so many seconds."""
    processes = [subprocess.Popen([sys.executable, "-c", _IDLE]) for _ in range(TRIALS)]
    try:
        time.sleep(5)
        with _memories({str(one.pid): one.pid for one in processes}) as memories:
            for one in processes:
                memories.start(f"trial {one.pid}", str(one.pid), {})
            memories.look()
            began, cpu = time.monotonic(), time.thread_time()
            for number in range(1, seconds + 1):
                time.sleep(max(0.0, began + number - time.monotonic()))
                memories.look()
            share = (time.thread_time() - cpu) / (time.monotonic() - began)
            assert len(memories.running()) == TRIALS
    finally:
        for one in processes:
            one.kill()
            one.wait()
    return share


def _kept_of_finished_trials(trials: int) -> float:
    """Bytes for each, after the bounded parts are full."""
    with _memories({str(number): os.getpid() for number in range(2 * trials)}) as memories:
        # What the bounded parts drop later counts, too.
        tracemalloc.start()
        traced = []
        for begin in (0, trials):
            for number in range(begin, begin + trials):
                memories.start(f"trial {number}", str(number), {"lr": number / 7})
                memories.look()
                memories.end(f"trial {number}", "completed")
                memories.take_records()
            gc.collect()
            traced.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
    return (traced[1] - traced[0]) / trials


def measure(task: Task) -> dict[str, Any]:
    """Look once a second for as many seconds as the task's size, and at trials that end."""
    trials = max(200, 5000 * task.size // 60)
    return {"share": _cost_of_looks(task.size), "kept": _kept_of_finished_trials(trials)}
