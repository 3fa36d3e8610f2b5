"""``memguard show``: all that was measured of an experiment."""

from __future__ import annotations

import click

from ray_tune_memguard.cli import output
from ray_tune_memguard.cli.exit_codes import ExitCode
from ray_tune_memguard.cli.experiments import local_experiment, nothing_measured, path_argument
from ray_tune_memguard.cli.measured import Measured


@click.command()
@path_argument
@click.option(
    "--rows", type=click.IntRange(min=1), default=5, help="How many trials and deaths. Default: 5."
)
@output.json_option
@click.pass_context
def show(context: click.Context, path: str, rows: int, as_json: bool) -> None:
    """Show all that was measured of an experiment.

    PATH is the experiment's directory; its run may go on, have ended or have been killed. The
    command shows how its last run stands, the driver's memory over its trials, who holds memory,
    the trials that took most, which trials died, why trials waited, Ray's processes on the head
    node, and what stays in the object store. What was not measured is left out.

    \b
    Examples:
      memguard show ~/ray_results/sweep
      memguard show ~/ray_results/sweep --rows 20
      memguard show ~/ray_results/sweep --json

    The exit code is 0, or 10 if nothing of one kind of records can be read (the rest is shown; a
    line that a kill has cut is skipped), or 3 if nothing was measured.
    """
    experiment = local_experiment(path)
    with output.working("Reading"):
        measured = Measured.of(experiment)
    if measured.is_empty and measured.run.state != "running":
        raise nothing_measured(experiment, "measurements")
    if as_json:
        output.show_json(measured.as_dict())
    else:
        measured.show(rows)
    context.exit(ExitCode.WARNING if measured.problems else ExitCode.OK)
