"""From a job to a record, by way of child programs: what a scenario's section does in each run."""

from __future__ import annotations

import itertools
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.baselines import MEMGUARD, RAY, TWO
from benchmarks.child import EXPERIMENT
from benchmarks.children.opening import READS, STREAMS
from benchmarks.metrics import RAYS, WARM_UP, Record, added
from benchmarks.runner import ROOT, ChildFailed, Job
from tests.integration.gated_sweeps import SCHEDULERS
from tests.integration.killed_histories import kill

TIMEOUT_S = 600
#: `hundred-thousand`: results that are read once the experiment is open.
READ = 1000
#: `uploads`: trials at full size.
UPLOADING = 20_000
#: Of big sweeps, Ray alone runs a part.
RAYS_SHARE = 0.1
_LONGEST_KILLED_S = 12.0

Measure = Callable[[Job], Record]


# Sweeps.


def sweep(
    actors: str, *, unit: str = "trials", samples: int = 0, opened: bool = False, **options: Any
) -> Measure:
    """Run a sweep; the options are those of ``children.sweep``.

    Args:
        actors: "fresh", "reused", "simulated" or "simulated reused".
        unit: whether a job's size is "trials", or "results" of one trial.
        samples: how many are taken; 0: one for each 10 trials or 50 results.
        opened: whether what it left is then opened in a process without MemGuard.
    """

    def measure(job: Job) -> Record:
        is_trials = unit == "trials"
        every = job.size // samples if samples else min(10 if is_trials else 50, job.size // 20)
        record = job.run(
            "sweep",
            baseline=job.baseline,
            actors=actors,
            trials=job.size if is_trials else 1,
            results_per_trial=1 if is_trials else job.size,
            seed=job.number,
            storage=str(job.directory / "s"),
            sample_every=max(1, every),
            unit=unit,
            **options,
        )
        record["console"] = _last_count(job.directory / "record.log")
        left = record.pop("experiment_path")
        if opened:
            ray_directory = str(job.directory / "o")
            record["opened"] = job.run(
                "open_with_ray", experiment=left, ray_directory=ray_directory
            )
        return record

    return measure


def _last_count(log: Path) -> str:
    """The console's last line about how many trials have which status."""
    found = re.findall(r"^Trial status: (.*)$", log.read_text(errors="replace"), re.MULTILINE)
    return found[-1] if found else ""


def _expect(trials: int, found: int, what: str) -> None:
    if found != trials:
        raise ChildFailed(f"{what}: {found:,} of {trials:,} trials")


def hundred_thousand(job: Job) -> Record:
    """Run a sweep, open and resume what it left in fresh processes."""
    record = sweep("simulated", samples=500, loggers=False, read="number")(job)
    where: dict[str, Any] = {
        "experiment": str(job.directory / "s" / "results" / EXPERIMENT),
        "guarded": job.baseline == MEMGUARD,
    }
    opening = "open_experiment" if where["guarded"] else "analysis"
    record["reading"] = job.run("opening", how=opening, read=READ, **where)
    record["resuming"] = job.run("opening", how="resume", **where)
    for step in ("reading", "resuming"):
        _expect(job.size, record[step]["trials"], step)
    return record


def uploads(job: Job) -> Record:
    """Run a sweep on an S3 server.

    At full size there is an experiment checkpoint a second; smaller sweeps have as many of them.
    """
    port = job.directory / "port"
    server = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.children.s3_server", str(port)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not (port.exists() and port.read_text()):
            if server.poll() is not None:
                raise ChildFailed("the S3 server has ended; it needs moto[s3] and flask")
            time.sleep(0.1)
        record = job.run(
            "uploads",
            baseline=job.baseline,
            trials=job.size,
            port=port.read_text(),
            directory=str(job.directory),
            every_s=job.size / (UPLOADING * (RAYS_SHARE if job.baseline == RAY else 1)),
        )
    finally:
        server.terminate()
        server.wait()
    _expect(job.size, record["trials"], "in the results")
    return record


def overhead(job: Job) -> Record:
    """Run one sweep, and with MemGuard a second one with clocks on the parts of its work."""

    def run(how: str) -> Record:
        directory = job.directory / how[0]
        directory.mkdir()
        return job.run("overhead", how=how, trials=job.size, directory=str(directory))

    record = run(job.baseline)
    if job.baseline == RAY:
        return record
    record["added"] = added(record["parts"], record.pop("spilled"))
    parts = run("parts")["parts"]
    parts.pop("Ray's checkpoint")
    record["parts"] = {part: float(np.mean(times[WARM_UP:])) for part, times in parts.items()}
    return record


# Experiments that are made once and read several times.


def _make(job: Job, baseline: str, **options: Any) -> Path:
    """Make an experiment of simulated trials in the shared directory; return its path."""
    record = job.run(
        "sweep",
        baseline=baseline,
        actors="simulated",
        trials=job.size,
        storage=str(job.shared / baseline[0]),
        sample_every=job.size,
        **options,
    )
    return Path(record["experiment_path"])


class Step(NamedTuple):
    """One process of `restore`: what it does, with whose experiment."""

    how: str
    made_by: str


