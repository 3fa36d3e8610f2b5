"""Formats a diagnosis for a notebook."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ray_tune_memguard.diagnostics import text
from ray_tune_memguard.report.tables import Table, paragraph

if TYPE_CHECKING:
    from ray_tune_memguard.diagnostics.diagnosis import Diagnosis
    from ray_tune_memguard.diagnostics.findings import Quantity


def diagnosis(found: Diagnosis) -> str:
    """The tables of a diagnosis: what grows first, then what the driver's memory consists of."""
    per = f"per {found.unit}"
    shown = [_growth(found, per)]
    if found.types:
        kinds = [(kind.name, f"{kind.slope:+.2f}", kind.path) for kind in found.types]
        title = "Types whose number of objects grows"
        columns = ("type", f"objects {per}", "one of them")
        shown.append(Table(columns, kinds[: text.MAX_ROWS], title, columns[1:2]).html())
    title = text.title(found.trials, found.results)
    shown.append(_quantities(title, "category", found.parts, found.unit))
    shown += [
        paragraph(f"{name}: not known, because {reason}") for name, reason in found.absent.items()
    ]
    if found.processes:
        shown.append(_quantities(text.PROCESSES, "process", found.processes, found.unit))
    return "".join(shown)


def _growth(found: Diagnosis, per: str) -> str:
    if not found.holders:
        return paragraph(text.no_growth(found.unit, found.is_judged, found.absent))
    rows = [
        (
            site.name,
            site.part,
            text.slope(site.slope, site.uncertainty),
            text.size(site.bytes),
            site.path,
            site.advice,
        )
        for site in found.holders[: text.MAX_ROWS]
    ]
    title = "What grows" + (f", the first {len(rows)}" if len(rows) < len(found.holders) else "")
    columns = ("what", "category", per, "now", "path", "advice")
    return Table(columns, rows, title, (per, "now")).html()


def _quantities(title: str, kind: str, rows: list[Quantity], unit: str) -> str:
    per = f"per {unit}"
    cells = [(row.name, text.size(row.bytes), text.slope_by(row, unit), row.advice) for row in rows]
    return Table((kind, "now", per, "advice"), cells, title, ("now", per)).html()
