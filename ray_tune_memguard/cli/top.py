"""``memguard top``: what ``show`` shows, again and again while the run goes on."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path

import click

from ray_tune_memguard.cli import output
from ray_tune_memguard.cli.exit_codes import CommandError, ExitCode
from ray_tune_memguard.cli.experiments import (
    is_quiet,
    local_experiment,
    newest_in,
    nothing_measured,
)
from ray_tune_memguard.cli.measured import Measured

_RESULTS = "~/ray_results"
_PAUSE_PER_LOOK = 10
_OVER = ("finished", "killed")


@click.command()
@click.argument("path", type=click.Path(path_type=str), required=False)
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1),
    default=2.0,
    help="Seconds between two looks, at least. Default: 2.",
)
@click.option("--count", type=click.IntRange(min=1), help="End after this number of looks.")
@click.option(
    "--rows", type=click.IntRange(min=1), default=5, help="How many trials and deaths. Default: 5."
)
@output.json_option
def top(path: str | None, interval: float, count: int | None, rows: int, as_json: bool) -> None:
    """Show what is measured of an experiment while its run goes on.

    PATH is the experiment's directory; without it, the experiment in ~/ray_results that was
    measured last. The command shows what "show" shows, from another terminal, and again at each
    interval, until the run ends or you press Ctrl+C. Of a run on another machine that is not known;
    there it ends when nothing has been recorded for 20 minutes. It reads files only, and does not
    disturb the run: each look reads all records, and the pause after it is at least ten times as
    long as the look. With --json each look is an object of its own.

    \b
    Examples:
      memguard top
      memguard top ~/ray_results/sweep --interval 10
      memguard top ~/ray_results/sweep --count 1 --json

    The exit code is 3 if there is no experiment, or if its run is over and nothing was measured.
    """
    experiment = _newest() if path is None else local_experiment(path)
    looks = 0
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            began = time.monotonic()
            measured = Measured.of(experiment)
            is_over = measured.run.state in _OVER or (
                measured.run.state == "unknown" and is_quiet(experiment)
            )
            if is_over and measured.is_empty:
                raise nothing_measured(experiment, "measurements")
            _look(measured, rows, as_json)
            looks += 1
            if is_over or looks == count:
                return
            # Of a hundred thousand trials a look takes a second or two of a core.
            time.sleep(max(interval, _PAUSE_PER_LOOK * (time.monotonic() - began)))


def _newest() -> Path:
    found = newest_in(Path(_RESULTS).expanduser())
    if found is None:
        raise CommandError(
            f"No experiment in {_RESULTS} was measured. Give the PATH of one that is elsewhere.",
            ExitCode.NOT_FOUND,
        )
    return found


def _look(measured: Measured, rows: int, as_json: bool) -> None:
    if as_json:
        output.show_json(measured.as_dict())
        return
    if sys.stdout.isatty():
        click.clear()
    measured.show(rows)
    sys.stdout.flush()
