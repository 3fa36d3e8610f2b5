"""What MemGuard adds to a driver's time per trial: ``python -m benchmarks overhead``.

Simulated actors, no loggers, so that what is Ray's own is small. A clock is on every hook of
MemGuard's, and on its experiment checkpoint without what Ray does in it; what MemGuard saves Ray is
not deducted. Trials that finish in quick succession are spilled together: the time of a spill is
shared out evenly among its trials. In a sweep of their own there are clocks on the parts as well,
which themselves take a tenth of it. Ray alone runs the same sweep, for what a trial takes there.
Then it measures what it takes to read a spilled trial back, and its room on disk. Prints a table,
and writes ``overhead.json`` and ``.png``.
"""

from __future__ import annotations

import argparse
import functools
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine, machine_line
from benchmarks.picture import draw_bars, if_possible
from benchmarks.record import Round, Run
from benchmarks.report import format_table, write_results
from benchmarks.rivals import MEMGUARD, RAY
from benchmarks.rows import (
    Bar,
    Figure,
    Row,
    figure,
    memguards,
    microseconds,
    milliseconds,
    plain_bytes,
)
from benchmarks.runs import RESULTS_DIRECTORY, positive, record_of, write_record

# Long enough for an experiment checkpoint in mid-sweep, which comes every ten seconds.
TRIALS = 6000
READ = 1000
#: The tracker's looks come in the first 500 trials; the median is that of the sweep after them.
WARM_UP = 600
LARGEST_MEDIAN_S = 0.3e-3
#: What has a clock of its own, and how deep it is in what is named above it.
PARTS = {
    "spill": 0,
    "writing it down": 1,
    "its state as a pickle": 2,
    "its texts as JSON": 2,
    "packing and inserting both": 1,
    "letting go": 1,
    "to the state file": 1,
    "other hooks": 0,
    "reports and looks": 1,
    "checkpoint": 0,
}


class Clock:
    """Seconds by part of the work, since the last trial was over and in all."""

    def __init__(self) -> None:
        self.by_part: dict[str, list[float]] = {}
        #: The share of each trial in the spill that it was in.
        self.spilled: list[float] = []
        self._since: dict[str, float] = {}

    def put_on(self, owner: Any, name: str, part: str, without: str | None = None) -> None:
        """Time a method as ``part``; ``without``: another part, called in it, that is not."""
        original = getattr(owner, name)

        @functools.wraps(original)
        def timed(*args: Any, **kwargs: Any) -> Any:
            inner = self._since.get(without or "", 0.0)
            began = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                took = time.perf_counter() - began
                if without is not None:
                    took -= self._since.get(without, 0.0) - inner
                self._since[part] = self._since.get(part, 0.0) + took

        setattr(owner, name, timed)

    def put_on_spills(self, part: str) -> None:
        """Time the spills as ``part``, but for those that found nothing to spill."""
        from ray_tune_memguard.adapter.run.spiller import Spiller

        original = Spiller.spill

        @functools.wraps(original)
        def timed(sweep: Spiller, finished: list[Any]) -> Any:
            began = time.perf_counter()
            outcome = original(sweep, finished)
            if outcome.count:
                took = time.perf_counter() - began
                self._since[part] = self._since.get(part, 0.0) + took
                self.spilled += [took / outcome.count] * outcome.count
            return outcome

        Spiller.spill = timed  # type: ignore[method-assign]

    def next_trial(self) -> None:
        """A trial is over: what was done since the last one was done for it."""
        for part in {*self.by_part, *self._since}:
            self.by_part.setdefault(part, []).append(self._since.get(part, 0.0))
        self._since.clear()


_HOOKS = ("on_step_begin", "on_step_end", "on_trial_result", "on_trial_complete")


def _put_clocks_on(clock: Clock) -> None:
    from ray.tune.execution.tune_controller import TuneController

    from ray_tune_memguard import MemGuard
    from ray_tune_memguard.adapter.run.checkpoint import CheckpointWriter

    clock.put_on_spills("spill")
    for hook in _HOOKS:
        clock.put_on(MemGuard, hook, "other hooks", "spill")
    clock.put_on(TuneController, "save_to_dir", "Ray's checkpoint")
    clock.put_on(CheckpointWriter, "write", "checkpoint", "Ray's checkpoint")


