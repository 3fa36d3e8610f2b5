"""Formats a diagnosis for a notebook, as ``text`` does for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from ray_tune_memguard.diagnostics import text
from ray_tune_memguard.diagnostics.findings import GrowingSite, Judgement, Quantity, TypeGrowth
from ray_tune_memguard.report.tables import Table, paragraph


def growth(sites: Sequence[GrowingSite], types: Sequence[TypeGrowth], judgement: Judgement) -> str:
    """The tables of sites and of types that grow, or a sentence if no site does."""
    per = f"per {judgement.unit}"
    shown = _sites(sites, per) if sites else paragraph(text.no_growth(judgement))
    most = [] if sites else text.fastest(judgement, judgement.rss_slope)
    if most:
        shown += _quantities(text.MOST, "site", most, judgement.unit)
    shown += "".join(paragraph(text.unjudged(one)) for one in judgement.unjudged[: text.MAX_ROWS])
    if types:
        kinds = [(kind.name, f"{kind.slope:+.2f}", kind.path) for kind in types]
        title = "Types whose number of objects grows"
        columns = ("type", f"objects {per}", "one of them")
        shown += Table(columns, kinds[: text.MAX_ROWS], title, columns[1:2]).html()
    return shown


def parts(trials: int, results: int, found: Sequence[Quantity], judgement: Judgement) -> str:
    """The table of the categories of RSS, and those that are unknown."""
    title = text.title(trials, results, judgement)
    shown = _quantities(title, "category", found, judgement.unit)
    absent = judgement.absent.items()
    unknown = (f"{name}: not known, because {reason}" for name, reason in absent)
    return shown + "".join(map(paragraph, unknown))


def processes(found: Sequence[Quantity], unit: str) -> str:
    """The table of Ray's other processes, if there are any."""
    return _quantities(text.PROCESSES, "process", found, unit) if found else ""


def _sites(sites: Sequence[GrowingSite], per: str) -> str:
    rows = [
        (
            site.name,
            site.part,
            text.slope(site.slope, site.uncertainty),
            text.size_of(site),
            site.path,
            site.advice,
        )
        for site in sites[: text.MAX_ROWS]
    ]
    title = "What grows" + (f", the first {len(rows)}" if len(rows) < len(sites) else "")
    columns = ("what", "category", per, "now", "path", "advice")
    return Table(columns, rows, title, (per, "now")).html()


def _quantities(title: str, kind: str, rows: Sequence[Quantity], unit: str) -> str:
    per = f"per {unit}"
    cells = [(row.name, text.size(row.bytes), text.slope_by(row, unit), row.advice) for row in rows]
    return Table((kind, "now", per, "advice"), cells, title, ("now", per)).html()
