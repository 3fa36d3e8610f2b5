"""Ranks retention sites, categories of RSS and types by their steady growth."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

from ray_tune_memguard.diagnostics import advice
from ray_tune_memguard.diagnostics.diagnosis import Diagnosis
from ray_tune_memguard.diagnostics.findings import GrowingSite, Quantity, TypeGrowth, Unjudged
from ray_tune_memguard.diagnostics.growth import UNMEASURED, GrowthSeries
from ray_tune_memguard.diagnostics.trend import MIN_POINTS, Trend
from ray_tune_memguard.report.line import Line
from ray_tune_memguard.report.series import RESULTS_PER_TRIAL

#: The categories of RSS, in the order in which they are shown.
CATEGORIES = ("rss", "python", "native", "slack", "shared")
#: By category: the series of the memory that no site accounts for. The names are on disk.
UNATTRIBUTED = {
    "python": "python rest",
    "native": "native rest",
    "slack": "slack",
    "shared": "shared",
}
UNATTRIBUTED_NAMES = {
    "python": "Python objects (unattributed)",
    "native": "native memory (unattributed)",
    "slack": "allocator slack",
    "shared": "mapped files and shared memory",
}
#: Bytes per trial below which growth is ignored: sites have some noise, categories more.
MIN_SITE_SLOPE = 32.0
MIN_UNATTRIBUTED_SLOPE = 1024.0
#: Bytes by which a site must have grown since warm-up.
MIN_SITE_GROWTH = 8 * 2**10
#: Bytes by which a category must have grown since warm-up; more than its variation. Python objects
#: vary because of garbage that is not yet collected.
MIN_UNATTRIBUTED_GROWTH = {"python": 768 * 2**10}
MIN_NATIVE_GROWTH = 3 * 2**20
#: A slope whose uncertainty is larger than this share of it is ignored.
MAX_UNCERTAINTY = 0.5
#: RSS must grow by this share of the unattributed slope of a category.
MIN_SHARE_OF_RSS = 0.5
#: Unattributed growth is dropped if newly found sites explain this share of it.
MIN_SHARE_EXPLAINED = 0.5
#: A site counts as cleared if it has kept less than this share of its growth.
MIN_SHARE_KEPT = 0.5
#: Processes other than the driver.
MIN_PROCESS_SLOPE = 4096.0
#: Entries of a container per trial.
MIN_ENTRIES_SLOPE = 0.05
#: Objects of a type per trial.
MIN_TYPE_SLOPE = 0.05
#: The number of sites that are named before growth can be judged.
MAX_UNJUDGED = 3


@dataclass(frozen=True)
class KnownSite:
    """The facts about a retention site that the ranking uses besides its series."""

    role: str
    #: The owner of its code: ``user``, ``ray``, or ``library``.
    owner: str
    #: The category of RSS that most of its memory is in.
    category: str
    #: Whether its size varies although it does not grow.
    is_noisy: bool = False
    #: Whether its size was estimated from few entries, because there was no time for more.
    is_estimated: bool = False


def rank(
    series: GrowthSeries,
    known: Mapping[str, KnownSite],
    circumstances: advice.Circumstances,
) -> Diagnosis:
    """The diagnosis from the series alone, without paths."""
    sites, rss_slope = [], 0.0
    circumstances = dataclasses.replace(circumstances, unit=series.unit)
    if series.is_long_enough:
        sites = [*_sites(series, known, circumstances), *_unattributed(series, circumstances)]
        sites.sort(key=lambda site: -site.slope)
        rss = series.trend("part", "rss")
        if rss is not None and _grows(rss, MIN_UNATTRIBUTED_SLOPE, series.unit):
            rss_slope = rss.slope if rss.slope * series.span >= MIN_NATIVE_GROWTH else 0.0
    unjudged = _unjudged(series, known, {site.name for site in sites})
    return Diagnosis(
        trials=series.trials[-1] if series.trials else 0,
        results=series.results[-1] if series.results else 0,
        span=series.span,
        unit=series.unit,
        is_judged=series.is_long_enough and not unjudged,
        holders=sites,
        parts=[
            _quantity(series, "part", name) for name in CATEGORIES if name in series.names("part")
        ],
        types=_types(series),
        processes=[_process(series, name) for name in series.names("process")],
        samples=series.samples,
        most=[] if sites else _most(series, known),
        unjudged=unjudged,
        rss_slope=rss_slope,
    )


def _unjudged(
    series: GrowthSeries, known: Mapping[str, KnownSite], named: set[str]
) -> list[Unjudged]:
    """The sites that were measured in too few samples, or that the last one had no time for."""
    found = []
    without_time = dict.fromkeys(series.names(UNMEASURED))
    for name in dict.fromkeys([*without_time, *series.names("holder")]):
        if name in named:
            continue
        measured = series.count("holder", name)
        is_new = measured < MIN_POINTS
        is_no_time = name in without_time and (
            series.is_in_last(UNMEASURED, name) or (is_new and series.count(UNMEASURED, name) > 0)
        )
        # In a short run, all sites are new.
        if not is_no_time and not (is_new and series.is_long_enough):
            continue
        slope = _grown(series, known, name)
        # Of a new site it is known only if it grows.
        if is_no_time or slope > 0:
            last = series.last("holder", name)
            found.append(Unjudged(name, last, measured, is_no_time, slope, series.unit))
    found.sort(key=lambda site: (-site.slope, not site.is_no_time))
    return found


def _grown(series: GrowthSeries, known: Mapping[str, KnownSite], name: str) -> float:
    """The slope of a site from its first to its last sample since warm-up; 0 if that is little."""
    grown, slope = series.grown("holder", name)
    is_noisy = name in known and known[name].is_noisy
    is_enough = slope >= threshold_per(MIN_SITE_SLOPE, series.unit)
    return slope if grown >= MIN_SITE_GROWTH and is_enough and not is_noisy else 0.0


def _most(series: GrowthSeries, known: Mapping[str, KnownSite]) -> list[Quantity]:
    """The sites that have grown fastest since warm-up, by their first and last sample."""
    found = []
    for name in series.names("holder"):
        slope = _grown(series, known, name)
        if slope:
            is_by_trial = series.unit == "trial"
            quantity = Quantity(
                name,
                series.last("holder", name),
                per_trial=slope if is_by_trial else None,
                per_result=None if is_by_trial else slope,
            )
            found.append((slope, quantity))
    found.sort(key=lambda one: -one[0])
    return [quantity for _, quantity in found[:MAX_UNJUDGED]]


def threshold_per(threshold: float, unit: str) -> float:
    """Convert a threshold per trial to one per ``unit``."""
    return threshold if unit == "trial" else threshold / RESULTS_PER_TRIAL


def _grows(found: Trend | None, threshold: float, unit: str) -> bool:
    """Whether the trend is steady and exceeds ``threshold`` bytes per trial."""
    if found is None or not found.steady:
        return False
    smallest = threshold_per(threshold, unit)
    return found.slope >= smallest and found.uncertainty <= MAX_UNCERTAINTY * found.slope


def _sites(
    series: GrowthSeries, known: Mapping[str, KnownSite], circumstances: advice.Circumstances
) -> list[GrowingSite]:
    found = []
    for name in series.names("holder"):
        least, most = series.extent("holder", name)
        if most - least < MIN_SITE_GROWTH / 2:
            continue  # This excludes most sites without computing a trend, which takes longer.
        if _was_cleared(series, name):
            continue
        of = known.get(name) or KnownSite("module", "library", "python")
        slope = _slope_of(series, name, MIN_UNATTRIBUTED_SLOPE if of.is_noisy else MIN_SITE_SLOPE)
        if slope is None or slope.slope * series.span < MIN_SITE_GROWTH:
            continue
        found.append(
            GrowingSite(
                name,
                of.category,
                slope.slope,
                slope.uncertainty,
                series.last("holder", name),
                advice=advice.of_site(name, of.role, of.owner, slope.slope, circumstances),
                unit=series.unit,
                is_estimated=of.is_estimated,
            )
        )
    return found


def _was_cleared(series: GrowthSeries, name: str) -> bool:
    """Whether a site was cleared, by its number of entries or, without any, by its bytes."""
    kind = "holder" if math.isnan(series.last("entries", name)) else "entries"
    least, most = series.extent(kind, name)
    return series.last(kind, name) - least < MIN_SHARE_KEPT * (most - least)


def _slope_of(series: GrowthSeries, name: str, threshold: float) -> Trend | Line | None:
    """The slope of a site that grows steadily; otherwise None."""
    slope = series.trend("holder", name)
    if _grows(slope, threshold, series.unit):
        return slope
    # A hash table grows in a few large steps; its number of entries grows evenly.
    entries, count = series.trend("entries", name), series.last("entries", name)
    if entries is None or not count or not _grows(entries, MIN_ENTRIES_SLOPE, series.unit):
        return None
    each = series.last("holder", name) / count
    return Line(each * entries.slope, each * entries.uncertainty)


def _unattributed(series: GrowthSeries, circumstances: advice.Circumstances) -> list[GrowingSite]:
    found = []
    for category, name in UNATTRIBUTED.items():
        slope = series.trend("part", name)
        # One category may gain what another loses, so RSS must grow as well.
        if slope is None or not _grows(slope, MIN_UNATTRIBUTED_SLOPE, series.unit):
            continue
        if _shows(slope, series, MIN_UNATTRIBUTED_GROWTH.get(category, MIN_NATIVE_GROWTH)):
            found.append(
                GrowingSite(
                    UNATTRIBUTED_NAMES[category],
                    category,
                    slope.slope,
                    slope.uncertainty,
                    series.last("part", name),
                    advice=advice.of_category(category, slope.slope, circumstances),
                    unit=series.unit,
                )
            )
    return found


def is_unattributed_python(site: GrowingSite) -> bool:
    """Whether it is the category of Python objects that no retention site accounts for."""
    return site.name == UNATTRIBUTED_NAMES["python"]


def _shows(slope: Trend, series: GrowthSeries, smallest: float) -> bool:
    if slope.slope * series.span < smallest:
        return False
    rss = series.trend("part", "rss")
    return rss is not None and rss.low > 0 and rss.slope >= MIN_SHARE_OF_RSS * slope.slope


def explained(found: Diagnosis, more: list[GrowingSite]) -> Diagnosis:
    """Add further sites, and drop unattributed growth that they account for."""
    accounted = sum(site.slope for site in more)
    sites = [
        site
        for site in found.holders
        if not is_unattributed_python(site) or accounted < MIN_SHARE_EXPLAINED * site.slope
    ]
    ranked = sorted([*sites, *more], key=lambda site: -site.slope)
    return dataclasses.replace(found, holders=ranked)


def _quantity(series: GrowthSeries, kind: str, name: str) -> Quantity:
    slope, by_result = series.line(kind, name, "trial"), series.line(kind, name, "result")
    return Quantity(
        name,
        series.last(kind, name),
        None if slope is None else slope.slope,
        None if slope is None else slope.uncertainty,
        None if by_result is None else by_result.slope,
    )


def _process(series: GrowthSeries, name: str) -> Quantity:
    found = _quantity(series, "process", name)
    trend = series.trend("process", name)
    if trend is None or not _grows(trend, MIN_PROCESS_SLOPE, series.unit):
        return found
    text = advice.of_process(name, found.bytes, trend.slope, series.unit)
    return Quantity(**{**vars(found), "advice": text})


def _types(series: GrowthSeries) -> list[TypeGrowth]:
    found = []
    for name in series.names("type"):
        slope = series.trend("type", name)
        if slope is not None and _grows(slope, MIN_TYPE_SLOPE, series.unit):
            count = int(series.last("type", name))
            found.append(TypeGrowth(name, count, slope.slope, slope.uncertainty, unit=series.unit))
    return sorted(found, key=lambda kind: -kind.slope)
