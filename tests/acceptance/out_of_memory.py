"""Sweeps in which Ray's memory monitor kills a trial: ``python -m tests.acceptance out-of-memory``.

Each is a sweep of three trials in a process and a Ray cluster of its own, one of which takes memory
until the monitor, whose threshold is set 1.2 GiB above what is in use, kills it. With MemGuard and
with Ray alone, with ``max_failures`` 0, 1 and 3, with fresh and reused actors, in turn. A sweep
survives if ``fit()`` returns, three results are there and after a restore too, and each error says
that the trial was killed for memory. One in which the monitor killed nobody, because other
processes of the machine freed memory meanwhile, does not count and is run again, at most twice.
Ends with 1 if one with MemGuard did not survive.

``--python``: of an environment with another Ray (more than one may be named).
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine, machine_line
from benchmarks.runner import RESULTS_DIRECTORY, positive
from tests.integration.own_process import said_by

MAX_FAILURES = (0, 1, 3)
ACTORS = ("fresh", "reuse")
TIMEOUT_S = 300
ATTEMPTS = 3


def ray_of(python: str) -> str:
    """The version of Ray in an environment.

    Raises:
        RuntimeError: there is none.
    """
    command = [python, "-c", "from importlib.metadata import version; print(version('ray'))"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        raise RuntimeError(f"{python} has no Ray: {error}") from error


def judge(said: dict[str, Any]) -> dict[str, Any]:
    """Whether a sweep survived, and otherwise why not; whether the monitor killed a trial in it."""
    if "raised" in said:
        return {"survived": False, "killed": True, "why": said["raised"].splitlines()[0][:120]}
    both = (said["results"], said["restored"])
    texts = [result["text"] for results in both for result in results if result["text"]]
    survived = all(len(results) == 3 for results in both)
    survived = survived and all("low on memory" in text for text in texts)
    killed = bool(texts or said.get("killed"))
    return {
        "survived": survived,
        "killed": killed,
        "why": "" if survived else f"results: {both}"[:500],
    }


def run(python: str, max_failures: int, actors: str, guarded: bool) -> dict[str, Any]:
    """One sweep in which the monitor killed a trial, or the last of three in which it did not."""
    outcome: dict[str, Any] = {}
    for _ in range(ATTEMPTS):
        with tempfile.TemporaryDirectory(prefix="tmp-") as folder:
            command = ["tests.integration.short_of_memory", folder, str(max_failures), actors]
            command.append("guarded" if guarded else "plain")
            try:
                outcome = judge(said_by(command, TIMEOUT_S, python))
            except RuntimeError as error:
                outcome = {"survived": False, "killed": True, "why": str(error)[-500:]}
        if outcome["killed"]:
            break
    return outcome


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line names; print a row for each Ray and rival."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.acceptance out-of-memory", description=__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--python", nargs="+", default=[sys.executable])
    parser.add_argument("--sweeps", type=positive, default=20, help="with MemGuard, on each Ray")
    parser.add_argument("--alone", type=positive, default=6, help="by Ray alone, on each Ray")
    parser.add_argument("--results", type=Path, default=RESULTS_DIRECTORY)
    arguments = parser.parse_args(argv)
    machine = describe_machine()
    print(machine_line(machine))
    rows = []
    for python in arguments.python:
        for guarded, number in ((False, arguments.alone), (True, arguments.sweeps)):
            cases = itertools.islice(
                itertools.cycle(itertools.product(MAX_FAILURES, ACTORS)), number
            )
            outcomes = [
                {"max_failures": max_failures, "actors": actors}
                | run(python, max_failures, actors, guarded)
                for max_failures, actors in cases
            ]
            row = {"ray": ray_of(python), "guarded": guarded, "outcomes": outcomes}
            rows.append(row)
            survived = sum(outcome["survived"] and outcome["killed"] for outcome in outcomes)
            rival = "MemGuard" if guarded else "Ray alone"
            print(f"Ray {row['ray']:<8} {rival:<10} {survived} of {number} survived", flush=True)
            for why in {outcome["why"] for outcome in outcomes if not outcome["survived"]}:
                print(f"    {why}", flush=True)
            if idle := sum(not outcome["killed"] for outcome in outcomes):
                print(f"    in {idle} the monitor killed nobody", flush=True)
    text = json.dumps({"machine": machine, "rows": rows}, indent=1)
    (arguments.results / "out-of-memory.json").write_text(text + "\n")
    judged = [outcome for row in rows if row["guarded"] for outcome in row["outcomes"]]
    return 0 if all(outcome["survived"] and outcome["killed"] for outcome in judged) else 1
