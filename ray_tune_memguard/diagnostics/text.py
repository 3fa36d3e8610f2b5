"""Formats a diagnosis for a terminal."""

from __future__ import annotations

import math
import textwrap

from ray_tune_memguard.diagnostics.findings import (
    GrowingSite,
    Judgement,
    Quantity,
    TypeGrowth,
    Unjudged,
)
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
#: A site that explains less than this share of RSS's growth is no suspect.
_MIN_SHARE_OF_A_SUSPECT = 0.1
#: The sites without time that a sentence names.
_MAX_NAMES = 3
_ARROW = " → "


def size(count: float) -> str:
    """Format bytes with a suitable unit."""
    if not math.isfinite(count):
        return UNKNOWN
    for unit, limit in (("MiB", 2**20), ("KiB", 2**10)):
        if abs(count) >= limit:
            return f"{count / limit:.1f} {unit}"
    return f"{count:.0f} B"


def size_of(site: GrowingSite) -> str:
    """The size of a growing site, and whether it is an estimate."""
    return f"about {size(site.bytes)}" if site.is_estimated else size(site.bytes)


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
    return f"Memory of the driver after {trials:,} trials and {results:,} results of this run{over}"


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
            lines.append(f"  {figure:>22}  {site.name} ({site.part}, {size_of(site)})")
            for paragraph in (site.path, site.advice):
                lines += textwrap.wrap(
                    paragraph, _WIDTH, initial_indent=" " * 26, subsequent_indent=" " * 26
                )
        if len(sites) > MAX_ROWS:
            lines.append(f"  … and {len(sites) - MAX_ROWS} more")
    else:
        lines = textwrap.wrap(no_growth(judgement), _WIDTH)
        lines += _quantities(MOST, fastest(judgement, judgement.rss_slope), unit)
    for one in judgement.unjudged[:MAX_ROWS]:
        lines += textwrap.wrap(unjudged(one), _WIDTH, subsequent_indent="  ")
    if types:
        lines.append(f"Types whose number of objects grows with every {unit}:")
        lines += [
            f"  {kind.slope:>+16.2f} a {unit}  {kind.name}  {kind.path}"[:_WIDTH]
            for kind in types[:MAX_ROWS]
        ]
    return lines


def no_growth(judgement: Judgement) -> str:
    """The sentence about a run in which no site is known to grow."""
    if judgement.rss_slope and (judgement.is_judged or judgement.unjudged):
        figure = slope(judgement.rss_slope, None)
        names, them = _without_time(judgement)
        more = (
            f"Suspect {names} first: there was no time to measure {them}."
            if names
            else "A longer run tells more, and so does a larger growth_budget."
        )
        return (
            f"RSS grows by {figure} per {judgement.unit}, and what holds it is not known yet. "
            f"{more}"
        )
    if judgement.is_judged:
        return f"Nothing grows steadily with {judgement.unit}s."
    if judgement.unjudged or judgement.absent.keys() & NEEDED_TO_JUDGE:
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
    """One line about growth of RSS, or of a site, while no holder is known; empty if small."""
    grows = rss.per_trial if judgement.unit == "trial" else rss.per_result
    if grows is None or grows < _MIN_UNEXPLAINED or not judgement.is_open:
        # RSS may show growth later than the site: memory that was freed before is used first.
        fast = (site for site in judgement.unjudged if site.slope >= _MIN_UNEXPLAINED)
        return next(map(unjudged, fast), "")
    rows = fastest(judgement, grows, with_unjudged=True)
    sites = ", ".join(f"{site.name} ({slope_by(site, judgement.unit)})" for site in rows)
    names, them = _without_time(judgement)
    reason, more = (
        (f"there was no time to measure {names}; suspect {them} first", "")
        if names
        else (
            "there were too few samples to tell what holds it",
            "; a longer run and a larger growth_budget give more samples",
        )
    )
    return (
        f"RSS grows by {slope(grows, None)} per {judgement.unit}, and {reason}. "
        f"{f'Fastest so far: {sites}. ' if sites else ''}More is in `memguard show`{more}."
    )


def unjudged(site: Unjudged) -> str:
    """What is known of a site that could not be judged."""
    if site.is_no_time:
        reason = "too big to measure in time"
        known = f"about {size(site.bytes)}, measured {_times(site.measured)}"
        known = "never measured" if math.isnan(site.bytes) else known
    else:
        reason, known = f"measured {_times(site.measured)} only", size(site.bytes)
    grew = (
        f" It grew by {slope(site.slope, None)} per {site.unit} between its measurements."
        if site.slope
        else ""
    )
    return f"{site.name} could not be judged: {reason} ({known}).{grew}"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _without_time(judgement: Judgement) -> tuple[str, str]:
    """The first sites that there was no time to measure, if there are any, and their pronoun."""
    names = judgement.without_time
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more, "it" if len(names) == 1 else "them"


def fastest(judgement: Judgement, grows: float, with_unjudged: bool = False) -> list[Quantity]:
    """The sites that grew fastest, if it is open what grows, and if they explain some of it.

    Args:
        judgement: what is known.
        grows: the slope of RSS.
        with_unjudged: whether to include those that have a sentence of their own in a table.
    """
    if not judgement.is_open:
        return []
    least = _MIN_SHARE_OF_A_SUSPECT * grows
    told = set() if with_unjudged else {site.name for site in judgement.unjudged}
    return [
        row
        for row in judgement.most
        if (row.per_trial or row.per_result or 0.0) >= least and row.name not in told
    ]


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
