"""From a job to a record, by way of child programs: what a scenario's section does in each run."""

from __future__ import annotations

import itertools
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.baselines import MEMGUARD, RAY, TWO
from benchmarks.child import EXPERIMENT
from benchmarks.children.opening import READS, STREAMS
from benchmarks.metrics import RAYS, Record
from benchmarks.runner import ChildFailed, Job
from tests.integration.gated_sweeps import SCHEDULERS
from tests.integration.killed_histories import kill
from tests.integration.own_process import said_by

TIMEOUT_S = 600
#: `hundred-thousand`: results that are read once the experiment is open.
READ = 1000
#: `uploads`: trials at full size.
UPLOADING = 20_000
#: Of big sweeps, Ray alone runs a part.
RAYS_SHARE = 0.1
_LONGEST_KILLED_S = 12.0

Measure = Callable[[Job], Record]


def child(program: str, **options: Any) -> Measure:
    """Run one function of a child program with these options, see :meth:`runner.Job.run`."""
    return lambda job: job.run(program, **options)


def _expect(trials: int, found: int, what: str) -> None:
    if found != trials:
        raise ChildFailed(f"{what}: {found:,} of {trials:,} trials")


# Sweeps.


def sweep(actors: str, *, opened: bool = False, **options: Any) -> Measure:
    """Run a sweep with options of ``children.sweep``.

    ``opened``: what it left is then opened in a process without MemGuard.
    """

    def measure(job: Job) -> Record:
        record = job.run("sweep.run_sweep", actors=actors, **options)
        # The console's last line about how many trials have which status.
        log = (job.directory / "record.log").read_text(errors="replace")
        record["console"] = (["", *re.findall(r"(?m)^Trial status: (.*)$", log)])[-1]
        if opened:
            left = str(_experiment(job.directory))
            record["opened"] = job.run("opening.open_with_ray", experiment=left)
        return record

    return measure


def _experiment(directory: Path) -> Path:
    """The experiment that a sweep leaves in a job's directory."""
    return directory / "s" / "results" / EXPERIMENT


def hundred_thousand(job: Job) -> Record:
    """Run a sweep, open and resume what it left in fresh processes."""
    record = sweep("simulated", samples=500, loggers=False, read="number")(job)
    left = str(_experiment(job.directory))
    opening = "open_experiment" if job.baseline == MEMGUARD else "analysis"
    for step, options in {
        "reading": {"how": opening, "read": READ},
        "resuming": {"how": "resume"},
    }.items():
        record[step] = job.run("opening.open_experiment", experiment=left, **options)
        _expect(job.size, record[step]["trials"], step)
    return record


def uploads(job: Job) -> Record:
    """Run a sweep on an S3 server.

    At full size there is an experiment checkpoint a second; smaller sweeps have as many of them.
    """
    every_s = job.size / (UPLOADING * (RAYS_SHARE if job.baseline == RAY else 1))
    options = {"loggers": False, "verbose": 0, "read": "number", "upload_every_s": every_s}
    record = sweep("simulated", **options)(job)
    _expect(job.size, record["outcome"]["len"], "in the results")
    return record


def overhead(job: Job) -> Record:
    """Run one sweep, and with MemGuard a second one with clocks on the parts of its work."""
    record = job.run("overhead.run_sweep")
    if job.baseline == MEMGUARD:
        again = replace(job, directory=job.directory / "p")
        record["parts"] = again.run("overhead.run_sweep", in_parts=True)["parts"]
    return record


# Experiments that are made once and read several times.


def _make(job: Job, baseline: str, **options: Any) -> Path:
    """Make an experiment of simulated trials in the shared directory; return its path."""
    own = replace(job, baseline=baseline, directory=job.shared / baseline)
    own.run("sweep.run_sweep", actors="simulated", samples=1, **options)
    return _experiment(own.directory)


