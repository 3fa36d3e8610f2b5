"""Deaths as a table, for commands and notebooks."""

from __future__ import annotations

from collections.abc import Sequence

from ray_tune_memguard.diagnostics.deaths.record import Death
from ray_tune_memguard.report.tables import Table, paragraph
from ray_tune_memguard.report.texts import moment, one_line, size

COLUMNS = ("time", "trial", "cause", "certainty", "used", "largest on its node", "then")
NUMBERS = ("used",)
#: Rows that a notebook shows.
MAX_ROWS = 100


def row(death: Death) -> tuple[str, ...]:
    """The cells of a death, one for each of :data:`COLUMNS`."""
    return (
        moment(death.time),
        one_line(death.trial_name or death.trial_id),
        one_line(f"{death.cause} ({death.detail})" if death.detail else death.cause),
        death.certainty,
        size(death.size_bytes),
        _largest(death),
        "tried again" if death.is_retried else "failed",
    )


def html(found: Sequence[Death]) -> str:
    """The latest deaths and what to do, for a notebook."""
    if not found:
        return paragraph("No trial has died.")
    latest = found[-MAX_ROWS:]
    title = f"{len(found):,} deaths"
    if len(latest) < len(found):
        title += f", the latest {len(latest)} of them"
    rows = [(*row(death), one_line(death.advice)) for death in latest]
    return Table((*COLUMNS, "what to do"), rows, title, NUMBERS).html()


def _largest(death: Death) -> str:
    if death.culprit is None:
        return ""
    if death.is_culprit:
        return "this trial"
    return one_line(f"{death.culprit.name}: {size(death.culprit.bytes)}")