#: An experiment that is begun anew, to compare a resumed one with.
NEW = "new"
#: In this order: what resumes an experiment leaves it changed.
STEPS = {
    RAY: {
        "analysis": Step("analysis", RAY),
        "get_results": Step("get_results", RAY),
        "resume": Step("resume", RAY),
        "begin": Step("begin", NEW),
    },
    MEMGUARD: {
        "analysis": Step("analysis", MEMGUARD),
        "get_results": Step("get_results", MEMGUARD),
        RAYS["first"]: Step("open_experiment", RAY),
        RAYS["again"]: Step("open_experiment", RAY),
        RAYS["after"]: Step("analysis", RAY),
        "resume": Step("resume", MEMGUARD),
        "begin": Step("begin", NEW),
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
    for maker in (*TWO, NEW):
        # With Ray's directory for sockets, which goes beside it.
        shutil.rmtree(job.shared / maker[0], ignore_errors=True)
        if maker != NEW and maker in {step.made_by for step in steps.values()}:
            made = job.shared / f"{maker}-made"
            shutil.copytree(made, _place(job, maker), symlinks=True)
    for name, step in steps.items():
        place, guarded = str(_place(job, step.made_by)), job.baseline == MEMGUARD
        record[name] = job.run("opening", how=step.how, experiment=place, guarded=guarded)
        _expect(1 if step.made_by == NEW else job.size, record[name]["trials"], name)
    return record


def _place(job: Job, maker: str) -> Path:
    return job.shared / maker[0] / "results" / EXPERIMENT


def make_frames(job: Job) -> None:
    """Make an experiment, and each trial's ``result.json`` as Ray's logger writes it."""
    experiment = str(_make(job, MEMGUARD, loggers=False, read="number"))
    written = job.run("opening", how="write", experiment=experiment, guarded=True)
    _expect(job.size, written["trials"], "written")


def frames(job: Job) -> Record:
    """Read all results in each of the ways that Ray has; MemGuard streams them, too."""
    record = {}
    where: dict[str, Any] = {
        "experiment": str(_place(job, MEMGUARD)),
        "guarded": job.baseline == MEMGUARD,
    }
    for how in [*READS, *STREAMS] if where["guarded"] else READS:
        record[how] = job.run("opening", how=how, **where)
        _expect(job.size, record[how]["trials"], how)
    return record


# One child program each.


def child(name: str, directory: str = "directory", **options: Any) -> Measure:
    """Run one child program of a job's size; ``directory`` is its name for where it may write."""

    def measure(job: Job) -> Record:
        own: dict[str, Any] = {directory: str(job.directory)} if directory else {}
        return job.run(name, trials=job.size, **own, **options)

    return measure


def watched(name: str, variables: dict[str, str] | None = None, **options: Any) -> Measure:
    """Run a sweep with a reporter, and Ray alone without it."""

    def measure(job: Job) -> Record:
        return job.run(
            name,
            variables=variables,
            timeout_s=TIMEOUT_S,
            storage=str(job.directory),
            trials=job.size,
            watched=job.baseline == MEMGUARD,
            **options,
        )

    return measure


def trial_memory(job: Job) -> Record:
    """Look once a second for as many seconds as the job's size, and at trials that end."""
    return job.run("trial_memory", seconds=job.size, trials=max(200, 5000 * job.size // 60))


def two_nodes(job: Job) -> Record:
    """Measure trials on two nodes, of which one is killed."""
    from tests.integration.own_process import said_by

    command = ["tests.integration.two_nodes", "trials", str(job.directory)]
    said = said_by(command, TIMEOUT_S)
    return {
        "off_by": [2**20 * off for off in said["off_by_mib"]],
        "off_by_after": [2**20 * off for off in said["off_by_mib_after"]],
        "longest_hook_s": said["longest_hook_ms_lost_node"] / 1e3,
    }


def profile(kind: str) -> Measure:
    """Run one trial, with the profile that the baseline takes."""

    def measure(job: Job) -> Record:
        where = str(job.directory)
        return job.run("profile", kind=kind, size=job.size, baseline=job.baseline, directory=where)

    return measure


def kills(job: Job) -> Record:
    """Kill drivers at random moments, and count what is missing afterwards."""
    found = []
    for number in range(job.size):
        moment = random.Random(number).uniform(0.3, _LONGEST_KILLED_S)
        found.append(kill(moment, job.directory / f"k{number}"))
        job.progress.finish(f"kill {number + 1} of {job.size}: {found[-1]}")
        shutil.rmtree(job.directory / f"k{number}", ignore_errors=True)
    return {"kills": found}


# The launch gate.


def _gate(part: str, job: Job, **options: Any) -> Record:
    return job.run("gate", timeout_s=TIMEOUT_S, part=part, folder=str(job.directory), **options)


def toy(job: Job) -> Record:
    """Run trials that grow, with a budget for all of them."""
    return _gate("toy", job, baseline=job.baseline, trials=job.size)


def paused(job: Job) -> Record:
    """Run a driver whose trial waits."""
    return _gate("paused", job)


def ample(job: Job) -> Record:
    """Run a sweep that never waits, with and without the gate."""
    return _gate("ample", job, first=job.number % 2, trials=job.size)


def gated_sweeps(job: Job) -> Record:
    """Run sweeps of all kinds, or some of them; one that fails or hangs is counted."""
    cases = list(itertools.product(SCHEDULERS, (False, True), (None, 2), (False, True)))
    record: Record = {"ended": 0, "pauses": 0, "failures": []}
    for scheduler, reuse, most, two in cases[:: max(1, len(cases) // job.size)]:
        options: dict[str, Any] = {"scheduler": scheduler, "reuse": reuse}
        options |= {"max_concurrent": most, "two_shapes": two}
        try:
            row = _gate("sweep", job, **options)
        except ChildFailed as error:
            record["failures"].append(f"{options}: {error}")
            continue
        # Without a scheduler that decides by time, trials end as without a gate.
        is_same = scheduler != "fifo" or row["outcome"] == row["alone"]
        record["pauses"] += row["pauses"]
        if row["ended"] == row["trials"] and not row["errors"] and is_same:
            record["ended"] += 1
        else:
            record["failures"].append(f"{options}: {row}")
    return record
