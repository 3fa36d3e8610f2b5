"""``memguard export``: the results of an experiment, as files that other programs read."""

from __future__ import annotations

from typing import Literal

import click

from ray_tune_memguard.cli import output
from ray_tune_memguard.cli.exit_codes import CommandError
from ray_tune_memguard.cli.experiments import failures_of, location, path_argument


@click.command()
@path_argument
@click.option(
    "--to",
    type=click.Choice(["parquet", "csv", "json", "files"]),
    default="parquet",
    help="The format. Default: parquet.",
)
@click.option(
    "--destination",
    "-o",
    type=output.FilePath(),
    help="The file, or for files the directory. Default: results.parquet, results.csv or "
    "results.json here; for files the trials' own directories.",
)
@output.json_option
def export(
    path: str,
    to: Literal["parquet", "csv", "json", "files"],
    destination: str | None,
    as_json: bool,
) -> None:
    """Write all results of an experiment to files that other programs read.

    PATH is the experiment's directory, or its URI; it may have run with or without MemGuard, and,
    but for files, its run may go on. With parquet, csv and json all results become one table, with
    a row for each result (json: an object a line). With files each trial gets the files of Ray's
    loggers: result.json, progress.csv, params.json, params.pkl and TensorBoard's events. A file
    that is there is replaced when the new one is complete; event files that no export has written
    stay.

    \b
    Examples:
      memguard export ~/ray_results/sweep
      memguard export ~/ray_results/sweep --to csv -o all.csv
      memguard export ~/ray_results/sweep --to files

    The exit code is 1 if the results cannot be read now, or the file cannot be written. With files
    it is also 1 if something was left out; the message says what, and the rest is written.
    """
    from ray_tune_memguard.exporting import IncompleteExportError, export_results

    with failures_of(path, "exported"):
        try:
            written = export_results(location(path), to, destination=destination)
        except IncompleteExportError as error:
            raise CommandError(f"{path} is not exported completely. {error}") from error
    if as_json:
        output.show_json({"format": to, "path": written})
    elif output.is_kept(written):
        output.show_text(written)
