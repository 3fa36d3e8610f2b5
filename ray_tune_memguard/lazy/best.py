"""Keeps the best spilled trial by each metric, so that no search reads all trials.

It covers all arguments of Ray's ``get_best_trial``: a metric, ``max`` or ``min``, and a scope (the
last value, the mean of all or of the last values, the best of all). Its size depends on the number
of metrics, not on the number of trials.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import NamedTuple, TypedDict

# Runs report tens of metrics. A run that keeps adding metrics must not make the index grow.
_MAX_METRICS = 1024
#: Ray's scopes: the values of a metric that are compared.
SCOPES = ("all", "last", "avg", "last-5-avg", "last-10-avg")
MODES = ("max", "min")
#: The comparisons: a mode, and the key of the compared value in a metric's summary.
_CONTESTS = tuple((mode, mode if scope == "all" else scope) for scope in SCOPES for mode in MODES)


class Best(NamedTuple):
    """The best trial so far; of equal trials, the one with the lowest position."""

    value: float
    position: int
    trial_id: str


def is_better(mode: str, value: float, position: int, held: Best | None) -> bool:
    """Whether a trial with this value is better than ``held``; ``mode`` is ``max`` or ``min``."""
    if held is None or value == held.value:
        return held is None or position < held.position
    return bool(value > held.value if mode == "max" else value < held.value)


class DumpedBest(TypedDict):
    """The return value of :meth:`BestTrials.dump`."""

    #: By metric: mode, scope, value, position and trial id of each winner.
    metrics: dict[str, list[tuple[str, str, float, int, str]]]
    unknown: list[str] | None


class _Metric:
    """The best trials by one metric, and the values that a better trial must exceed."""

    def __init__(self) -> None:
        self.winners: dict[tuple[str, str], Best] = {}
        # Without a value to compare with, any trial may be the best.
        self.high, self.low, self.latest = -math.inf, math.inf, -1

    def compare(self, position: int, trial_id: str, summary: Mapping[str, float]) -> None:
        values = summary.values()
        # Nearly all trials are the best by no comparison; of equal ones the first is the best.
        if max(values) <= self.high and min(values) >= self.low and position > self.latest:
            return
        for contest in _CONTESTS:
            mode, name = contest
            value = summary[name]
            if _is_finite(value) and is_better(mode, value, position, self.winners.get(contest)):
                self.winners[contest] = Best(value, position, trial_id)
        self.set_thresholds()

    def set_thresholds(self) -> None:
        """Set the values that a better trial must exceed, once each comparison has a best trial."""
        if len(self.winners) == len(_CONTESTS):
            by_mode: dict[str, list[float]] = {"max": [], "min": []}
            for (mode, _), best in self.winners.items():
                by_mode[mode].append(best.value)
            self.high, self.low = min(by_mode["max"]), max(by_mode["min"])
            self.latest = max(best.position for best in self.winners.values())


def _is_finite(value: object) -> bool:
    return isinstance(value, Real) and math.isfinite(value)


class BestTrials:
    """The best spilled trials, kept up to date as trials are spilled."""

    def __init__(self) -> None:
        self._metrics: dict[str, _Metric] = {}
        # Metrics by which not all spilled trials were compared; None if any metric may be one.
        self._unknown: set[str] | None = set()

    def note(
        self, position: int, trial_id: str, summaries: Mapping[str, Mapping[str, float]]
    ) -> None:
        """Compare a trial, which is about to be spilled, by Ray's summary of each metric."""
        for name, summary in summaries.items():
            metric = self._metrics.get(name)
            if metric is None:
                if self._unknown is None or name in self._unknown:
                    continue
                if len(self._metrics) >= _MAX_METRICS:
                    self._unknown = None
                    continue
                metric = self._metrics[name] = _Metric()
            try:
                metric.compare(position, trial_id, summary)
            except Exception:  # Values that are not numbers, which only Ray may compare.
                self._forget(name)

    def _forget(self, name: str) -> None:
        self._metrics.pop(name, None)
        if self._unknown is not None:
            self._unknown.add(name)
            if len(self._unknown) > _MAX_METRICS:
                self._unknown = None

    def forget_all(self) -> None:
        """Forget all trials, because one was removed and the next best is unknown."""
        self._metrics.clear()
        self._unknown = None

    def knows(self, metric: str) -> bool:
        """Whether :meth:`best` has compared all spilled trials by this metric."""
        return metric in self._metrics or (
            self._unknown is not None and metric not in self._unknown
        )

    def best(self, metric: str, mode: str, scope: str) -> tuple[str, str, float] | None:
        """The best spilled trial: its id, and the key and the value of its summary.

        None if no spilled trial has reported a number.
        """
        held = self._metrics.get(metric)
        contest = (mode, mode if scope == "all" else scope)
        best = None if held is None else held.winners.get(contest)
        return None if best is None else (best.trial_id, contest[1], best.value)

    def dump(self) -> DumpedBest:
        """The whole index, as values that JSON can hold."""
        return {
            "metrics": {
                name: [(*contest, *best) for contest, best in metric.winners.items()]
                for name, metric in self._metrics.items()
            },
            "unknown": None if self._unknown is None else sorted(self._unknown),
        }

    def load(self, dumped: DumpedBest, positions: Mapping[str, int] | None = None) -> None:
        """Load what :meth:`dump` has returned.

        Args:
            dumped: the return value of :meth:`dump`.
            positions: the new positions of trials; None if they have not changed. If a best trial
                has none, the best trials by that metric become unknown.
        """
        unknown = dumped["unknown"]
        self._unknown = None if unknown is None else set(unknown)
        for name, winners in dumped["metrics"].items():
            metric = _Metric()
            for mode, scope, value, position, trial_id in winners:
                place = position if positions is None else positions.get(trial_id)
                if place is None:
                    self._forget(name)
                    break
                metric.winners[mode, scope] = Best(value, place, trial_id)
            else:
                metric.set_thresholds()
                self._metrics[name] = metric
