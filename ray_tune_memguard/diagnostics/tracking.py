"""What the samples of one run say of its memory: takes them, keeps their series, diagnoses."""

from __future__ import annotations

import dataclasses
import time

from ray_tune_memguard.adapter.handle import RunHandle, is_users_type
from ray_tune_memguard.diagnostics import references, text
from ray_tune_memguard.diagnostics.advice import Circumstances
from ray_tune_memguard.diagnostics.diagnosis import Diagnosis
from ray_tune_memguard.diagnostics.findings import GrowingSite
from ray_tune_memguard.diagnostics.growth import GrowthSeries
from ray_tune_memguard.diagnostics.ranking import rank
from ray_tune_memguard.diagnostics.sampler import GrowthSampler, Sample
from ray_tune_memguard.diagnostics.trend import MIN_POINTS
from ray_tune_memguard.diagnostics.type_growth import with_types
from ray_tune_memguard.report.series import WARM_UP_TRIALS

#: Paths are found for so many sites.
_MAX_PATHS = 5
#: Each site is announced once, and no more than so many.
_MAX_ANNOUNCED = 5


class GrowthTracking:
    """The samples of one run, in bounded memory, and what they say.

    Args:
        run: the run that is measured.
        before: trials that had finished before the run began.

    Attributes:
        seconds: what measuring has taken so far.
    """

    def __init__(self, run: RunHandle, before: int) -> None:
        self._run = run
        self._sampler = GrowthSampler(run)
        self._series = GrowthSeries(before)
        self._absent: dict[str, str] = {}
        self._announced: set[str] = set()
        self.seconds = 0.0

    @property
    def has_samples(self) -> bool:
        return bool(self._series.trials)

    @property
    def has_trend(self) -> bool:
        """Whether there are so many samples that the end of the run need not be one more."""
        return len(self._series.trials) > MIN_POINTS

    def wants(self, trials: int, results: int) -> bool:
        """Whether a sample is far enough from the last one."""
        return self._series.wants(trials, results)

    def sample(self, trials: int, results: int, thoroughly: bool = False) -> Sample:
        """Measure now; see :meth:`GrowthSampler.sample`."""
        began = time.perf_counter()
        is_warm = self._series.progress(trials, results) >= WARM_UP_TRIALS
        sampler = self._sampler
        with references.no_collection():
            found = sampler.sample(trials, results, is_warm, thoroughly)
        self._absent = found.absent
        self._series.add(trials, results, found.values)
        for name in self._series.names("type"):
            if name in sampler.types:
                # At the first sample it was not known which of all types would grow.
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
        """What is known now.

        Args:
            trials: finished so far.
            results: received so far.
            on_demand: somebody asked: find chains of references even if nothing grows.
        """
        began = time.perf_counter()
        found = Diagnosis(trials, results)
        try:
            found = self._rank()
            # Chains take long: they are for who asks, or has something to look for.
            if on_demand or found.holders or any(is_users_type(kind.name) for kind in found.types):
                with references.no_collection() as is_collecting:
                    found = with_types(found, self._sampler, is_collecting)
            sites = found.holders
            sites = [*map(self._with_path, sites[:_MAX_PATHS]), *sites[_MAX_PATHS:]]
            found = dataclasses.replace(found, holders=sites)
        except Exception as error:  # What is measured is there all the same.
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
        sweep = Circumstances(self._run.reuses_actors(), self._run.is_spilling())
        return rank(self._series, self._sampler.known, sweep)

    def _with_path(self, site: GrowingSite) -> GrowingSite:
        if site.path:
            return site
        value = next((at.value for at in self._sampler.sites() if at.name == site.name), None)
        if value is None:
            return site
        path = references.chain_down(site.name, value, self._sampler.barriers())
        return dataclasses.replace(site, path=path)
