"""``make demo``: the same sweep on real actors by Ray alone and with MemGuard, side by side.

Runs ``leak_repro`` twice, shows how far it is, prints both RSS series with their slopes and the RSS
after ``fit()``, and draws the picture.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from ray_tune_memguard import plot_rss_series, read_rss_series
from ray_tune_memguard.report.line import fit_line
from ray_tune_memguard.report.picture import leave_headroom
from ray_tune_memguard.report.series import FILE_PATTERN

MIB = 2**20
ROOT = Path(__file__).resolve().parent.parent
# The first trials fill caches and pools, in both runs.
WARM_UP_TRIALS = 200


@dataclass
class Run:
    """One finished run: its RSS series and the RSS after ``fit()``, in bytes."""

    name: str
    series: pd.DataFrame
    rss_after_fit: int
    seconds: float

    def bytes_per_trial(self) -> float:
        steady = self.series[self.series.trials >= min(WARM_UP_TRIALS, self.series.trials.max())]
        fitted = fit_line(list(steady.trials), list(steady.rss_bytes))
        return 0.0 if fitted is None else fitted.slope


def sweep(name: str, switch: str, trials: int, interval: int) -> Run:
    """Run ``leak_repro`` in a process of its own, with a progress line."""
    with tempfile.TemporaryDirectory(prefix="memguard-demo-") as folder:
        storage, summary = Path(folder, "results"), Path(folder, "summary.json")
        log = Path(folder, "log.txt")
        command = [sys.executable, "-m", "examples.leak_repro", switch, "--reuse-actors"]
        command += ["--trials", str(trials), "--report-interval", str(interval)]
        command += ["--storage", str(storage), "--summary", str(summary)]
        started = time.monotonic()
        with log.open("w") as output:
            process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
            while process.poll() is None:
                show_progress(name, storage, trials, time.monotonic() - started)
                # A terminal's line is written over; a log file should not fill with them.
                time.sleep(0.5 if sys.stdout.isatty() else 10)
        if process.returncode != 0:
            sys.exit(f"\n{name} failed:\n{log.read_text()}")
        seconds = time.monotonic() - started
        show_progress(name, storage, trials, seconds)
        print()
        figures = json.loads(summary.read_text())
        series = read_rss_series(figures["experiment"])
        return Run(name, series, figures["rss_after_fit"], seconds)


def show_progress(name: str, storage: Path, trials: int, seconds: float) -> None:
    """One line that is written over: how many trials are done, and the RSS."""
    done, rss = 0, ""
    for file in storage.glob(f"*/.memguard/{FILE_PATTERN}"):
        last = file.read_text().splitlines()[-1].split(",")
        if last[0] != "time":
            done, rss = int(last[1]), f"RSS {int(last[4]) / MIB:.0f} MiB"
    bar = "#" * (30 * done // trials)
    line = f"{name:<14} [{bar:<30}] {done}/{trials} trials  {seconds:3.0f} s  {rss}"
    print(f"\r{line}" if sys.stdout.isatty() else line, end="", flush=True)
    if not sys.stdout.isatty():
        print()


def slope(run: Run) -> str:
    """The slope of RSS. In so short a sweep, what is below 1 KiB or negative is noise."""
    kibibytes = run.bytes_per_trial() / 1024
    return f"{kibibytes:+.1f} KiB/trial" if kibibytes >= 1 else "< 1 KiB/trial"


def table(plain: Run, guarded: Run) -> str:
    """Both series side by side."""
    both = plain.series[["trials", "rss_bytes"]].merge(
        guarded.series[["trials", "rss_bytes"]], on="trials", suffixes=("_plain", "_guarded")
    )
    both = both.drop_duplicates("trials", keep="last")
    lines = [f"{'finished trials':>16} {plain.name:>14} {guarded.name:>14}"]
    for row in both.itertuples():
        lines.append(
            f"{row.trials:>16} {row.rss_bytes_plain / MIB:>10.1f} MiB "
            f"{row.rss_bytes_guarded / MIB:>10.1f} MiB"
        )
    for label, values in (
        ("slope", [slope(run) for run in (plain, guarded)]),
        ("after fit()", [f"{run.rss_after_fit / MIB:.1f} MiB" for run in (plain, guarded)]),
        ("wall-clock", [f"{run.seconds:.0f} s" for run in (plain, guarded)]),
    ):
        lines.append(f"{label:>16} {values[0]:>14} {values[1]:>14}")
    return "\n".join(lines)


def draw(plain: Run, guarded: Run, path: Path) -> Figure:
    """The picture: RSS against finished trials, and the RSS after ``fit()`` as a mark."""
    runs = (plain, guarded)
    figure = plot_rss_series({run.name: run.series for run in runs}, path)
    axes = figure.axes[0]
    for run, line in zip(runs, axes.lines[:], strict=True):
        end = run.series.trials.max(), run.rss_after_fit / MIB
        axes.plot(*end, "o", color=line.get_color())
        # Above the mark and to its left: there is always room.
        axes.annotate("after fit()", end, (4, 8), textcoords="offset points", ha="right")
    axes.set_title("Ray Tune driver memory, reused actors")
    # The marks lie above the lines.
    leave_headroom(axes)
    figure.savefig(path, dpi=120)
    return figure


def main() -> None:
    """Run both, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1500, help="trials of each run (1500)")
    parser.add_argument("--interval", type=int, default=100, help="trials between points (100)")
    parser.add_argument("--output", type=Path, default=ROOT / "demo-output" / "rss.png")
    options = parser.parse_args()
    print(f"Two sweeps of {options.trials} trials each, on real actors that are reused.\n")
    plain = sweep("Ray alone", "--no-memguard", options.trials, options.interval)
    guarded = sweep("with MemGuard", "--memguard", options.trials, options.interval)
    print(f"\nRSS of the driver\n\n{table(plain, guarded)}\n")
    draw(plain, guarded, options.output)
    print(f"The picture: {options.output}")


if __name__ == "__main__":
    main()
