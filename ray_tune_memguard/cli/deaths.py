"""``memguard deaths``: which trials died, and what killed them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ray_tune_memguard.cli import output
from ray_tune_memguard.cli.experiments import (
    Readings,
    local_experiment,
    nothing_measured,
    path_argument,
)
from ray_tune_memguard.report.texts import one_line

if TYPE_CHECKING:
    from ray_tune_memguard.diagnostics.deaths.record import Death


@click.command()
@path_argument
@click.option("--trial", metavar="ID", help="Only deaths of this trial.")
@click.option("--cause", metavar="CAUSE", help="Only deaths of this cause, such as kernel_oom.")
@click.option("--details", is_flag=True, help="Print evidence, advice and Ray's text of each.")
@output.json_option
def deaths(path: str, trial: str | None, cause: str | None, details: bool, as_json: bool) -> None:
    """Tell which trials of an experiment died, and what killed them.

    PATH is the experiment's directory. The command lists each process of a trial that died, and
    each trial that ended with an out-of-memory error of its own, in all runs: the cause and how
    certain it is, what the process used, and which process used most on its node.

    \b
    Examples:
      memguard deaths ~/ray_results/sweep
      memguard deaths ~/ray_results/sweep --cause kernel_oom --details
      memguard deaths ~/ray_results/sweep --json

    The exit code is 0 also if trials have died, and 3 if no run of the experiment had a MemGuard()
    or a TrialDeathReporter().
    """
    from ray_tune_memguard.diagnostics.deaths.reading import read_deaths
    from ray_tune_memguard.report import driver_record
    from ray_tune_memguard.report.series_file import report_files

    experiment = local_experiment(path)
    found = Readings(experiment).require("records of deaths", read_deaths)
    if not found and not report_files(experiment, driver_record.FILE_PATTERN):
        raise nothing_measured(experiment, "records of deaths")
    chosen = [
        death for death in found if trial in (None, death.trial_id) and cause in (None, death.cause)
    ]
    if as_json:
        output.show_json(chosen)
    elif not found:
        output.show_text("No trial has died.", "green")
    elif not chosen:
        output.show_text(f"None of the {len(found)} deaths is of this kind.")
    else:
        table(chosen).show()
        for death in chosen if details else ():
            _show_details(death)


def table(found: list[Death], title: str = "") -> output.Table:
    """Deaths, a row for each."""
    from ray_tune_memguard.diagnostics.deaths.table import COLUMNS, NUMBERS, row

    return output.Table(COLUMNS, [row(death) for death in found], title, NUMBERS)


def _show_details(death: Death) -> None:
    output.show_text()
    output.show_text(one_line(death.summary or death.trial_name), "bold")
    for name, texts in (
        ("Seen", death.evidence),
        ("Not seen", death.absent),
        ("Do", (death.advice,) if death.advice else ()),
    ):
        for text in texts:
            output.show_text(f"  {name}: {one_line(text)}")
    for line in death.error.splitlines():
        output.show_text(f"    {one_line(line)}", "dim")
