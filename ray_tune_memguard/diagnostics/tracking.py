"""Takes the samples of one run, keeps their series, and diagnoses its memory from them."""

from __future__ import annotations

import dataclasses
import math
import time

from ray_tune_memguard.adapter.handle import RunHandle, is_users_type
from ray_tune_memguard.diagnostics import references, text
from ray_tune_memguard.diagnostics.advice import Circumstances
from ray_tune_memguard.diagnostics.deep_size import DeepSizer
from ray_tune_memguard.diagnostics.diagnosis import Diagnosis
from ray_tune_memguard.diagnostics.findings import GrowingSite
from ray_tune_memguard.diagnostics.growth import MIN_SPAN, GrowthSeries
from ray_tune_memguard.diagnostics.ranking import CATEGORIES, rank
from ray_tune_memguard.diagnostics.sampler import GrowthSampler, Sample
from ray_tune_memguard.diagnostics.type_growth import with_types
from ray_tune_memguard.report.series import WARM_UP_TRIALS
from ray_tune_memguard.system.collector import no_collection

#: The number of sites whose paths are searched.
_MAX_PATHS = 5
#: The number of sites that are logged, each once.
_MAX_ANNOUNCED = 5


class GrowthTracking:
    """The samples of one run, in bounded memory, and the diagnosis from them.

    Args:
        run: the run that is measured.
        before: number of trials that had finished before the run.
        max_seconds: seconds of a sample, see :class:`GrowthSampler`.
        min_span: trials that growth needs, see :class:`GrowthSeries`.

    Attributes:
        seconds: seconds that the samples have taken so far.
    """

    def __init__(
        self,
        run: RunHandle,
        before: int,
        max_seconds: float | None = None,
        min_span: int = MIN_SPAN,
    ) -> None:
        self._run = run
        self._sampler = GrowthSampler(run, max_seconds)
        self._series = GrowthSeries(before, min_span)
        self._absent: dict[str, str] = {}
        self._announced: set[str] = set()
        self.seconds = 0.0

    @property
    def has_samples(self) -> bool:
        return bool(self._series.trials)

    @property
    def can_judge(self) -> bool:
        """Whether the samples suffice to judge growth, so that the end of the run needs none."""
        return self._series.is_long_enough

    def sizer(self) -> DeepSizer:
        """A sizer that does not follow the parts of the run."""
        return DeepSizer(self._sampler.barriers())

    def categories(self) -> dict[str, float]:
        """The bytes of each category of RSS at the last sample."""
        found = {name: self._series.last("part", name) for name in CATEGORIES if name != "rss"}
        return {name: value for name, value in found.items() if not math.isnan(value)}

    def wants(self, trials: int, results: int) -> bool:
        """Whether a sample is far enough from the last one."""
        return self._series.wants(trials, results)

    def sample(self, trials: int, results: int, thoroughly: bool = False) -> Sample:
        """Measure now; see :meth:`GrowthSampler.sample`."""
        began = time.perf_counter()
        is_warm = self._series.progress(trials, results) >= WARM_UP_TRIALS
        sampler = self._sampler
        # A collection takes longer than a sample, and frees the objects that are searched for.
        with no_collection():
            found = sampler.sample(trials, results, is_warm, thoroughly)
        self._absent = found.absent
        self._series.add(trials, results, found.values)
        for name in self._series.names("type"):
            if name in sampler.types:
                # The first sample could not tell which types would grow.
                first = float(sampler.first_types.get(name, 0))
                self._series.complete("type", name, sampler.first_at, first)
            else:
                self._series.drop("type", name)
        self.seconds += time.perf_counter() - began
        return found

    def news(self, trials: int) -> list[str]:
        """A line for each site that has begun to grow, once for each."""
        began = time.perf_counter()
        lines = []
        for site in self._rank().holders:
            if site.name not in self._announced and len(self._announced) < _MAX_ANNOUNCED:
                self._announced.add(site.name)
                lines.append(text.line(self._with_path(site), trials))
        self.seconds += time.perf_counter() - began
        return lines

    def diagnose(self, trials: int, results: int, on_demand: bool = False) -> Diagnosis:
        """The present diagnosis.

        Args:
            trials: number of finished trials.
            results: number of results.
            on_demand: whether the user asked for it; chains of references are then searched even
                if nothing grows.
        """
        began = time.perf_counter()
        found = Diagnosis(trials, results)
        try:
            found = self._rank()
            # Chains take long, so they are searched only on demand or if something grows.
            if on_demand or found.holders or any(is_users_type(kind.name) for kind in found.types):
                with no_collection() as is_collecting:
                    found = with_types(found, self._sampler, is_collecting)
            sites = found.holders
            sites = [*map(self._with_path, sites[:_MAX_PATHS]), *sites[_MAX_PATHS:]]
            found = dataclasses.replace(found, holders=sites)
        except Exception as error:  # The diagnosis is given without paths.
            self._absent = {**self._absent, "paths": f"they could not be found: {error!r}"}
        self.seconds += time.perf_counter() - began
        all_measured = not self._absent.keys() & text.NEEDED_TO_JUDGE
        return dataclasses.replace(
            found,
            absent=self._absent,
            cost_seconds=self.seconds,
            is_judged=found.is_judged and (all_measured or bool(found.holders)),
        )

    def _rank(self) -> Diagnosis:
        circumstances = Circumstances(self._run.reuses_actors(), self._run.is_spilling())
        return rank(self._series, self._sampler.known, circumstances)

    def _with_path(self, site: GrowingSite) -> GrowingSite:
        if site.path:
            return site
        value = next((at.value for at in self._sampler.sites() if at.name == site.name), None)
        if value is None:
            return site
        path = references.chain_down(site.name, value, self._sampler.barriers())
        return dataclasses.replace(site, path=path)