#: An experiment that is begun anew, to compare a resumed one with.
NEW = "new"
#: The processes of `restore`: what each does, and with whose experiment. In this order: what
#: resumes an experiment leaves it changed.
STEPS = {
    RAY: {
        "analysis": ("analysis", RAY),
        "get_results": ("get_results", RAY),
        "resume": ("resume", RAY),
        "begin": ("begin", NEW),
    },
    MEMGUARD: {
        "analysis": ("analysis", MEMGUARD),
        "get_results": ("get_results", MEMGUARD),
        RAYS["first"]: ("open_experiment", RAY),
        RAYS["again"]: ("open_experiment", RAY),
        RAYS["after"]: ("analysis", RAY),
        "resume": ("resume", MEMGUARD),
        "begin": ("begin", NEW),
    },
}


def make_both(job: Job) -> None:
    """Make the same experiment by Ray alone and with MemGuard, and put both aside."""
    for maker in TWO:
        _make(job, maker).rename(job.shared / f"{maker}-made")


def restore(job: Job) -> Record:
    """Take all steps, with fresh copies of the experiments, each where it was made."""
    record = {}
    steps = STEPS[job.baseline]
    places = {maker: _experiment(job.shared / maker) for maker in TWO}
    for maker in {maker for _, maker in steps.values()} - {NEW}:
        shutil.rmtree(places[maker], ignore_errors=True)
        shutil.copytree(job.shared / f"{maker}-made", places[maker], symlinks=True)
    places[NEW] = _experiment(job.directory)
    for name, (how, maker) in steps.items():
        place = str(places[maker])
        record[name] = job.run("opening.open_experiment", how=how, experiment=place)
        _expect(1 if maker == NEW else job.size, record[name]["trials"], name)
    return record


def make_frames(job: Job) -> None:
    """Make an experiment, and each trial's ``result.json`` as Ray's logger writes it."""
    made = str(_make(job, MEMGUARD, loggers=False, read="number"))
    written = job.run("opening.open_experiment", how="write", experiment=made)
    _expect(job.size, written["trials"], "written")


def frames(job: Job) -> Record:
    """Read all results in each of the ways that Ray has; MemGuard streams them, too."""
    record = {}
    made = str(_experiment(job.shared / MEMGUARD))
    for how in [*READS, *STREAMS] if job.baseline == MEMGUARD else READS:
        record[how] = job.run("opening.open_experiment", how=how, experiment=made)
        _expect(job.size, record[how]["trials"], how)
    return record


# What tests run in small.


def two_nodes(job: Job) -> Record:
    """Measure trials on two nodes, of which one is killed."""
    said = said_by(["tests.integration.two_nodes", "trials", str(job.directory)], TIMEOUT_S)
    return {
        "off_by": [2**20 * off for off in said["off_by_mib"]],
        "off_by_after": [2**20 * off for off in said["off_by_mib_after"]],
        "longest_hook_s": said["longest_hook_ms_lost_node"] / 1e3,
    }


def kills(job: Job) -> Record:
    """Kill drivers at random moments, and count what is missing afterwards."""
    found = []
    for number in range(job.size):
        moment = random.Random(number).uniform(0.3, _LONGEST_KILLED_S)
        found.append(kill(moment, job.directory / f"k{number}"))
        job.progress.finish(f"kill {number + 1} of {job.size}: {found[-1]}")
        shutil.rmtree(job.directory / f"k{number}", ignore_errors=True)
    return {"kills": found}


def gated_sweeps(job: Job) -> Record:
    """Run sweeps of all kinds, or some of them; one that fails or hangs is counted."""
    cases = list(itertools.product(SCHEDULERS, (False, True), (None, 2), (False, True)))
    record: Record = {"ended": 0, "pauses": 0, "failures": []}
    for case in cases[:: max(1, len(cases) // job.size)]:
        names = ("scheduler", "reuse_actors", "max_concurrent", "two_shapes")
        options: dict[str, Any] = dict(zip(names, case, strict=True))
        try:
            row = job.run("gate.sweep", timeout_s=TIMEOUT_S, **options)
        except ChildFailed as error:
            record["failures"].append(f"{options}: {error}")
            continue
        # Without a scheduler that decides by time, trials end as without a gate.
        is_same = options["scheduler"] != "fifo" or row["outcome"] == row["alone"]
        record["pauses"] += row["pauses"]
        if row["ended"] == row["trials"] and not row["errors"] and is_same:
            record["ended"] += 1
        else:
            record["failures"].append(f"{options}: {row}")
    return record
