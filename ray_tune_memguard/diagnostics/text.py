"""Formats a diagnosis for a terminal."""

from __future__ import annotations

import math
import textwrap

from ray_tune_memguard.diagnostics.findings import GrowingSite, Judgement, Quantity, TypeGrowth
from ray_tune_memguard.diagnostics.growth import MIN_SPAN
from ray_tune_memguard.diagnostics.trend import MIN_POINTS
from ray_tune_memguard.report.series import RESULTS_PER_TRIAL, WARM_UP_TRIALS
from ray_tune_memguard.report.texts import UNKNOWN

#: Growth is not judged without these measurements.
NEEDED_TO_JUDGE = frozenset({"holders", "sizes"})
_WIDTH = 100
#: Of a table.
MAX_ROWS = 10
PROCESSES = "Ray's other processes on this machine:"
MOST = "What has grown fastest so far, by too few samples to judge it:"
#: Bytes per trial by which RSS grows that are worth a line although it is not known what holds it.
_MIN_UNEXPLAINED = 8 * 2**10
#: A slope with a larger uncertainty than itself is shown if that is at most so many bytes.
_MAX_NOISE = 64 * 2**10
_ARROW = " → "


def size(count: float) -> str:
    """Format bytes with a suitable unit."""
    if not math.isfinite(count):
        return UNKNOWN
    for unit, limit in (("MiB", 2**20), ("KiB", 2**10)):
        if abs(count) >= limit:
            return f"{count / limit:.1f} {unit}"
    return f"{count:.0f} B"


def slope(value: float | None, uncertainty: float | None) -> str:
    """Format bytes per trial and their uncertainty with one unit."""
    if value is None:
        return UNKNOWN
    unit, name = (1024.0, "KiB") if abs(value) >= 1024 else (1.0, "B")
    digits = 1 if unit > 1 else 0
    text = f"{value / unit:+.{digits}f}"
    if uncertainty is not None:
        text += f" ± {uncertainty / unit:.{digits}f}"
    return f"{text} {name}"


def line(site: GrowingSite, trials: int) -> str:
    """One line about a retention site that has begun to grow."""
    figure = slope(site.slope, None)
    text = f"trial#{trials}  {site.name} grows by {figure} per {site.unit}  "
    path = site.path.removeprefix(f"{site.name}{_ARROW}")
    return f"{text}({_shortened(path or site.part, _WIDTH - len(text) - 2)})"


def _shortened(path: str, width: int) -> str:
    """The path without its middle, if it is too long: what holds, and what is held."""
    parts = path.split(_ARROW)
    while len(path) > width and len(parts) > 2:
        del parts[-2]
        path = _ARROW.join([*parts[:-1], "…", parts[-1]])
    return path


def title(trials: int, results: int, judgement: Judgement) -> str:
    """The line above the categories of RSS: of which moment they are, and over what they grew."""
    over = f", growth over the last {judgement.span:,} {judgement.unit}s" if judgement.span else ""
    return f"Memory of the driver after {trials:,} trials and {results:,} results{over}"


def parts(trials: int, results: int, found: list[Quantity], judgement: Judgement) -> list[str]:
    """The lines about the categories of RSS, including those that are unknown."""
    unit, absent = judgement.unit, judgement.absent
    lines = [title(trials, results, judgement)]
    lines += _quantities("", found, unit)
    if results > 2 * trials and unit == "trial" and any(part.per_result for part in found):
        slopes = [f"{part.name} {slope(part.per_result, None)}" for part in found]
        lines.append(f"  per result: {', '.join(slopes)}")
    lines += [f"  {name:<28} not known: {reason}" for name, reason in absent.items()]
    return lines


