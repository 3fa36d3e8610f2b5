"""Samples a driver's memory: the categories of RSS, and the size of each retention site."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ray_tune_memguard.adapter.handle import RunHandle
from ray_tune_memguard.diagnostics import references
from ray_tune_memguard.diagnostics.breakdown import MemoryBreakdown, memory_breakdown
from ray_tune_memguard.diagnostics.deadline import Deadline
from ray_tune_memguard.diagnostics.deep_size import (
    DeepSizer,
    Size,
    TimeBudgetExceededError,
    entries_of,
)
from ray_tune_memguard.diagnostics.detail import DETAILS
from ray_tune_memguard.diagnostics.growth import UNMEASURED, GrowthRow
from ray_tune_memguard.diagnostics.ranking import KnownSite
from ray_tune_memguard.system.ray_processes import RayProcesses

if TYPE_CHECKING:
    from ray_tune_memguard.adapter.retention_sites import RetentionSite

#: Seconds for the retention sites of a sample, and for its types.
MAX_SAMPLE_S = 0.2
#: Types are measured in one of so many samples, growing globals and other processes in another.
#: Odd, so that a thinned series, which keeps every second sample, has some of each.
TURNS = 3
#: A type is followed once it has grown by one object per so many trials.
_TRIALS_PER_NEW_OBJECT = 20
_MAX_TYPES = 80
#: The number of sites whose facts are kept.
_MAX_KNOWN_SITES = 2000
#: Bytes from malloc per thread, in CPython and in glibc (measured with 200 idle threads).
_NATIVE_BYTES_PER_THREAD = 1024
#: Sites with fewer bytes are not written to disk.
_MIN_ROW_BYTES = 512.0
#: With the least detail a site gets this share of a sample's time, even if others have used it up.
_LEAST_SHARE = 0.005
#: By so much of its time a sample may then take longer.
_OVERTIME = 0.25


@dataclass
class Sample:
    """Values by kind and name, for :class:`GrowthSeries`.

    Attributes:
        absent: quantities that could not be measured, by name, with the reason.
        kept: bytes of all small Python objects, and of the larger blocks and NumPy buffers that the
            retention sites keep, without the trials in memory, whose number varies; None if not all
            of that could be measured.
    """

    values: dict[tuple[str, str], float] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    kept: float | None = None

    def rows(self, trials: int, results: int) -> Iterator[GrowthRow]:
        """The rows for the file, with the numbers of trials and results."""
        now = time.time()
        for (kind, name), value in self.values.items():
            if kind != "entries" and (kind != "holder" or value >= _MIN_ROW_BYTES):
                yield GrowthRow(now, trials, results, kind, name, value)


class GrowthSampler:
    """Measures a run. It keeps names and numbers, and no object of the run.

    Args:
        run: the run that is measured.
        max_seconds: seconds for the retention sites of a sample, and for its types; None for
            :data:`MAX_SAMPLE_S`.
    """

    def __init__(self, run: RunHandle, max_seconds: float | None = None) -> None:
        self._run = run
        self._max_seconds = MAX_SAMPLE_S if max_seconds is None else max_seconds
        self._adapter = run.retention_sites()
        self._globals = self._adapter.GrowingGlobals() if self._adapter else None
        self._processes = RayProcesses(run.ray_session())
        #: Numbers of objects by type after warm-up, and the numbers of trials and results then.
        self.first_types: dict[str, int] = {}
        self.first_at = (0, 0)
        #: The types that grow most.
        self.types: set[str] = set()
        self._samples = 0
        self.known: dict[str, KnownSite] = {}
        #: The index of the detail in which a site is measured, if there was no time for more. It
        #: stays, so that a site's sizes are comparable, and that no further time is lost.
        self._details: dict[str, int] = {}
        self._sizes: dict[str, float] = {}

    def sample(
        self, trials: int, results: int, is_warm: bool = False, thoroughly: bool = False
    ) -> Sample:
        """Measure now.

        Args:
            trials: number of finished trials.
            results: number of results.
            is_warm: whether warm-up is over.
            thoroughly: whether to measure also what only some samples measure.
        """
        sample = Sample()
        is_others_turn = self._samples % TURNS == 1
        self._samples += 1
        if self._globals is not None and is_others_turn:
            self._globals.compare(trials)
        measured, complete = self._measure_sites(sample)
        self._add_categories(sample, memory_breakdown(), measured, complete)
        if is_warm and (thoroughly or not is_others_turn):
            self._count_types(sample, trials, results)
        if thoroughly or is_others_turn:
            for name, rss in self._processes.rss().items():
                sample.values["process", name] = float(rss)
        return sample

    def sites(self) -> Iterator[RetentionSite]:
        """The retention sites of the run; none if this Ray lacks a name, or the run has ended."""
        controller = self._run.controller
        if self._adapter is not None and self._globals is not None and controller is not None:
            yield from self._adapter.retention_sites_of(controller, self._globals.found)

    def barriers(self) -> set[int]:
        """Identities of objects that count for no site."""
        controller = self._run.controller
        if self._adapter is None or controller is None:
            return set()
        return set(self._adapter.barriers_of(controller))

    def _measure_sites(self, sample: Sample) -> tuple[Size, bool]:
        """The total size of all sites, and whether all could be measured."""
        total = Size()
        controller = self._run.controller
        if self._adapter is None or controller is None:
            sample.absent["holders"] = "this Ray lacks a name that this version needs"
            return total, False
        sizer = DeepSizer(self.barriers(), self._adapter.trial_identity)
        deadline = Deadline(self._max_seconds)
        unmeasured = []
        for site in self.sites():
            try:
                size = self._measure(sizer, site, deadline)
            except TimeBudgetExceededError:
                unmeasured.append(site.name)
                sample.values[UNMEASURED, site.name] = self._sizes.get(site.name, 0.0)
                continue
            except Exception as error:  # A container that another thread is changing, say.
                sample.absent[site.name] = f"it could not be measured: {error!r}"
                continue
            finally:
                if site.name == self._adapter.TRIALS:
                    sizer.exclude(self._adapter.trials_in_memory(controller))
            self._add_site(sample, site, size)
            total.add(size)
        if unmeasured:
            more = f" and {len(unmeasured) - 3} more" if len(unmeasured) > 3 else ""
            sample.absent["sizes"] = (
                f"partial: no time for {', '.join(unmeasured[:3])}{more} "
                f"(at most {self._max_seconds:g} s a sample)"
            )
        return total, not unmeasured

    def _measure(self, sizer: DeepSizer, site: RetentionSite, deadline: Deadline) -> Size:
        """The size of a site, in as much detail as there is time for.

        Raises:
            TimeBudgetExceededError: there is not even time for an estimate.
        """
        last = len(DETAILS) - 1
        at = self._details.get(site.name, 0)
        while True:
            # Half of the remaining time, so that the other sites are measured as well.
            seconds = deadline.left() / 2
            if at == last and deadline.left() > -_OVERTIME * self._max_seconds:
                seconds = max(seconds, _LEAST_SHARE * self._max_seconds)
            try:
                return sizer.measure(site.value, seconds, DETAILS[at])
            except TimeBudgetExceededError:
                if at == last:
                    raise
                at += 1
                if site.name in self._details or len(self._details) < _MAX_KNOWN_SITES:
                    self._details[site.name] = at

    def _add_site(self, sample: Sample, site: RetentionSite, size: Size) -> None:
        name = site.name
        # Two classes may have the same name.
        sample.values["holder", name] = sample.values.get(("holder", name), 0.0) + size.total
        entries = entries_of(site.value)
        if entries is not None:
            sample.values["entries", name] = float(entries)
        if name in self.known or len(self.known) < _MAX_KNOWN_SITES:
            category = "native" if 2 * size.native > size.total else "python"
            is_estimated = size.is_estimate
            self.known[name] = KnownSite(
                site.role, site.owner, category, site.is_noisy, is_estimated
            )
            self._sizes[name] = sample.values["holder", name]

    def _add_categories(
        self, sample: Sample, found: MemoryBreakdown, measured: Size, complete: bool
    ) -> None:
        values = sample.values
        values["part", "rss"] = float(found.rss)
        sample.absent.update(found.absent)
        # The larger Python blocks come from malloc; only the sizes of sites distinguish them from
        # native memory. Without Python's own allocator the small blocks come from malloc as well.
        if found.python is not None and (complete or self._adapter is None):
            python = found.python + measured.large
            values["part", "python"] = python
            if found.malloc is not None:
                native = found.malloc - measured.large + (found.other or 0)
                values["part", "native"] = native + (found.stacks or 0)
            if complete:
                trials = values.get(("holder", self._adapter.TRIALS), 0.0) if self._adapter else 0.0
                sample.kept = python + measured.native - trials
                values["part", "python rest"] = python + measured.native - measured.total
                if found.malloc is not None:
                    values["part", "native rest"] = native - measured.native
        for name, value in (("slack", found.slack), ("shared", found.shared)):
            if value is not None:
                values["part", name] = float(value)
        if found.stacks is not None and self._adapter is not None:
            threads = ("holder", self._adapter.THREADS)
            states = _NATIVE_BYTES_PER_THREAD * threading.active_count()
            values[threads] = values.get(threads, 0.0) + found.stacks + states

    def _count_types(self, sample: Sample, trials: int, results: int) -> None:
        counts, complete = references.type_counts(self._max_seconds)
        if not complete:
            sample.absent["types"] = "partial: counted on a part of all objects"
        if not self.first_types:
            self.first_types, self.first_at = counts, (trials, results)
        enough = max(10, (trials - self.first_at[0]) // _TRIALS_PER_NEW_OBJECT)
        grown = {name: count - self.first_types.get(name, 0) for name, count in counts.items()}
        most = sorted(grown, key=lambda name: -grown[name])[:_MAX_TYPES]
        self.types = {name for name in most if grown[name] >= enough}
        for name in self.types:
            sample.values["type", name] = float(counts[name])
