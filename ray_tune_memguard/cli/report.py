"""``memguard report``: what was measured of an experiment, as one HTML file."""

from __future__ import annotations

from pathlib import Path

import click

from ray_tune_memguard.cli import output
from ray_tune_memguard.cli.exit_codes import CommandError, ExitCode, missing_extra
from ray_tune_memguard.cli.experiments import local_experiment, nothing_measured, path_argument
from ray_tune_memguard.cli.measured import Measured
from ray_tune_memguard.report.replacing import replacing
from ray_tune_memguard.report.texts import one_line


@click.command()
@path_argument
@click.option(
    "--output",
    "-o",
    "target",
    metavar="FILE",
    default="memguard-report.html",
    type=output.FilePath(dir_okay=False, path_type=Path),
    help="The file. Default: memguard-report.html here.",
)
@click.option(
    "--rows",
    type=click.IntRange(min=1),
    default=200,
    help="The most rows of a table. Default: 200.",
)
@output.json_option
@click.pass_context
def report(context: click.Context, path: str, target: Path, rows: int, as_json: bool) -> None:
    """Write all that was measured of an experiment to one HTML file.

    PATH is the experiment's directory; its run may go on, have ended or have been killed. The page
    has what "show" prints, in words, pictures and tables: the driver's memory and what it consists
    of, the peak of each trial against its configuration, deaths and waiting trials on a time line,
    and Ray's processes on the head node. It loads nothing from the network, so that it can be kept
    or sent. A file that is there is replaced when the new one is complete. The command needs the
    extra "report" (jinja2 and matplotlib).

    \b
    Examples:
      memguard report ~/ray_results/sweep
      memguard report ~/ray_results/sweep --output sweep.html
      memguard report ~/ray_results/sweep --json

    The exit code is 0, or 10 if nothing of one kind of records can be read (the page has the rest;
    a line that a kill has cut is skipped), or 3 if nothing was measured, or 5 without the extra.
    """
    experiment = local_experiment(path)
    try:
        from ray_tune_memguard.cli.page.render import render
    except ImportError as error:
        raise missing_extra("jinja2 and matplotlib", "report") from error
    with output.working("Drawing"):
        measured = Measured.of(experiment)
        if measured.is_empty:
            raise nothing_measured(experiment, "measurements")
        page, problems = render(measured, rows)
    try:
        with replacing(target) as part:
            part.write_text(page, encoding="utf-8", errors="replace")
    except OSError as error:
        raise CommandError(f"{target} cannot be written: {error}") from error
    if as_json:
        output.show_json({"path": str(target), "problems": problems})
    elif output.is_kept(target):
        output.show_text(f"Wrote {one_line(target.absolute())}")
    context.exit(ExitCode.WARNING if problems else ExitCode.OK)
