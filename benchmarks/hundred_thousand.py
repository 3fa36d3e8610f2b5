"""A sweep of 100,000 trials on two cores: ``python -m benchmarks hundred-thousand``.

Simulated actors, no loggers. MemGuard runs all of them; Ray alone, whose time per trial grows with
their number, runs a tenth. Then both experiments are opened in fresh processes: how long it takes,
and how much memory, until the best trial is found and 1,000 random results are read; and resumed,
which finds nothing to do. Prints a table and writes ``hundred-thousand.json`` and ``.png``. Takes a
quarter of an hour, and 3 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine
from benchmarks.picture import NoMatplotlib, Panel, columns, draw
from benchmarks.record import FINISHED, RSS, Round, Run, samples_path
from benchmarks.report import format_lines
from benchmarks.rivals import MEMGUARD, RAY, RIVALS, TWO
from benchmarks.runs import (
    ROOT,
    Progress,
    Sweep,
    describe_progress,
    last_sample,
    record_of,
    run_child,
    scratch_directory,
)

MB = 1_000_000
READ = 1000
RAYS_SHARE = 0.1
LEVEL_AT = 1000
#: Ray's tenth has a level, too, and time for some experiment checkpoints.
SMALLEST = 20_000
LARGEST_RISE_MB = 60
LEAST_THROUGHPUT = 0.9
LARGEST_CHECKPOINT = 2.0
LONGEST_READING_S, LARGEST_READING_MB = 2.0, 30.0


def _run(rival: str, sweep: Sweep, directory: Path) -> tuple[Run, Path]:
    out = directory / f"{rival}.json"
    progress = Progress()
    started = time.monotonic()

    def show() -> None:
        done = describe_progress(sweep, last_sample(out), time.monotonic() - started)
        progress.show(f"{RIVALS[rival].title}: {done}")

    arguments = ["--rival", rival, *sweep.arguments(), "--out", str(out)]
    arguments += ["--storage", str(directory / rival[0])]
    run_child("sweep", arguments, directory / f"{rival}.log", show)
    run = Run(json.loads(out.read_text()))
    samples_path(out).unlink()
    return run, Path(run.record.pop("experiment_path"))


def _figures(run: Run, reading: dict[str, Any], resumed: dict[str, Any]) -> dict[str, float]:
    total = run.samples[-1][FINISHED]
    level = next(sample[RSS] for sample in run.samples if sample[FINISHED] >= LEVEL_AT)
    peak = max(run.highest(RSS), run.record["rss_after_fit"])
    for opened in (reading, resumed):
        if opened["trials"] != total:
            raise RuntimeError(f"{opened['trials']:,} of {total:,} trials are there afterwards")
    return {
        "trials": total,
        "fit_s": run.fit_seconds,
        "rss_at_1000_mb": level / MB,
        "rss_rise_mb": (peak - level) / MB,
        "per_second_first_tenth": run.trials_per_second(0.0, 0.1),
        "per_second_last_tenth": run.trials_per_second(0.9, 1.0),
        "checkpoint_early_s": run.periodic_checkpoint(LEVEL_AT / 2, 5 * LEVEL_AT),
        "checkpoint_late_s": run.periodic_checkpoint(0.95 * total, total),
        "state_file_mb": run.late_checkpoints("state_bytes")[-1] / MB,
        "beside_trials_mb": run.record["bytes_beside_trials"] / MB,
        "reading_s": reading["seconds"],
        "reading_peak_mb": reading["peak"] / MB,
        "resuming_s": resumed["seconds"],
        "resuming_peak_mb": resumed["peak"] / MB,
    }


def _bars(figures: dict[str, float]) -> dict[str, tuple[str, bool]]:
    """What was promised of MemGuard's figures, by figure."""
    throughput = figures["per_second_last_tenth"] / figures["per_second_first_tenth"]
    checkpoint = figures["checkpoint_late_s"] / figures["checkpoint_early_s"]
    return {
        "rss_rise_mb": (f"at most {LARGEST_RISE_MB}", figures["rss_rise_mb"] <= LARGEST_RISE_MB),
        "per_second_last_tenth": (
            f"late by early at least {LEAST_THROUGHPUT}: {throughput:.3f}",
            throughput >= LEAST_THROUGHPUT,
        ),
        "checkpoint_late_s": (
            f"late by early at most {LARGEST_CHECKPOINT:g}: {checkpoint:.2f}",
            checkpoint <= LARGEST_CHECKPOINT,
        ),
        "reading_s": (
            f"at most {LONGEST_READING_S:g}",
            figures["reading_s"] <= LONGEST_READING_S,
        ),
        "reading_peak_mb": (
            f"at most {LARGEST_READING_MB:g}",
            figures["reading_peak_mb"] <= LARGEST_READING_MB,
        ),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; 1 if a bar was missed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks hundred-thousand", description=__doc__
    )
    parser.add_argument("--trials", type=int, default=100_000)
    parser.add_argument("--scratch", type=Path, help="a short path on a local disk")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args(argv)
    if arguments.trials < SMALLEST:
        parser.error(f"--trials must be at least {SMALLEST:,}, not {arguments.trials:,}")
    machine = describe_machine()
    print(f"\nhundred-thousand: {arguments.trials:,} simulated trials, no loggers")
    print(", ".join(f"{key} {value}" for key, value in machine.items()), flush=True)
    sizes = {RAY: round(arguments.trials * RAYS_SHARE), MEMGUARD: arguments.trials}
    runs: dict[str, Run] = {}
    figures: dict[str, dict[str, float]] = {}
    with scratch_directory(arguments.scratch) as directory:
        for rival in TWO:
            sweep = Sweep(
                "simulated",
                sizes[rival],
                sample_every=max(1, sizes[rival] // 500),
                loggers=False,
                describe=False,
            )
            runs[rival], experiment = _run(rival, sweep, directory)
            how = ["analysis"] if rival == RAY else ["open_experiment"]
            command = ["benchmarks.restore_child", *how, str(experiment), "--read", str(READ)]
            guarded = [] if rival == RAY else ["--with-memguard"]
            reading = record_of([*command, *guarded], directory)
            command = ["benchmarks.restore_child", "resume", str(experiment)]
            # Where Ray's directory for sockets goes, and where the sweep had it.
            shutil.rmtree(experiment.parent / "r", ignore_errors=True)
            resumed = record_of([*command, *guarded], directory)
            figures[rival] = _figures(runs[rival], reading, resumed)
    bars = _bars(figures[MEMGUARD])
    lines = [("", *(RIVALS[rival].title for rival in TWO), "bar", "")]
    for name in figures[MEMGUARD]:
        bar, kept = bars.get(name, ("", None))
        verdict = "" if kept is None else "pass" if kept else "MISS"
        lines.append((name, *(f"{figures[rival][name]:,.2f}" for rival in TWO), bar, verdict))
    print(format_lines(lines), flush=True)

    arguments.results.mkdir(parents=True, exist_ok=True)
    record = {
        "machine": machine,
        "figures": figures,
        "bars": {name: {"bar": bar, "kept": kept} for name, (bar, kept) in bars.items()},
        "runs": {rival: run.record for rival, run in runs.items()},
    }
    (arguments.results / "hundred-thousand.json").write_text(json.dumps(record) + "\n")
    panels = (
        Panel("finished trials", "driver RSS, MB", columns(FINISHED, RSS, MB)),
        Panel(
            "finished trials",
            "time per trial, ms",
            lambda run: [(trials, 1e3 * each) for trials, each in run.trial_seconds()],
        ),
    )
    one = [Round(runs)]
    try:
        draw(
            f"{arguments.trials:,} trials, simulated actors, no loggers",
            [(panel.y_label, panel, one) for panel in panels],
            arguments.results / "hundred-thousand.png",
        )
    except NoMatplotlib as error:
        print(error, file=sys.stderr)
    return 0 if all(kept for _, kept in bars.values()) else 1
