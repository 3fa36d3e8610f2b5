"""Says who holds the driver's memory: by holder, by type, by part of RSS."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from pathlib import Path
from typing import Any

from ray_tune_memguard import options as opt
from ray_tune_memguard.adapter import handle as entry
from ray_tune_memguard.callbacks.base import guarded
from ray_tune_memguard.callbacks.counting import CountingCallback
from ray_tune_memguard.diagnostics import advice, references, text
from ray_tune_memguard.diagnostics.advice import Circumstances
from ray_tune_memguard.diagnostics.deep_size import TimeBudgetExceededError, Walk
from ray_tune_memguard.diagnostics.diagnosis import Diagnosis
from ray_tune_memguard.diagnostics.findings import GrowingHolder, TypeGrowth
from ray_tune_memguard.diagnostics.growth import (
    RESULTS_FOR_A_TRIAL,
    WARM_UP_TRIALS,
    GrowthFile,
    GrowthRow,
    GrowthSeries,
)
from ray_tune_memguard.diagnostics.ranking import (
    SMALLEST_HOLDER,
    explained,
    is_rest_of_python,
    rank,
    smallest_of,
)
from ray_tune_memguard.diagnostics.sampler import GrowthSampler, Sample
from ray_tune_memguard.diagnostics.trend import FEWEST_POINTS
from ray_tune_memguard.notices import logger

#: As often as a budget of 1 % allows in a fast sweep, and enough points for a trend by trial 500.
SAMPLE_EVERY_TRIALS = 25
_ALLOWANCE_TRIALS = 500
# Until then, or until the end of warm-up, there is nothing to compare with; intervals of samples.
_WARM_UP = 3
GROWTH_BUDGET = 0.01
#: What a short sweep may take, seconds: else it would be over before there is a trend.
ALLOWANCE_S = 0.6
#: Of each holder so much is on disk; smaller ones cannot matter.
_SMALLEST_ROW = 512.0
#: Paths are found for so many.
_PATHS = 5
_SECONDS_A_PATH = 0.5
_SECONDS_FOR_TYPES = 2.0
_SECONDS_A_SIZE = 0.1
#: Of the cost of a look, what the one after it is expected to take at least.
_FORGETTING = 0.8
_EVERYBODYS = ("builtins.", "collections.", "_thread.", "_io.")
#: With fewer samples than this the end of a sweep is one more; otherwise it is unlike the rest.
_ENOUGH_SAMPLES = FEWEST_POINTS + 1
#: A holder is announced once, and no more than so many.
_MOST_ANNOUNCED = 5


def _type_priority(kind: TypeGrowth) -> int:
    """By which types are sorted: those first of which there are few others, and whose is clear."""
    if entry.is_users_type(kind.name):
        return 0
    package = kind.name.partition(".")[0]
    if kind.name.startswith(_EVERYBODYS):
        return 4
    if package in sys.stdlib_module_names:
        return 3
    return 2 if package == "ray" else 1


def _size_of_one_more(typical: list[Any], barriers: set[int]) -> float:
    """Of the last of these, what the others share with it not counted; 0 if it takes too long."""
    walk = Walk(barriers)
    try:
        return [walk.measure(found, _SECONDS_A_SIZE).total for found in typical][-1]
    except TimeBudgetExceededError:
        return 0.0


class _Spent:
    """Seconds that looks took, and that the next one is expected to take."""

    def __init__(self) -> None:
        self._total = self._dearest = 0.0

    def add(self, cost: float) -> None:
        self._total += cost
        self._dearest = max(cost, _FORGETTING * self._dearest)

    def with_next(self) -> float:
        """What all will have taken after the next one, if it is as dear as the dearest of late."""
        return self._total + self._dearest


class ObjectGrowthTracker(CountingCallback):
    """Finds out who holds the driver's memory while a sweep runs, and what to do about it.

    It measures the split of RSS into live Python objects, native memory, allocator slack and mapped
    files; the deep size of every known holder (the collections of Ray's controller, schedulers,
    searchers, loggers, callbacks, module globals); and the number of objects by type. What grows
    steadily is named once in the log; at the end of the sweep a table says all of it. See
    :meth:`diagnosis`, :func:`ray_tune_memguard.read_diagnosis` and
    :func:`ray_tune_memguard.read_growth`.

    *Steadily*: by the slope of Theil and Sen over the samples after the first fifth of the sweep,
    its 95 % interval above zero, in both halves.

    It keeps names and numbers only, in bounded memory, and never a reference to what it measured.

    Args:
        sample_every_trials: measure after so many finished trials, as far as the budget allows.
            Default 25, or ``TUNE_MEMGUARD_SAMPLE_EVERY_TRIALS``.
        growth_budget: the share of the sweep's wall time that measuring may take while it runs,
            from 0 to 1; 0.6 seconds of CPU time are always allowed, and two more at the end to find
            paths if something grows. 0: it does not measure by itself. Default 0.01, or
            ``TUNE_MEMGUARD_GROWTH_BUDGET``.

    Raises:
        ValueError, TypeError: an argument, or its environment variable, is not allowed.
    """

    def __init__(
        self,
        sample_every_trials: int | opt.Unset = opt.UNSET,
        growth_budget: float | opt.Unset = opt.UNSET,
    ) -> None:
        self.sample_every_trials: int = opt.resolve(
            "sample_every_trials", sample_every_trials, SAMPLE_EVERY_TRIALS, opt.count
        )
        self.growth_budget: float = opt.resolve(
            "growth_budget", growth_budget, GROWTH_BUDGET, opt.share
        )
        self.options = {
            "sample_every_trials": self.sample_every_trials,
            "growth_budget": self.growth_budget,
        }

    def begin(self) -> None:
        super().begin()
        self._results = 0
        self._last_trials = min(
            WARM_UP_TRIALS - self.sample_every_trials, _WARM_UP * self.sample_every_trials
        )
        self._last_results = 0
        self._began = time.monotonic()
        self._cost = 0.0
        # By the clock, and by the CPU: on a busy machine a look takes longer, and so does the rest.
        self._wall, self._cpu = _Spent(), _Spent()
        self._series = GrowthSeries()
        self._absent: dict[str, str] = {}
        self._announced: set[str] = set()
        self._file: GrowthFile | None = None
        self._diagnosis_path: Path | None = None
        self._last_diagnosis: Diagnosis | None = None
        self._sampler: GrowthSampler | None = None
        if not self.run.claim("growth", self):
            self.active = False
            self.notices.remark(
                "second",
                "ObjectGrowthTracker: another one follows this sweep; this one steps aside.",
            )
        else:
            self._sampler = GrowthSampler(self.run)

    # What a user calls.

    def sample(self) -> None:
        """Measure now, whatever the budget. Does nothing outside a sweep."""
        if self._runs():
            try:
                self._sample(asked=True)
            except Exception as error:
                self.step_back(error)

    def diagnosis(self) -> Diagnosis:
        """What is known now: in a sweep it is measured once more, after it all of it is known.

        Raises:
            RuntimeError: nothing was measured: it was not in a sweep yet, or stepped aside.
        """
        if self._runs() and self._series.trials:
            if self._finished.total > self._last_trials:
                self.sample()
            return self._diagnose(on_demand=True)
        found: Diagnosis | None = getattr(self, "_last_diagnosis", None)
        if found is None:
            raise RuntimeError("This ObjectGrowthTracker has not measured anything yet.")
        return found

    def show_backrefs(self, type_name: str, filename: str | os.PathLike[str]) -> None:
        """Draw who refers to the typical object of a type, with ``objgraph.show_backrefs``.

        ``type_name``: as in :attr:`Diagnosis.types`. ``filename``: a ``.dot`` file, or an image if
        Graphviz is installed. objgraph collects garbage for it, and shows the ``repr`` of objects,
        which may run code of theirs.

        Raises:
            ValueError: there is no such object.
        """
        references.draw_referrers(type_name, os.fspath(filename))

    def _runs(self) -> bool:
        return getattr(self, "active", False) and getattr(self, "_sampler", None) is not None

    # What Ray calls.

    def on_first_step(self) -> None:
        self._last_trials += self._finished.total
        self._series = GrowthSeries(before=self._finished.total)

    @guarded
    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        self._results += 1

    @guarded
    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self._finished.settle()
        self._open_files(trials)
        if self._is_due():
            self._sample()

    @guarded
    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        self._open_files(trials)
        if (
            self.growth_budget
            and len(self._series.trials) < _ENOUGH_SAMPLES
            and self._progress() >= self.sample_every_trials
        ):
            self._sample(asked=True)
        self.active = False
        if self._series.trials:
            self._last_diagnosis = self._diagnose()
            self._keep(self._last_diagnosis)
            if self._last_diagnosis.holders:
                logger.info("%s", self._last_diagnosis)
        self._sampler = None

    def step_back(self, error: Exception) -> None:
        super().step_back(error)
        self._sampler = None

    def _is_due(self) -> bool:
        if not self.growth_budget:
            return False
        every = self.sample_every_trials
        if (
            self._finished.total - self._last_trials < every
            and self._results - self._last_results < every * RESULTS_FOR_A_TRIAL
        ):
            return False
        # The allowance is spread over the trials until there is a trend to see.
        budget = self.growth_budget * (time.monotonic() - self._began)
        is_affordable = self._wall.with_next() <= budget or (
            self._cpu.with_next() <= ALLOWANCE_S * min(1.0, self._progress() / _ALLOWANCE_TRIALS)
        )
        return is_affordable and self._series.wants(self._finished.total, self._results)

    def _progress(self) -> float:
        return self._series.progress(self._finished.total, self._results)

    def _sample(self, asked: bool = False) -> None:
        sampler = self._sampler
        if sampler is None:
            return
        began, cpu_began = time.perf_counter(), time.thread_time()
        trials, results = self._finished.total, self._results
        is_warm = self._progress() >= WARM_UP_TRIALS
        with references.no_collection():
            found = sampler.look(trials, results, is_warm, thoroughly=asked)
        self._absent = found.absent
        self._series.add(trials, results, found.values)
        self._write(trials, results, found)
        for name in self._series.names("type"):
            if name in sampler.types:
                # Which of all types would grow was not known then.
                first = float(sampler.first_types.get(name, 0))
                self._series.complete("type", name, sampler.first_at, first)
            else:
                self._series.drop("type", name)
        self._last_trials, self._last_results = trials, results
        self._announce()
        cost = time.perf_counter() - began
        self._cost += cost
        if not asked:
            self._wall.add(cost)
            self._cpu.add(time.thread_time() - cpu_began)

    def _announce(self) -> None:
        """Say it once when something begins to show."""
        for holder in self._rank().holders:
            if holder.name not in self._announced and len(self._announced) < _MOST_ANNOUNCED:
                self._announced.add(holder.name)
                logger.info("%s", text.line(self._with_path(holder), self._finished.total))

    def _rank(self) -> Diagnosis:
        sampler = self._sampler
        reuse = self.run.reuses_actors()
        pruned = self.run.is_spilling()
        known = {} if sampler is None else sampler.known
        return rank(self._series, known, Circumstances(reuse, pruned))

    def _diagnose(self, on_demand: bool = False) -> Diagnosis:
        began = time.perf_counter()
        found = Diagnosis(self._finished.total, self._results)
        try:
            found = self._rank()
            # Chains take long: they are for who asks, or has something to look for.
            if on_demand or found.holders or any(entry.is_users_type(k.name) for k in found.types):
                with references.no_collection() as is_collecting:
                    found = self._with_types(found, is_collecting)
            holders = [*map(self._with_path, found.holders[:_PATHS]), *found.holders[_PATHS:]]
            found = dataclasses.replace(found, holders=holders)
        except Exception as error:  # What is measured is there all the same.
            self._absent = {**self._absent, "paths": f"they could not be found: {error!r}"}
        self._cost += time.perf_counter() - began
        all_measured = not self._absent.keys() & text.NEEDED_TO_JUDGE
        return dataclasses.replace(
            found,
            absent=self._absent,
            cost_seconds=self._cost,
            is_judged=found.is_judged and (all_measured or bool(found.holders)),
        )

    def _with_path(self, holder: GrowingHolder) -> GrowingHolder:
        sampler = self._sampler
        if sampler is None or holder.path:
            return holder
        value = next((h.value for h in sampler.each_holder() if h.name == holder.name), None)
        if value is None:
            return holder
        path = references.chain_down(holder.name, value, sampler.barriers())
        return dataclasses.replace(holder, path=path)

    def _with_types(self, found: Diagnosis, is_collecting: bool) -> Diagnosis:
        """With the chains to the types that grow, and who is found by them and was not known."""
        sampler = self._sampler
        if sampler is None:
            return found
        holders = {id(holder.value): holder.name for holder in sampler.each_holder()}
        names = {**references.modules_by_namespace(), **holders}
        barriers = sampler.barriers()
        has_rest = any(map(is_rest_of_python, found.holders))
        types: list[TypeGrowth] = []
        unknown: list[tuple[float, TypeGrowth, references.Chain, Any]] = []
        deadline = time.perf_counter() + _SECONDS_FOR_TYPES
        for kind in sorted(found.types, key=_type_priority):
            in_time = time.perf_counter() < deadline
            typical = references.typical_of(kind.name, most=2) if in_time else []
            if not typical:
                types.append(kind)
                continue
            chain = references.chain_up(typical[0], lambda at: names.get(id(at)), _SECONDS_A_PATH)
            types.append(dataclasses.replace(kind, path=chain.words))
            # Of lists and functions there are too many others for one to be typical.
            is_telling = entry.is_users_type(kind.name) or (
                has_rest and not kind.name.startswith(_EVERYBODYS)
            )
            if is_telling and chain.closed and chain.root not in holders.values():
                each = _size_of_one_more(typical, barriers)
                if each * kind.slope >= smallest_of(SMALLEST_HOLDER, found.unit):
                    unknown.append((each, kind, chain, typical[0]))
        types.sort(key=lambda kind: -kind.slope)
        more: list[GrowingHolder] = []
        within: set[str] = set()
        for each, kind, chain, one in sorted(unknown, key=lambda of: -of[0]):
            if kind.name not in within:
                within |= references.types_within(one)
                more.append(self._found_by_type(kind, chain, each, is_collecting))
        found = dataclasses.replace(found, types=types)
        return explained(found, more) if more else found

    @staticmethod
    def _found_by_type(
        kind: TypeGrowth, chain: references.Chain, each: float, is_collecting: bool
    ) -> GrowingHolder:
        slope = kind.slope * each
        if chain.root is None:
            name, words = f"unreachable {kind.name}", ""
            told = advice.of_cycles(slope, kind.unit, is_collecting)
        else:
            name, words = chain.words.split(" → ")[0], chain.words
            told = advice.of_holder(name, "module", "library", slope, Circumstances(unit=kind.unit))
        return GrowingHolder(
            name,
            "python",
            slope,
            kind.uncertainty * each,
            kind.count * each,
            words,
            told,
            kind.unit,
        )

    def _open_files(self, trials: list[Any]) -> None:
        if self._file is None:
            rows = self.run.report_path(trials, "growth", ".csv")
            self._file = None if rows is None else GrowthFile(rows)
            self._diagnosis_path = self.run.report_path(trials, "diagnosis", ".json")

    def _write(self, trials: int, results: int, found: Sample) -> None:
        if self._file is None:
            return
        now = time.time()
        rows = (
            GrowthRow(now, trials, results, kind, name, value)
            for (kind, name), value in found.values.items()
            if kind != "entries" and (kind != "holder" or value >= _SMALLEST_ROW)
        )
        self._to_disk(self._file.path, lambda file=self._file: file.add(rows))

    def _keep(self, found: Diagnosis) -> None:
        path = self._diagnosis_path
        if path is not None:
            self._to_disk(path, lambda: found.save(path))

    def _to_disk(self, path: Path, write: Any) -> None:
        try:
            write()
            self.notices.again("growth")
        except OSError as error:
            self.notices.warn(
                "growth",
                f"ObjectGrowthTracker cannot write {path} ({error}); it goes on measuring, and "
                "what comes until there is room again will be missing from the file.",
            )