def growth(sites: list[GrowingSite], types: list[TypeGrowth], judgement: Judgement) -> list[str]:
    """The lines about sites and types that grow, or about what is known if none does."""
    unit = judgement.unit
    if sites:
        lines = [f"What grows, by bytes per {unit}:"]
        for site in sites[:MAX_ROWS]:
            figure = slope(site.slope, site.uncertainty)
            lines.append(f"  {figure:>22}  {site.name} ({site.part}, {size(site.bytes)})")
            for paragraph in (site.path, site.advice):
                lines += textwrap.wrap(
                    paragraph, _WIDTH, initial_indent=" " * 26, subsequent_indent=" " * 26
                )
        if len(sites) > MAX_ROWS:
            lines.append(f"  … and {len(sites) - MAX_ROWS} more")
    else:
        lines = textwrap.wrap(no_growth(judgement), _WIDTH)
        if judgement.is_open:
            lines += _quantities(MOST, judgement.most, unit)
    if types:
        lines.append(f"Types whose number of objects grows with every {unit}:")
        lines += [
            f"  {kind.slope:>+16.2f} a {unit}  {kind.name}  {kind.path}"[:_WIDTH]
            for kind in types[:MAX_ROWS]
        ]
    return lines


def no_growth(judgement: Judgement) -> str:
    """The sentence about a run in which no site is known to grow."""
    if judgement.is_judged and judgement.rss_slope:
        figure = slope(judgement.rss_slope, None)
        return (
            f"RSS grows by {figure} per {judgement.unit}, and what holds it is not known yet. A "
            "longer run tells more, and so does a larger growth_budget."
        )
    if judgement.is_judged:
        return f"Nothing grows steadily with {judgement.unit}s."
    if judgement.absent.keys() & NEEDED_TO_JUDGE:
        return (
            "Growth cannot be judged: not everything could be measured. On a machine that is less "
            "busy, or in a longer run, more can."
        )
    count = judgement.samples
    samples = "is 1 sample" if count == 1 else f"are {count} samples"
    return (
        f"Too early to tell what grows: after a warm-up of {WARM_UP_TRIALS} trials it takes "
        f"{MIN_SPAN} trials more (or {MIN_SPAN * RESULTS_PER_TRIAL:,} results) and {MIN_POINTS} "
        f"samples. There {samples} over {judgement.span:,} {judgement.unit}s. A longer run has "
        "more, and so has a larger growth_budget."
    )


def unexplained(rss: Quantity, judgement: Judgement) -> str:
    """One line about RSS that grows while no holder is known; empty if it hardly grows."""
    grows = rss.per_trial if judgement.unit == "trial" else rss.per_result
    if grows is None or grows < _MIN_UNEXPLAINED or not judgement.is_open:
        return ""
    sites = ", ".join(f"{site.name} ({slope_by(site, judgement.unit)})" for site in judgement.most)
    return (
        f"RSS grows by {slope(grows, None)} per {judgement.unit}, and there were too few samples "
        f"to tell what holds it. {f'Fastest so far: {sites}. ' if sites else ''}More is in "
        "`memguard show`; a longer run and a larger growth_budget give more samples."
    )


def processes(found: list[Quantity], unit: str) -> list[str]:
    """The lines about Ray's other processes."""
    return _quantities(PROCESSES, found, unit)


def slope_by(row: Quantity, unit: str) -> str:
    """The slope of a quantity per ``unit``."""
    if unit == "trial":
        is_noise = (row.uncertainty or 0.0) > max(abs(row.per_trial or 0.0), _MAX_NOISE)
        return UNKNOWN if is_noise else slope(row.per_trial, row.uncertainty)
    return slope(row.per_result, None)


def _quantities(heading: str, rows: list[Quantity], unit: str) -> list[str]:
    lines = [heading] if heading and rows else []
    for row in rows:
        figure = slope_by(row, unit)
        grows = "" if figure == UNKNOWN else f"  {figure:>22} per {unit}"
        lines.append(f"  {row.name:<28}{size(row.bytes):>12}{grows}")
        if row.advice:
            lines += textwrap.wrap(
                row.advice, _WIDTH, initial_indent=" " * 30, subsequent_indent=" " * 30
            )
    return lines
