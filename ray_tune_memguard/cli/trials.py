"""``memguard trials``: how much memory each trial took."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ray_tune_memguard.cli import output
from ray_tune_memguard.cli.experiments import Readings, local_experiment, path_argument
from ray_tune_memguard.cli.texts import duration
from ray_tune_memguard.report.texts import one_line, size

if TYPE_CHECKING:
    import pandas as pd

_ORDERS = {
    "peak": ("peak_rss_bytes", False),
    "anonymous": ("peak_anonymous_bytes", False),
    "growth": ("growth_bytes_per_s", False),
    "started": ("started", True),
}
#: The beginning of the columns that hold the configuration.
CONFIG = "config/"
_MAX_CONFIG_WIDTH = 60


@click.command()
@path_argument
@click.option("--sort", type=click.Choice(list(_ORDERS)), default="peak", help="The order of rows.")
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    help="How many trials; 0 for all. Default: 20 in a table, all in JSON.",
)
@output.json_option
def trials(path: str, sort: str, limit: int | None, as_json: bool) -> None:
    """Tell how much memory each trial of an experiment took.

    PATH is the experiment's directory. Each row is a trial, all of its processes together: its
    peak of resident memory (with "~" if it is the highest reading and not the kernel's own figure),
    its peak of anonymous memory (without shared memory and files), how fast it grew at its end, and
    its configuration. A running trial is listed when it has finished.

    \b
    Examples:
      memguard trials ~/ray_results/sweep
      memguard trials ~/ray_results/sweep --sort growth --limit 0
      memguard trials ~/ray_results/sweep --json

    The exit code is 3 if no trial was measured.
    """
    from ray_tune_memguard.report.trial_memory import read_trial_memory

    readings = Readings(local_experiment(path))
    found = readings.require("memory of trials", read_trial_memory)
    column, ascending = _ORDERS[sort]
    found = found.sort_values(column, ascending=ascending, kind="stable", ignore_index=True)
    if limit is None:
        limit = 0 if as_json else 20
    chosen = found.head(limit) if limit else found
    if as_json:
        output.show_json(chosen.to_dict("records"))
        return
    table(chosen).show()
    if len(chosen) < len(found):
        output.show_text(f"{len(found) - len(chosen)} more: --limit 0.", "dim")


def table(found: pd.DataFrame, title: str = "") -> output.Table:
    """The memory of trials, a row for each."""
    columns = ("trial", "end", "peak RSS", "anonymous", "growth/s", "took", "config")
    rows = [
        (
            one_line(row["trial_id"]),
            str(row["end"]),
            f"{'' if row['is_exact'] else '~'}{size(row['peak_rss_bytes'])}",
            size(row["peak_anonymous_bytes"]),
            size(row["growth_bytes_per_s"]),
            duration(row["seconds"]),
            config_of(row),
        )
        for row in found.to_dict("records")
    ]
    return output.Table(columns, rows, title, ("peak RSS", "anonymous", "growth/s", "took"))


def config_of(row: dict[str, object]) -> str:
    """The configuration of a trial as a short text."""
    entries = (
        f"{name.removeprefix(CONFIG)}={_value(value)}"
        for name, value in row.items()
        # Trials that lack an entry have NaN, which is not equal to itself.
        if name.startswith(CONFIG) and value is not None and value == value
    )
    return one_line(" ".join(entries), _MAX_CONFIG_WIDTH)


def _value(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
