"""Whether the report names planted leaks: ``python -m tests.acceptance planted``.

Each plant of ``plants`` goes into a real sweep of its own with ``MemGuard()``, which is asked at
trial 500. Prints a table and writes ``planted.json``. Ends with 1 if a leak was not named first, or
its slope is more than 15 % off.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine, machine_line
from benchmarks.runner import RESULTS_DIRECTORY, record_of

#: Those of ``plants``, which imports Ray; the parent does not.
PLANT_NAMES = (
    *("Nothing", "Results", "Trials", "ModuleGlobal", "Closure", "SchedulerTable", "OpenFiles"),
    *("Threads", "Cycles", "Arrays", "Malloc", "Slack", "Small"),
)
LARGEST_ERROR = 0.15


def _judge(plant: str, record: dict[str, Any]) -> dict[str, Any]:
    holders = record["diagnosis"]["holders"]
    first = holders[0] if holders else None
    row = {
        "plant": plant,
        "planted": record["truth"],
        "first": first and first["name"],
        "slope": first and first["slope"],
        "uncertainty": first and first["uncertainty"],
        "part": first and first["part"],
        "path": first and first["path"],
        "others": [holder["name"] for holder in holders[1:]],
        "cost_seconds": record["diagnosis"]["cost_seconds"],
    }
    if plant == "Nothing":
        row["kept"] = not holders
    else:
        row["error"] = first and first["slope"] / record["truth"] - 1
        row["kept"] = first is not None and abs(row["error"]) <= LARGEST_ERROR
        row["kept"] = row["kept"] and first["name"].startswith(record["name"])
    return row


def _text(row: dict[str, Any]) -> str:
    if row["first"] is None:
        found = "nothing is named"
    else:
        found = f"{row['first']} ({row['part']}) {row['slope']:,.0f} ± {row['uncertainty']:,.0f} B"
    error = f"{row['error']:+.1%}" if row.get("error") is not None else ""
    others = f"  then {', '.join(row['others'])}" if row["others"] else ""
    kept = "kept" if row["kept"] else "MISSED"
    return f"{row['plant']:<15}{row['planted']:>9,.0f} B  {found}  {error}  {kept}{others}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line names; print each row as it comes."""
    parser = argparse.ArgumentParser(prog="python -m tests.acceptance planted", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--only", nargs="*", choices=PLANT_NAMES, default=PLANT_NAMES)
    parser.add_argument("--results", type=Path, default=RESULTS_DIRECTORY)
    arguments = parser.parse_args(argv)
    machine = describe_machine()
    print(machine_line(machine))
    print(f"{'plant':<15}{'planted':>11}  what the report names first, per trial, at trial 500")
    rows = []
    with tempfile.TemporaryDirectory(prefix="tmp-") as directory:
        for plant in arguments.only:
            rows.append(
                _judge(plant, record_of(["tests.acceptance.planted_sweep", plant], Path(directory)))
            )
            print(_text(rows[-1]), flush=True)
    if len(rows) == len(PLANT_NAMES):
        text = json.dumps({"machine": machine, "rows": rows}, indent=1)
        (arguments.results / "planted.json").write_text(text + "\n")
    return 0 if all(row["kept"] for row in rows) else 1