def _put_clocks_on_parts(clock: Clock) -> None:
    from ray_tune_memguard.adapter.run.spiller import Spiller
    from ray_tune_memguard.adapter.serialization.trial_json import StateWriter
    from ray_tune_memguard.adapter.serialization.trial_pickle import TrialStateCodec
    from ray_tune_memguard.callbacks.object_growth_tracker import ObjectGrowthTracker
    from ray_tune_memguard.callbacks.rss_reporter import RssReporter
    from ray_tune_memguard.store.state_file import ExperimentStateFile
    from ray_tune_memguard.store.trial_store import TrialStore

    for hook in _HOOKS:
        for part in (RssReporter, ObjectGrowthTracker):
            if hook in part.__dict__:
                clock.put_on(part, hook, "reports and looks")
    clock.put_on(TrialStateCodec, "row", "writing it down")
    clock.put_on(StateWriter, "write", "its texts as JSON")
    clock.put_on(TrialStateCodec, "_dump", "its state as a pickle")
    clock.put_on(TrialStore, "put", "packing and inserting both")
    clock.put_on(ExperimentStateFile, "add", "to the state file")
    clock.put_on(Spiller, "_release", "letting go")


def child(trials: int, rival: str) -> None:
    """Run one sweep, in this process."""
    import ray
    from ray import tune
    from ray.tune.search import BasicVariantGenerator

    from benchmarks.problem import METRIC, MODE, make_trainable, search_space
    from benchmarks.simulated import install_simulated_actors
    from benchmarks.sweep import set_environment, start_ray

    set_environment(loggers=False)
    clock = Clock()
    marks: list[float] = []

    class Marks(tune.Callback):
        def on_trial_complete(self, **info: Any) -> None:
            marks.append(time.perf_counter())
            clock.next_trial()

    callbacks: list[tune.Callback] = [Marks()]
    if rival != "ray":
        from ray_tune_memguard import MemGuard

        _put_clocks_on(clock)
        if rival == "parts":
            _put_clocks_on_parts(clock)
        callbacks = [MemGuard(), *callbacks]
    with tempfile.TemporaryDirectory(prefix="tmo-") as directory:
        start_ray(Path(directory))
        with install_simulated_actors(results_per_trial=1):
            grid = tune.Tuner(
                make_trainable(1, 0),
                param_space=search_space(),
                tune_config=tune.TuneConfig(
                    metric=METRIC,
                    mode=MODE,
                    num_samples=trials,
                    search_alg=BasicVariantGenerator(random_state=0),
                ),
                run_config=tune.RunConfig(storage_path=directory, verbose=0, callbacks=callbacks),
            ).fit()
        # The mean: most trials wait for the spill of another one.
        per_trial = (marks[-1] - marks[WARM_UP]) / (len(marks) - 1 - WARM_UP)
        record: dict[str, Any] = {"per_trial_s": per_trial}
        if rival != "ray":
            record["parts"] = clock.by_part
            record["spilled"] = clock.spilled
            record |= _disk_and_reading(grid)
        ray.shutdown()
    write_record(record)


def _disk_and_reading(grid: Any) -> dict[str, Any]:
    experiment = Path(grid.experiment_path)
    [store] = experiment.glob(".memguard/trials-*.sqlite")
    [state_file] = experiment.glob("experiment_state-*.json")
    trials = grid._experiment_analysis.trials
    chosen = random.Random(0).sample(range(len(trials)), READ)
    took = [_seconds(lambda index=index: trials[index].config) for index in chosen]
    return {
        "read_back_s": statistics.median(took),
        "store_bytes_per_trial": store.stat().st_size / len(trials),
        "state_file_bytes_per_trial": state_file.stat().st_size / len(trials),
    }


