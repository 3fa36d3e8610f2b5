"""A sweep whose results are in one file: its driver is killed, its experiment opened and resumed.

What the driver had received 0.2 s before the kill must be there afterwards.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import ray
from ray import tune

from benchmarks import child
from benchmarks.problem import METRIC, score
from ray_tune_memguard import MemGuard, iter_results
from tests.acceptance.kill_log import LOG_VARIABLE, read_log, write_line
from tests.acceptance.processes import MARK_VARIABLE, end_marked, new_mark
from tests.integration.own_process import ROOT, said_by

SETTLED_S = 0.2
TRIALS = 24
_REPORTED = "T"
_STEPS, _STEP_S = 12, 0.03
_LONGEST_WAIT_S = 300.0


def _steps(config: dict[str, Any]) -> None:
    for step in range(1, _STEPS + 1):
        time.sleep(_STEP_S)
        tune.report({METRIC: score(config, step)})


class Reported(tune.Callback):
    """Writes down what the driver has received. Knows nothing of MemGuard; is the last."""

    def on_trial_result(self, *, trial: Any, result: dict[str, Any], **_: Any) -> None:
        """Write down one result."""
        write_line(_REPORTED, trial.trial_id, result["training_iteration"])

    def __reduce__(self) -> Any:
        return tune.Callback, ()


def begin(storage: Path) -> dict[str, Any]:
    """Run a sweep that is going to be killed."""
    child.set_environment(loggers=True)
    child.start_ray(storage)
    child.make_tuner(
        TRIALS,
        [MemGuard(histories="store"), Reported()],
        trainable=_steps,
        tune_options={"reuse_actors": True},
        storage_path=str(storage / "results"),
    ).fit()
    return {}


def reopen(storage: Path) -> dict[str, Any]:
    """The results in an experiment whose driver was killed, and after it was resumed."""

    def results() -> dict[str, list[int]]:
        found: dict[str, list[int]] = defaultdict(list)
        for result in iter_results(path, columns=["training_iteration"]):
            found[str(result["trial_id"])].append(int(str(result["training_iteration"])))
        return dict(found)

    path = str(storage / "results" / child.EXPERIMENT)
    child.set_environment(loggers=True)
    killed = results()
    child.start_ray(storage / "again")
    grid = tune.Tuner.restore(path, trainable=_steps).fit()
    lengths = [len(result.metrics_dataframe) for result in grid]
    ray.shutdown()
    return {"killed": killed, "resumed": results(), "trials": len(grid), "lengths": lengths}


def kill(after_s: float, directory: Path) -> dict[str, Any]:
    """Kill one sweep, open and resume it, and count what is missing.

    ``after_s``: seconds from the first result to the kill.
    """
    log, storage, mark = directory / "log", directory / "s", new_mark()
    command = [sys.executable, "-m", "tests.integration.killed_histories"]
    own = {LOG_VARIABLE: str(log), MARK_VARIABLE: mark}
    storage.mkdir(parents=True)
    with (directory / "begin.log").open("wb") as output:
        driver = subprocess.Popen(
            [*command, "begin", str(storage)],
            cwd=ROOT,
            env={**os.environ, **own},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + _LONGEST_WAIT_S
        while not log.exists() and driver.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(after_s)
        was_running = driver.poll() is None
        driver.send_signal(signal.SIGKILL)
        killed_at = time.time()
        driver.wait()
    finally:
        end_marked(mark)
    if not log.exists():
        raise RuntimeError((directory / "begin.log").read_text(errors="replace")[-3000:])
    settled = {
        (line.trial_id, int(line.score or 0))
        for line in read_log(log)
        if line.time <= killed_at - SETTLED_S
    }
    found = said_by([*command[2:], "reopen", str(storage)])
    after_kill, at_end = (
        {(trial_id, step) for trial_id, steps in found[when].items() for step in steps}
        for when in ("killed", "resumed")
    )
    return {
        "was_running": was_running,
        "settled": len(settled),
        "lost": len(settled - after_kill),
        "lost_at_end": len(settled - at_end),
        "missing": TRIALS - found["trials"],
        "short_histories": sum(length != _STEPS for length in found["lengths"]),
    }


if __name__ == "__main__":
    act = {"begin": begin, "reopen": reopen}[sys.argv[1]]
    print(json.dumps(act(Path(sys.argv[2]))))
