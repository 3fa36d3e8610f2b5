"""Are verdicts about deaths right? ``python -m tests.acceptance deaths``.

Trials die in eleven ways, and one fails with an ordinary error. Each verdict is right, wrong, or
"cannot be told". A SIGKILL and ``os._exit`` look the same to Ray, so the right verdict names both.
Then a trial takes memory until Ray's memory monitor kills, beside an innocent one, ``--hogs``
times; the culprit must be named, whoever was killed. Beside each verdict stands what Ray's own
error says. Ends with 1 if a verdict or a culprit was wrong.

``--python``: of an environment with another Ray (more than one may be named). The kernel's OOM
killer needs root and cgroups of version 1; the case is left out elsewhere, and that is said.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine, machine_line
from benchmarks.runner import RESULTS_DIRECTORY, positive
from tests.acceptance.out_of_memory import ray_of
from tests.integration.deaths import CAUSES, DETAILS, can_limit
from tests.integration.own_process import said_by

TIMEOUT_S = 900
#: These need a cluster of their own.
ALONE = ("monitor", "node")
#: What Ray's own error says of each cause, in a few words, if it names one.
RAYS_WORDS = {
    "low on memory": "low on memory",
    "receives a SIGTERM": "SIGTERM",
    "exit code": "an exit code",
    "killed by the OOM killer": "OOM killer, ray stop or SIGSEGV",
    "SIGKILL by OOM killer": "OOM killer, ray stop or SIGSEGV",
    "node died": "node died",
    "has died": "died",
    "MemoryError": "MemoryError",
    "CUDA out of memory": "CUDA out of memory",
}


def sweeps(python: str, causes: Sequence[str], repeats: int = 1) -> list[dict[str, Any]]:
    """What the sweeps of one process say; an empty list if it failed, and why is printed."""
    with tempfile.TemporaryDirectory(prefix="tmp-") as folder:
        command = ["tests.integration.deaths", folder, ",".join(causes), str(repeats)]
        try:
            said: list[dict[str, Any]] = said_by(command, TIMEOUT_S, python)
        except RuntimeError as error:
            print(f"    {', '.join(causes)}: {error}", flush=True)
            return []
    return said


def judge(cause: str, said: list[dict[str, Any]]) -> dict[str, Any]:
    """Whether the verdict about one cause is right."""
    deaths = [death for sweep in said for death in sweep["deaths"] if death["provoked"] == cause]
    right = CAUSES[cause]
    if right is None:
        return {"cause": cause, "outcome": "right" if not deaths else "wrong", "verdict": "none"}
    if not deaths:
        ran = any(cause in sweep["trials"] for sweep in said)
        return {"cause": cause, "outcome": "wrong" if ran else "not run", "verdict": "none"}
    death = deaths[-1]
    is_right = death["cause"] == right and death["detail"] == DETAILS.get(cause, death["detail"])
    cannot = death["cause"] == "unknown"
    return {
        "cause": cause,
        "outcome": "right" if is_right else "cannot be told" if cannot else "wrong",
        "verdict": f"{death['cause']} {death['detail']}".strip(),
        "certainty": death["certainty"],
        "evidence": death["evidence"],
        "absent": death["absent"],
        "rays": next((name for text, name in RAYS_WORDS.items() if text in death["error"]), "-"),
        "summary": death["summary"],
    }


def culprits(said: list[dict[str, Any]]) -> list[bool]:
    """For each death beside a hog: whether the hog was named.

    Sweeps in which other processes of the machine took the memory first have none.
    """
    return [
        death["culprit_provoked"] == "monitor"
        for sweep in said
        for death in sweep["deaths"]
        if sweep["has_culprit"]
    ]


def unnamed(said: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The deaths beside a hog of which it was not named, also where others took the memory."""
    deaths = [death for sweep in said for death in sweep["deaths"]]
    return [death for death in deaths if death["culprit_provoked"] != "monitor"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the causes on each Ray; print a row for each cause."""
    parser = argparse.ArgumentParser(prog="python -m tests.acceptance deaths", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--python", nargs="+", default=[sys.executable])
    parser.add_argument("--hogs", type=positive, default=20, help="sweeps with a hog, on each Ray")
    parser.add_argument("--results", type=Path, default=RESULTS_DIRECTORY)
    arguments = parser.parse_args(argv)
    machine = describe_machine()
    print(machine_line(machine))
    rows, is_good = [], True
    for python in arguments.python:
        version = ray_of(python)
        together = [cause for cause in CAUSES if cause not in ALONE]
        if not can_limit():
            together.remove("kernel")
            print("    kernel: needs root and cgroups of version 1; not run")
        said = sweeps(python, together)
        hogs = sweeps(python, ["monitor"], arguments.hogs)
        said += hogs + sweeps(python, ["node"])
        outcomes = [judge(cause, said) for cause in CAUSES]
        named = culprits(hogs)
        counted = sum(sweep["has_culprit"] for sweep in hogs)
        for row in outcomes:
            print(
                f"Ray {version:<8} {row['cause']:<13} {row['outcome']:<15} {row['verdict']:<22} "
                f"{row.get('certainty', ''):<8} Ray alone: {row.get('rays', '-')}",
                flush=True,
            )
        print(
            f"Ray {version:<8} hog beside an innocent trial: culprit named in {sum(named)} of "
            f"{len(named)} deaths, {counted} sweeps; in {len(hogs) - counted} more, other "
            "processes took the memory first",
            flush=True,
        )
        for death in unnamed(hogs):
            print(f"    killed: {death['provoked']}. {death['summary']}", flush=True)
        took = [time for sweep in said for time in sweep["milliseconds"]]
        if took:
            print(
                f"Ray {version:<8} a death takes the driver {statistics.median(took):.0f} ms "
                f"(median of {len(took)}; at most {max(took):.0f} ms, with the imports)",
                flush=True,
            )
        rows.append(
            {
                "milliseconds": took,
                "ray": version,
                "outcomes": outcomes,
                "culprits": named,
                "sweeps": counted,
                "unnamed": unnamed(hogs),
            }
        )
        is_good = is_good and all(named) and bool(named)
        is_good = is_good and all(row["outcome"] != "wrong" for row in outcomes)
    text = json.dumps({"machine": machine, "rows": rows}, indent=1)
    (arguments.results / "deaths.json").write_text(text + "\n")
    return 0 if is_good else 1
