"""What opening and resuming a big finished experiment takes: ``python -m benchmarks restore``.

Of each size, two experiments of the same trials (simulated actors, default loggers) are made, one
by Ray alone and one with MemGuard, and then opened by both, each time in a fresh process: until it
is open, until the best trial is found after that, and until there is a DataFrame of all results.
Prints a table and writes ``restore.json``. The bars are those of 10,000 trials.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine
from benchmarks.runs import ROOT, Sweep, record_of, run_child, scratch_directory

MB = 1_000_000


@dataclass(frozen=True)
class Step:
    """One process: what it does with whose experiment."""

    title: str
    how: str
    made_by: str
    guarded: bool
    limit_seconds: float | None = None
    limit_mb: float | None = None
    peak: bool = False


STEPS = (
    Step("ExperimentAnalysis(path): Ray alone", "analysis", "ray", False),
    Step("ExperimentAnalysis(path): MemGuard", "analysis", "memguard", True, 1, 20),
    Step("Tuner.restore(path).get_results(): Ray alone", "get_results", "ray", False),
    Step("Tuner.restore(path).get_results(): MemGuard", "get_results", "memguard", True, 1, 20),
    Step("open_experiment(path) of Ray's, first time", "open_experiment", "ray", True, 6, 60, True),
    Step("open_experiment(path) of Ray's, again", "open_experiment", "ray", True, 1, 20),
    Step("ExperimentAnalysis(path) of Ray's, after that", "analysis", "ray", True, 1, 20),
    Step("resume: Ray alone", "resume", "ray", False),
    Step("resume: MemGuard", "resume", "memguard", True),
    Step("begin anew: Ray alone", "begin", "new-ray", False),
    Step("begin anew: MemGuard", "begin", "new-memguard", True),
)
LARGER_START_MB = 30


def _make(rival: str, trials: int, directory: Path) -> Path:
    print(f"making {trials:,} trials: {rival}", file=sys.stderr, flush=True)
    out = directory / f"{rival}.json"
    arguments = ["--rival", rival, *Sweep("simulated", trials, sample_every=trials).arguments()]
    arguments += ["--storage", str(directory / rival[0]), "--out", str(out)]
    run_child("sweep", arguments, directory / f"{rival}.log", lambda: None)
    return Path(json.loads(out.read_text())["experiment_path"])


def _take(step: Step, experiment: Path, directory: Path) -> dict[str, Any]:
    command = ["benchmarks.restore_child", step.how, str(experiment), "--dataframe"]
    return record_of([*command, *(["--with-memguard"] if step.guarded else [])], directory)


def _row(step: Step, record: dict[str, Any]) -> tuple[str, bool]:
    megabytes = record["peak" if step.peak else "rss"] / MB
    kept = (step.limit_seconds is None or record["seconds"] <= step.limit_seconds) and (
        step.limit_mb is None or megabytes <= step.limit_mb
    )
    bar = ""
    if step.limit_seconds is not None:
        what = "peak" if step.peak else "RSS"
        bar = f"bar {step.limit_seconds:g} s, {step.limit_mb:g} MB {what}: "
        bar += "met" if kept else "MISSED"
    after = [
        f"{name} {record[key]:6.2f} s"
        for name, key in (("best", "seconds_to_best"), ("DataFrame", "seconds_to_dataframe"))
        if key in record
    ]
    return (
        f"{step.title:48} {record['seconds']:7.2f} s  RSS {record['rss'] / MB:+7.1f} MB  "
        f"peak {record['peak'] / MB:7.1f} MB  "
        f"{', '.join(after):34}  {bar}"
    ), kept


def _measure(trials: int, scratch: Path | None) -> tuple[dict[str, dict[str, Any]], bool]:
    """All steps at one size, printed; and whether the bars were kept."""
    print(f"\n{trials:,} trials", flush=True)
    records: dict[str, dict[str, Any]] = {}
    kept = True
    with scratch_directory(scratch) as directory:
        made = {rival: _make(rival, trials, directory) for rival in ("ray", "memguard")}
        for step in STEPS:
            place = made.get(step.made_by, directory / step.made_by / "sweep")
            # Where Ray's directory for sockets goes as well.
            shutil.rmtree(place.parent / "r", ignore_errors=True)
            record = records[step.title] = _take(step, place, directory)
            line, good = _row(step, record)
            kept &= good
            print(line, flush=True)
            expected = 1 if step.how == "begin" else trials
            assert record["trials"] == expected, f"{step.title}: {record['trials']} trials"
    for rival in ("Ray alone", "MemGuard"):
        resumed, fresh = (records[f"{how}: {rival}"] for how in ("resume", "begin anew"))
        larger = (resumed["rss_at_setup"] - fresh["rss_at_setup"]) / MB
        bar = ""
        if rival == "MemGuard":
            kept &= larger <= LARGER_START_MB
            bar = f"bar {LARGER_START_MB} MB: {'met' if larger <= LARGER_START_MB else 'MISSED'}"
        print(f"{rival}: a resumed run starts {larger:+.1f} MB larger than a new one  {bar}")
    return records, kept


def main(argv: Sequence[str] | None = None) -> int:
    """Run all steps at all sizes; 1 if a bar was missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks restore", description=__doc__)
    parser.add_argument("--trials", type=int, nargs="+", default=[1_000, 10_000], help="the sizes")
    parser.add_argument("--scratch", type=Path, help="a short path on a local disk")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args(argv)
    machine = describe_machine()
    print("\nrestore: opening and resuming a finished experiment")
    print(", ".join(f"{key} {value}" for key, value in machine.items()), flush=True)
    sizes: dict[int, dict[str, dict[str, Any]]] = {}
    kept = True
    for trials in arguments.trials:
        sizes[trials], good = _measure(trials, arguments.scratch)
        kept &= good
    arguments.results.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"machine": machine, "trials": sizes}, indent=1)
    (arguments.results / "restore.json").write_text(text + "\n")
    return 0 if kept else 1
