"""``memguard verify``: whether an experiment's files are whole, and what a restore would do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ray_tune_memguard.cli import output
from ray_tune_memguard.cli.exit_codes import ExitCode
from ray_tune_memguard.cli.experiments import failures_of, location, path_argument
from ray_tune_memguard.report.texts import one_line

if TYPE_CHECKING:
    from ray_tune_memguard.adapter.restore.offline import Examination


@click.command()
@path_argument
@click.option(
    "--errored",
    type=click.Choice(["skip", "resume", "restart"]),
    default="skip",
    help="What a restore does with failed trials, as resume_errored and restart_errored of "
    "Tuner.restore. Default: skip.",
)
@output.json_option
@click.pass_context
def verify(context: click.Context, path: str, errored: str, as_json: bool) -> None:
    """Tell whether an experiment's files are whole, and what a restore would do.

    PATH is the experiment's directory, or its URI. The command checks every row of the trial store
    and of the file with all results, and says what Tuner.restore(PATH).fit() would do with each
    trial. It writes nothing into the experiment: a damaged store is not rebuilt, but the command
    says what would be left of it.

    \b
    Examples:
      memguard verify ~/ray_results/sweep
      memguard verify ~/ray_results/sweep --errored restart
      memguard verify s3://bucket/sweep --json

    The exit code is 0 if the files are whole (also if Ray ran alone, so that there is no store), 10
    if a file is damaged and a restore works nevertheless, 20 if nothing can be restored, and 1 if
    the run is not over.
    """
    from ray_tune_memguard.adapter import handle

    with failures_of(path, "examined"):
        found = handle.examine(location(path), None, errored=errored)
    if as_json:
        output.show_json(_as_dict(found))
    else:
        _show(found)
    context.exit(_code(found))


def _code(found: Examination) -> ExitCode:
    from ray_tune_memguard.adapter.restore import offline

    if found.source == offline.NOTHING:
        return ExitCode.SEVERE
    is_damaged = found.problems or (found.histories is not None and found.histories.damage)
    return ExitCode.WARNING if is_damaged else ExitCode.OK


def _as_dict(found: Examination) -> dict[str, object]:
    from dataclasses import asdict

    return asdict(found)


def _show(found: Examination) -> None:
    from ray_tune_memguard.adapter.restore import offline

    sentences = {
        offline.STORE: (f"The trial store {found.store} is whole.", "green"),
        offline.REBUILT: (
            f"The trial store is damaged. A restore rebuilds it from its intact rows and "
            f"{found.state_file}.",
            "yellow",
        ),
        offline.STATE_FILE: (
            f"The last run left no trial store: Ray ran alone. A restore reads {found.state_file}.",
            "cyan",
        ),
        offline.NOTHING: ("Nothing can be restored.", "bold red"),
    }
    output.show_text(*sentences[found.source])
    for problem in found.problems:
        output.show_text(f"  {one_line(problem)}")
    if found.source != offline.NOTHING:
        _show_plan(found)
    histories = found.histories
    if histories is not None and histories.damage:
        output.show_text(f"{histories.path} is damaged: {one_line(histories.damage)}.", "yellow")
    elif histories is not None:
        output.show_text(
            f"{histories.path} is whole: {histories.results:,} results of {histories.trials:,} "
            "trials.",
            "green",
        )


def _show_plan(found: Examination) -> None:
    rows = [
        (status, f"{count:,}", treatment)
        for treatment, counts in (
            ("stay on disk, finished", found.staying),
            ("return to memory", found.returning),
        )
        for status, count in sorted(counts.items())
    ]
    if not rows:
        output.show_text("It has no trials.")
        return
    output.show_table(("status", "trials", "what a restore does"), rows, numbers=("trials",))
    if found.unsnapshotted:
        output.show_text(
            f"Finished after the last experiment checkpoint: {found.unsnapshotted:,}. These do not "
            "run again, and the searcher is told of their results."
        )
