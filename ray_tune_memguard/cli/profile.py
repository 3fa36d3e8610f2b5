"""``memguard profile``: which lines of profiled trials have allocated the memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ray_tune_memguard.cli import output
from ray_tune_memguard.cli.exit_codes import CommandError, ExitCode, missing_extra
from ray_tune_memguard.cli.experiments import (
    Readings,
    last_run,
    local_experiment,
    path_argument,
)
from ray_tune_memguard.report.texts import one_line, size

if TYPE_CHECKING:
    from ray_tune_memguard.report.memray_file import Line, Peak
    from ray_tune_memguard.report.profile_records import TrialProfile

_MAX_LINES = 15
_USAGE_OF_ARGPARSE = 2


@click.command()
@path_argument
@click.argument("trial", required=False)
@click.option(
    "--html",
    metavar="FILE",
    type=output.FilePath(dir_okay=False, path_type=Path),
    help="Write a flame graph of the profile to this file.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    default=_MAX_LINES,
    help=f"How many lines of code; 0 for all. Default: {_MAX_LINES}.",
)
@output.json_option
def profile(path: str, trial: str | None, html: Path | None, limit: int, as_json: bool) -> None:
    """Tell which lines of profiled trials have allocated the memory.

    PATH is the directory of an experiment with a MemrayProfiler(), or one file of memray, such as a
    profile that has stayed in the directory of a Ray session's logs. The command lists the profiles
    of an experiment. Of the last one of TRIAL, or else of the one of a trial that failed, or with
    the highest peak, it prints the lines of code that had allocated the memory at the peak. Memory
    counts for the innermost line that belongs neither to Python nor to an installed package. The
    command needs the extra "profile" (memray).

    \b
    Examples:
      memguard profile ~/ray_results/sweep
      memguard profile ~/ray_results/sweep 6a3f_00002 --html flamegraph.html
      memguard profile /tmp/ray/session_latest/logs/memray-sweep-6a3f_00002.bin
      memguard profile ~/ray_results/sweep --json

    The exit code is 3 if there is no profile, or none that can be read here, and 5 without the
    extra.
    """
    place = Path(os.path.expanduser(path))
    if os.path.isfile(place):
        if trial is not None:
            raise CommandError(f"{path} is a file, which has no trial {trial}.", ExitCode.USAGE)
        _show([], None, place, html, limit, as_json)
        return
    experiment = local_experiment(path)
    profiles = _profiles_of(experiment)
    chosen = _chosen(experiment, profiles, trial)
    file = _readable(experiment, chosen)
    if file is None and not as_json:
        _table(experiment, profiles).show()
    if file is None:
        raise CommandError(_why_not(experiment, chosen), ExitCode.NOT_FOUND)
    _show(profiles, chosen, file, html, limit, as_json, experiment)


def _profiles_of(experiment: Path) -> list[TrialProfile]:
    from ray_tune_memguard.report.profile_records import read_profiles

    found = Readings(experiment).require("profiles", read_profiles)
    if not found:
        reason = (
            "its run goes on and has begun none yet"
            if last_run(experiment).state == "running"
            else "its runs had no MemrayProfiler() among their callbacks, or it has profiled none"
        )
        raise CommandError(f"{experiment} has no profiles: {reason}.", ExitCode.NOT_FOUND)
    return found


def _chosen(experiment: Path, profiles: list[TrialProfile], trial: str | None) -> TrialProfile:
    if trial is None:
        # What a killed trial had at its peak is not in its record.
        return max(
            profiles,
            key=lambda one: (
                bool(_readable(experiment, one)),
                one.state == "error",
                one.peak_bytes,
            ),
        )
    found = [one for one in profiles if one.trial_id == trial]
    if not found:
        known = ", ".join(one_line(one.trial_id) for one in profiles[:_MAX_LINES])
        raise CommandError(
            f"{experiment} has no profile of trial {trial}, but of {known}.", ExitCode.NOT_FOUND
        )
    readable = (one for one in reversed(found) if _readable(experiment, one))
    return next(readable, found[-1])


def _readable(experiment: Path, one: TrialProfile) -> Path | None:
    """The profile where this machine can read it: in the experiment, or of a node that it is."""
    places = [experiment / one.file] if one.file else []
    places += [Path(one.path)] if one.path else []
    return next((place for place in places if _has_content(place)), None)


def _has_content(place: Path) -> bool:
    try:
        return os.path.isfile(place) and os.path.getsize(place) > 0
    except OSError:  # It may be removed at any moment.
        return False


def _why_not(experiment: Path, one: TrialProfile) -> str:
    if one.state == "removed":
        reason = "it was removed, because heavier trials were profiled (keep)"
    elif one.state == "running" and last_run(experiment).state == "running":
        reason = "the trial is being profiled; a profile can be read when its trial has finished"
    elif one.path:
        reason = f"it is at {one.path} on node {one.address}"
    else:
        reason = "it is not in the experiment's directory"
    text = f"The profile of trial {one.trial_id} cannot be read here: {reason}."
    return f"{text} {one.note}".strip()


def _table(experiment: Path, profiles: list[TrialProfile]) -> output.Table:
    columns = ("trial", "end", "peak", "file")
    rows = [
        (
            one_line(one.trial_id),
            one.state,
            size(one.peak_bytes or None),
            _place(experiment, one),
        )
        for one in profiles
    ]
    return output.Table(columns, rows, "Profiles", ("peak",))


def _place(experiment: Path, one: TrialProfile) -> str:
    if one.state == "removed":
        return ""
    file = _readable(experiment, one)
    return one_line(file if file is not None else f"{one.path} on node {one.address}")


def _show(
    profiles: list[TrialProfile],
    chosen: TrialProfile | None,
    file: Path,
    html: Path | None,
    limit: int,
    as_json: bool,
    experiment: Path | None = None,
) -> None:
    with output.working("Reading the profile"):
        peak = _peak_of(file)
        if html is not None:
            _write_flame_graph(file, html)
    lines = list(peak.lines[:limit] if limit else peak.lines)
    if as_json:
        output.show_json(
            {
                "profiles": profiles,
                "trial": None if chosen is None else chosen.trial_id,
                "file": str(file),
                "peak_bytes": peak.bytes,
                "lines": lines,
                "html": None if html is None else str(html),
            }
        )
        return
    if experiment is not None:
        _table(experiment, profiles).show()
        output.show_text()
    _lines_table(lines, peak.bytes, chosen).show()
    if len(lines) < len(peak.lines):
        output.show_text(f"{len(peak.lines) - len(lines)} more: --limit 0.", "dim")
    if chosen is not None and chosen.note:
        output.show_text(one_line(chosen.note))
    if html is not None:
        output.show_text(f"Flame graph: {html}")


def _lines_table(lines: list[Line], peak: int, chosen: TrialProfile | None) -> output.Table:
    rows = [
        (
            size(one.bytes),
            f"{one.share:.0%}",
            str(one.allocations),
            one_line(f"{one.file}:{one.line}" if one.file else "no Python code"),
            one_line(one.function),
            one_line(one.by),
        )
        for one in lines
    ]
    whose = "" if chosen is None else f" of trial {one_line(chosen.trial_id)}"
    title = f"Allocated at the peak{whose}: {size(peak)}"
    columns = ("bytes", "share", "allocations", "line", "in", "by")
    return output.Table(columns, rows, title, ("bytes", "share", "allocations"))


def _peak_of(file: Path) -> Peak:
    try:
        from ray_tune_memguard.report.memray_file import read_peak

        return read_peak(file)
    except ImportError as error:
        raise missing_extra("memray", "profile") from error
    except (OSError, ValueError, RuntimeError) as error:
        raise CommandError(f"{file} cannot be read as a profile of memray: {error}") from error


def _write_flame_graph(file: Path, html: Path) -> None:
    # In a process of its own: memray reads the whole profile into memory.
    command = [sys.executable, "-m", "memray", "flamegraph", "--force", "--output", str(html)]
    # The page then loads nothing from the network. Older versions of memray lack the option.
    done = _run([*command, "--no-web", str(file)])
    if done.returncode == _USAGE_OF_ARGPARSE:
        done = _run([*command, str(file)])
    if done.returncode or not html.exists():
        lines = (done.stderr or done.stdout).strip().splitlines()
        reason = lines[-1] if lines else f"memray ended with {done.returncode}"
        raise CommandError(f"{html} cannot be written: {reason}")


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)