def _seconds(act: Callable[[], Any]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def _added(record: dict[str, Any]) -> dict[str, float]:
    """What was added for a trial; the checkpoint comes every ten seconds, each has its share."""
    clocks: dict[str, list[float]] = record.pop("parts")
    checkpoint = statistics.fmean(clocks["checkpoint"])
    both = zip(clocks["other hooks"], record.pop("spilled"), strict=False)
    times = [sum(pair) + checkpoint for pair in both]
    late = sorted(times[WARM_UP:])
    return {
        "median_s": statistics.median(late),
        "mean_s": statistics.fmean(late),
        "p95_s": late[int(0.95 * len(late))],
        "mean_of_all_s": statistics.fmean(times),
        "checkpoint_share_s": checkpoint,
    }


def _measure(trials: int, directory: Path, guarded_first: bool) -> Round:
    command = ["benchmarks.overhead", "--trials", str(trials), "--child"]
    records: dict[str, dict[str, Any]] = {}
    for child_name in (
        ("memguard", "parts", "ray") if guarded_first else ("ray", "memguard", "parts")
    ):
        records[child_name] = record_of([*command, child_name], directory)
    record = records["memguard"]
    record["added"] = _added(record)
    parts = records["parts"]["parts"]
    parts.pop("Ray's checkpoint")
    record["parts"] = {part: statistics.fmean(times[WARM_UP:]) for part, times in parts.items()}
    assert set(record["parts"]) == set(PARTS)
    return Round({RAY: Run(records["ray"]), MEMGUARD: Run(record)})


def _evaluate(rounds: list[Round]) -> tuple[list[Row], list[Figure]]:
    """All rows, and those of them that are parts of what is added."""

    def added(name: str) -> Callable[[Run], float]:
        return lambda run: float(run.record["added"][name])

    def part(name: str) -> Callable[[Run], float]:
        return lambda run: float(run.record["parts"][name])

    def of(name: str) -> Callable[[Run], float]:
        return lambda run: float(run.record[name])

    parts = [
        memguards(f"{'· ' * depth}{name}", microseconds, rounds, part(name))
        for name, depth in PARTS.items()
    ]
    bar = Bar(LARGEST_MEDIAN_S)
    rows: list[Row] = [
        figure("a trial, all in all, mean", milliseconds, rounds, of("per_trial_s")),
        memguards("added to a trial, median", milliseconds, rounds, added("median_s"), bar),
        memguards("added, mean", milliseconds, rounds, added("mean_s")),
        memguards("added, 95 % are below", milliseconds, rounds, added("p95_s")),
        memguards(
            f"added, mean with the tracker's looks in the first {WARM_UP}",
            milliseconds,
            rounds,
            added("mean_of_all_s"),
        ),
        *(replace(row, label=f"   {row.label}") for row in parts),
        memguards("reading a trial back", microseconds, rounds, of("read_back_s")),
        memguards("its room in the store", plain_bytes, rounds, of("store_bytes_per_trial")),
        memguards(
            "its room in the experiment state file",
            plain_bytes,
            rounds,
            of("state_file_bytes_per_trial"),
        ),
    ]
    return rows, parts


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; 1 if the bar was missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks overhead", description=__doc__)
    parser.add_argument("--trials", type=positive, default=TRIALS)
    parser.add_argument("--runs", type=positive, default=3)
    parser.add_argument("--results", type=Path, default=RESULTS_DIRECTORY)
    parser.add_argument("--child", choices=("ray", "memguard", "parts"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.child:
        child(arguments.trials, arguments.child)
        return 0
    if arguments.trials < 2 * WARM_UP:
        parser.error(f"--trials must be at least {2 * WARM_UP:,}, not {arguments.trials:,}")
    if arguments.runs < 1:
        parser.error(f"--runs must be at least 1, not {arguments.runs}")
    title = f"{arguments.trials:,} simulated trials, no loggers"
    head = {"benchmark": "overhead", "title": title, "machine": describe_machine()}
    print(f"\noverhead: {title}, runs: {arguments.runs}")
    print(machine_line(head["machine"]), flush=True)
    with tempfile.TemporaryDirectory() as directory:
        rounds = [
            _measure(arguments.trials, Path(directory), guarded_first=bool(number % 2))
            for number in range(arguments.runs)
        ]
    rows, parts = _evaluate(rounds)
    print(format_table(rows, judged=True), flush=True)
    path = arguments.results / "overhead.json"
    write_results(path, head, [(title, rows, rounds)])
    with if_possible():
        draw_bars(
            f"what MemGuard adds to a trial: {title}", [("", parts)], path.with_suffix(".png")
        )
    return 0 if all(row.passed is not False for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
