"""All results of a sweep in one file: ``python -m benchmarks histories``.

1. A sweep of simulated trials with one result each, by Ray alone, by MemGuard with Ray's loggers
   and by MemGuard with ``histories="store"``, in fresh processes: the time of ``fit()``, the files
   and the bytes that it leaves in both places, and the DataFrame of all trials.
2. One trial with many results in the store: bytes for each.
3. Drivers of real sweeps that are killed by SIGKILL at random moments: results that the driver had
   received 0.2 s before and that are not in the experiment afterwards, or not at the end of the
   restored sweep.

Writes ``histories.json``. Ends with 1 if a bar was missed. Bars are judged at full size.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.kill_log import LOG_VARIABLE, read_log, write_line
from benchmarks.machine import describe_machine, machine_line
from benchmarks.processes import MARK_VARIABLE, end_marked, new_mark
from benchmarks.report import format_lines
from benchmarks.runs import RESULTS_DIRECTORY, ROOT, record_of, scratch_directory, write_record

TRIALS, RESULTS, KILLS = 30_000, 10_000, 50
RIVALS = {"ray": "Ray alone", "files": "MemGuard, Ray's loggers", "store": "MemGuard, store"}
EXPERIMENT = "sweep"
SETTLED_S = 0.2
_REPORTED = "T"
# Of a sweep that is killed.
_KILLED_TRIALS, _STEPS, _STEP_S = 24, 12, 0.03
_LONGEST_KILLED_S = 12.0
_LONGEST_WAIT_S = 300.0


def _tuner(
    kind: str, trainable: Any, trials: int, storage: Path, callbacks: Sequence[Any] = ()
) -> Any:
    from ray import tune

    from benchmarks.problem import METRIC, MODE, search_space
    from benchmarks.sweep import set_environment, start_ray

    set_environment(loggers=True)
    start_ray(storage)
    guards: list[Any] = []
    if kind != "ray":
        from ray_tune_memguard import MemGuard

        guards = [MemGuard(histories=kind)]
    return tune.Tuner(
        trainable,
        param_space=search_space(),
        tune_config=tune.TuneConfig(
            metric=METRIC, mode=MODE, num_samples=trials, reuse_actors=True
        ),
        run_config=tune.RunConfig(
            name=EXPERIMENT,
            storage_path=str(storage / "results"),
            callbacks=[*guards, *callbacks],
            verbose=0,
        ),
    )


def measure(kind: str, trials: int, results: int, storage: Path) -> dict[str, Any]:
    """Run one simulated sweep in this process."""
    import ray

    from benchmarks.problem import METRIC, make_trainable
    from benchmarks.simulated import install_simulated_actors

    tuner = _tuner(kind, make_trainable(results, 0), trials, storage)
    began = time.perf_counter()
    with install_simulated_actors(results_per_trial=results):
        grid = tuner.fit()
    seconds = time.perf_counter() - began
    trial = grid._experiment_analysis.trials[0]
    places = [Path(grid.experiment_path), Path(trial.local_experiment_path)]
    found = [path for place in places for path in place.rglob("*") if path.is_file()]
    sizes: dict[str, int] = defaultdict(int)
    for path in found:
        sizes[_kind_of(path)] += path.stat().st_size
    began = time.perf_counter()
    frame = grid.get_dataframe()
    record = {
        "fit_s": seconds,
        "frame_s": time.perf_counter() - began,
        "rows": len(frame),
        "score": float(frame[METRIC].sum()),
        "history": len(grid[0].metrics_dataframe),
        "files": len(found),
        "directories": sum(path.is_dir() for place in places for path in place.rglob("*")),
        "bytes": dict(sizes),
    }
    ray.shutdown()
    return record


def _kind_of(path: Path) -> str:
    if path.name.startswith("histories."):
        return "histories"
    if path.name.startswith("trials-"):
        return "trial store"
    if path.name.startswith("experiment_state"):
        return "state file"
    return "trial files" if path.parent.name.startswith("trainable_") else "other"


# Kills.


def _steps(config: dict[str, Any]) -> None:
    from ray import tune

    from benchmarks.problem import METRIC, score

    for step in range(1, _STEPS + 1):
        time.sleep(_STEP_S)
        tune.report({METRIC: score(config, step)})


def _reported() -> Any:
    from ray.tune import Callback

    class Reported(Callback):
        """Writes down what the driver has received. Knows nothing of MemGuard; is the last."""

        def on_trial_result(self, *, trial: Any, result: dict[str, Any], **_: Any) -> None:
            write_line(_REPORTED, trial.trial_id, result["training_iteration"])

        def __reduce__(self) -> Any:
            return Callback, ()

    return Reported()


def begin(storage: Path) -> None:
    """Run a sweep that is going to be killed."""
    _tuner("store", _steps, _KILLED_TRIALS, storage, [_reported()]).fit()


def reopen(storage: Path) -> dict[str, Any]:
    """The results in an experiment whose driver was killed, and after it was resumed."""
    import ray
    from ray import tune

    from benchmarks.sweep import set_environment, start_ray
    from ray_tune_memguard import iter_results

    def results() -> dict[str, list[int]]:
        found: dict[str, list[int]] = defaultdict(list)
        for result in iter_results(path, columns=["training_iteration"]):
            found[str(result["trial_id"])].append(int(str(result["training_iteration"])))
        return dict(found)

    path = str(storage / "results" / EXPERIMENT)
    set_environment(loggers=True)
    killed = results()
    start_ray(storage / "again")
    grid = tune.Tuner.restore(path, trainable=_steps).fit()
    lengths = [len(result.metrics_dataframe) for result in grid]
    ray.shutdown()
    return {"killed": killed, "resumed": results(), "trials": len(grid), "lengths": lengths}


def kill(after_s: float, directory: Path) -> dict[str, Any]:
    """Kill one sweep, open and resume it, and count what is missing.

    ``after_s``: seconds from the first result to the kill.
    """
    log, storage, mark = directory / "log", directory / "s", new_mark()
    environment = {**os.environ, LOG_VARIABLE: str(log), MARK_VARIABLE: mark}
    storage.mkdir(parents=True)
    with (directory / "begin.log").open("wb") as output:
        driver = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.histories", "--begin", str(storage)],
            cwd=ROOT,
            env=environment,
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
    found = record_of(["benchmarks.histories", "--reopen", str(storage)], directory)
    after_kill, at_end = (
        {(trial_id, step) for trial_id, steps in found[when].items() for step in steps}
        for when in ("killed", "resumed")
    )
    return {
        "was_running": was_running,
        "settled": len(settled),
        "lost": len(settled - after_kill),
        "lost_at_end": len(settled - at_end),
        "trials": found["trials"],
        "short_histories": sum(length != _STEPS for length in found["lengths"]),
    }


# The report.


def _table(records: dict[str, dict[str, Any]], trials: int) -> str:
    def each(record: dict[str, Any], *kinds: str) -> str:
        sizes = record["bytes"]
        return f"{sum(sizes.get(kind, 0) for kind in kinds) / trials:,.0f} B"

    rows: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        ("fit()", lambda r: f"{r['fit_s']:.1f} s"),
        ("a trial", lambda r: f"{1000 * r['fit_s'] / trials:.2f} ms"),
        ("DataFrame of all trials", lambda r: f"{r['frame_s']:.2f} s"),
        ("files per trial", lambda r: f"{r['files'] / trials:.3f}"),
        ("directories per trial", lambda r: f"{r['directories'] / trials:.3f}"),
        ("histories per trial", lambda r: each(r, "histories", "trial files")),
        ("trial store per trial", lambda r: each(r, "trial store")),
        ("experiment state file per trial", lambda r: each(r, "state file")),
    ]
    head = ("", *(RIVALS[kind] for kind in records))
    lines = [(name, *(show(record) for record in records.values())) for name, show in rows]
    return format_lines([head, *lines])


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out the parts that the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks histories", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--trials", type=int, default=TRIALS, help="of a sweep (30,000); 0: none")
    parser.add_argument("--long", type=int, default=RESULTS, help="results of the long trial")
    parser.add_argument("--kills", type=int, default=KILLS, help="drivers to kill (50)")
    parser.add_argument("--rivals", nargs="+", choices=tuple(RIVALS), default=list(RIVALS))
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--scratch", type=Path, help="where the sweeps write; short, local disk")
    parser.add_argument("--results", type=Path, default=RESULTS_DIRECTORY)
    for hidden in ("--run", "--begin", "--reopen"):
        parser.add_argument(hidden, nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.begin:
        begin(Path(arguments.begin[0]))
        return 0
    if arguments.reopen:
        write_record(reopen(Path(arguments.reopen[0])))
        return 0
    if arguments.run:
        kind, trials, results, storage = arguments.run
        write_record(measure(kind, int(trials), int(results), Path(storage)))
        return 0
    return _report(arguments)


def _report(arguments: argparse.Namespace) -> int:
    machine = describe_machine()
    print(machine_line(machine), flush=True)
    record: dict[str, Any] = {"machine": machine}
    bars: list[tuple[str, bool | None]] = []
    with scratch_directory(arguments.scratch) as scratch:
        if arguments.trials:
            record["sweep"] = _sweeps(arguments, scratch, bars)
        if arguments.long:
            record["long"] = _long(arguments.long, scratch, bars)
        if arguments.kills:
            record["kills"] = _kills(arguments, scratch, bars)
    print()
    for text, kept in bars:
        print(f"{text}: {'not judged' if kept is None else 'pass' if kept else 'MISS'}")
    (arguments.results / "histories.json").write_text(json.dumps(record, indent=1) + "\n")
    return 0 if all(kept is not False for _, kept in bars) else 1


def _sweeps(
    arguments: argparse.Namespace, scratch: Path, bars: list[tuple[str, bool | None]]
) -> dict[str, Any]:
    trials = arguments.trials
    records = {}
    for kind in arguments.rivals:
        storage = scratch / kind[0]
        storage.mkdir()
        command = ["benchmarks.histories", "--run", kind, str(trials), "1", str(storage)]
        records[kind] = record_of(command, scratch)
        shutil.rmtree(storage, ignore_errors=True)
    print(f"\n{trials:,} trials of one result:\n{_table(records, trials)}", flush=True)
    found = {(record["rows"], record["history"]) for record in records.values()}
    bars.append((f"all rows and histories are there ({found})", found == {(trials, 1)}))
    store = records.get("store")
    if store is None:
        return records
    judged = trials >= TRIALS
    for kind, least in (("files", 3), ("ray", 10)):
        if kind in records:
            factor = records[kind]["fit_s"] / store["fit_s"]
            text = f"{factor:.1f} times as fast as {RIVALS[kind]} (bar {least})"
            bars.append((text, factor >= least if judged else None))
    each = store["files"] / trials
    bars.append((f"{each:.4f} files per trial (bar 0.05)", each <= 0.05))
    size = (store["bytes"]["histories"] + store["bytes"]["trial store"]) / trials
    bars.append((f"{size:,.0f} B per trial in both stores (bar 1,500)", size <= 1500))
    return records


def _long(results: int, scratch: Path, bars: list[tuple[str, bool | None]]) -> dict[str, Any]:
    storage = scratch / "l"
    storage.mkdir()
    command = ["benchmarks.histories", "--run", "store", "1", str(results), str(storage)]
    record = record_of(command, scratch)
    size = record["bytes"]["histories"] / results
    complete = record["history"] == results
    text = f"{size:.1f} B for each of {results:,} results of one trial (bar 25)"
    bars.append((text, complete and size <= 25))
    return record


def _kills(
    arguments: argparse.Namespace, scratch: Path, bars: list[tuple[str, bool | None]]
) -> list[dict[str, Any]]:
    found = []
    for number in range(arguments.kills):
        directory = scratch / f"k{number}"
        moment = random.Random(arguments.seed * 1000 + number)
        found.append(kill(moment.uniform(0.3, _LONGEST_KILLED_S), directory))
        print(f"kill {number + 1} of {arguments.kills}: {found[-1]}", file=sys.stderr, flush=True)
        shutil.rmtree(directory, ignore_errors=True)
    total = {
        key: sum(one[key] for one in found)
        for key in ("was_running", "settled", "lost", "lost_at_end", "short_histories")
    }
    whole = all(one["trials"] == _KILLED_TRIALS for one in found)
    text = (
        f"{total['was_running']} kills: {total['settled']:,} results were {SETTLED_S} s old, "
        f"{total['lost']} of them lost, {total['short_histories']} histories short at the end"
    )
    bars.append((text, whole and not total["lost"] and not total["short_histories"]))
    return found


if __name__ == "__main__":
    sys.exit(main())
