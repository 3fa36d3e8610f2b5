"""An index of spilled trials, with which reports on all trials read only a few of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from numbers import Number
from typing import TypeAlias, TypedDict, cast

from ray_tune_memguard.lazy.best import MODES, Best, BestTrials, DumpedBest, is_better
from ray_tune_memguard.lazy.interfaces import TrialLike

# Runs report tens of keys. A run that keeps adding keys must not make the index grow.
_MAX_KEYS = 1024

Result: TypeAlias = dict[str, object]
Lookup = Callable[[str, Result], object]


DumpedSummaries = TypedDict(
    "DumpedSummaries",
    {
        # Key, sort of value, position and trial id of the first trial that has it.
        "first": list[tuple[str, str, int, str]],
        # By metric and mode: the value, negated for ``min``, position and trial id.
        "best": dict[str, dict[str, tuple[float, int, str]]],
        "best trials": DumpedBest,
    },
)


class TrialSummaryIndex:
    """An index of spilled trials: the first trial with each key, and the best trials.

    There are two kinds of best trial: console reports compare one metric in the last results
    (:meth:`follow`), results compare Ray's summaries of any metric (:attr:`best_trials`).

    The size of the index depends on the number of metrics, not on the number of trials.

    Args:
        lookup: returns the value of a metric (nested ones as ``a/b``) in a result, or None.
    """

    def __init__(self, lookup: Lookup) -> None:
        self._lookup = lookup
        # By key and kind of value: position and id of the first trial that has it.
        self._first_with: dict[tuple[str, str], tuple[int, str]] = {}
        self._followed: dict[str, dict[str, Best]] = {}
        # The shape of the last noted result, and its position: a later result of the same shape has
        # no new features.
        self._shape: tuple[object, ...] | None = None
        self._shape_since = 0
        #: For results, which compare more than the last value.
        self.best_trials = BestTrials()

    def note(
        self,
        position: int,
        trial_id: str,
        result: Result | None,
        summaries: Mapping[str, Mapping[str, float]],
    ) -> None:
        """Add a trial, which is about to be spilled, by its last result and its summaries."""
        self.best_trials.note(position, trial_id, summaries)
        if not result:
            return
        shape = _shape(result)
        if shape is None or shape != self._shape or position < self._shape_since:
            self._note_features(position, trial_id, result)
            self._shape, self._shape_since = shape, position
        for metric, best in self._followed.items():
            self._compare(best, metric, position, trial_id, result)

    def _note_features(self, position: int, trial_id: str, result: Result) -> None:
        first_with = self._first_with
        for key, value in _flat(result):
            feature = (key, _sort_of(value))
            known = first_with.get(feature)
            if known is None:
                if len(first_with) < _MAX_KEYS:
                    first_with[feature] = (position, trial_id)
            elif position < known[0]:
                first_with[feature] = (position, trial_id)

    def follow(self, metric: str, spilled: Iterable[tuple[int, TrialLike]]) -> None:
        """Keep the best trials by ``metric`` from now on; ``spilled`` are the trials so far."""
        if metric in self._followed:
            return
        best: dict[str, Best] = {}
        for position, trial in spilled:
            self._compare(best, metric, position, trial.trial_id, trial.last_result)
        # Only now, because a trial may turn out to be unreadable.
        self._followed[metric] = best

    def _compare(
        self, best: dict[str, Best], metric: str, position: int, trial_id: str, result: Result
    ) -> None:
        found = self._lookup(metric, result)
        # Only Ray's own comparison handles other values that a user may report for the metric.
        if not isinstance(found, Number) or found != found:
            return
        value = cast(float, found)
        for mode in MODES:
            if is_better(mode, value, position, best.get(mode)):
                best[mode] = Best(value, position, trial_id)

    def trial_ids(self, metric: str | None) -> set[str]:
        """The spilled trials that decide columns and, by ``metric``, the best trial."""
        ids = {trial_id for _, trial_id in self._first_with.values()}
        ids.update(best.trial_id for best in self._followed.get(metric or "", {}).values())
        return ids

    def follows(self, metric: str) -> bool:
        return metric in self._followed

    def dump(self) -> dict[str, object]:
        """The whole index as a :class:`DumpedSummaries`, which JSON can hold."""
        dumped: DumpedSummaries = {
            "first": [(*feature, *first) for feature, first in self._first_with.items()],
            "best": {
                metric: {
                    mode: (_signed(mode, best.value), best.position, best.trial_id)
                    for mode, best in modes.items()
                }
                for metric, modes in self._followed.items()
            },
            "best trials": self.best_trials.dump(),
        }
        return {**dumped}

    def load(
        self, was_dumped: Mapping[str, object], positions: Mapping[str, int] | None = None
    ) -> None:
        """Load what :meth:`dump` has returned.

        Args:
            dumped: the return value of :meth:`dump`.
            positions: the new positions of trials; None if they have not changed. Trials without
                one are no longer spilled and are dropped.
        """
        dumped = cast(DumpedSummaries, was_dumped)
        self.best_trials.load(dumped["best trials"], positions)
        for key, sort, position, trial_id in dumped["first"]:
            place = position if positions is None else positions.get(trial_id)
            if place is not None:
                self._first_with[key, sort] = (place, trial_id)
        for metric, modes in dumped["best"].items():
            if positions is not None and any(best[2] not in positions for best in modes.values()):
                continue  # The next call of `follow` searches again.
            self._followed[metric] = {
                mode: Best(
                    _signed(mode, signed),
                    position if positions is None else positions[trial_id],
                    trial_id,
                )
                for mode, (signed, position, trial_id) in modes.items()
            }


def _signed(mode: str, value: float) -> float:
    """Convert a value to its dumped form, where the highest is the best, or back."""
    return value if mode == "max" else -value


def _shape(result: Result) -> tuple[object, ...] | None:
    """A key that is equal for results with the same features; None if there is no such key."""
    types = tuple(map(type, result.values()))
    nested = [kind for kind in set(types) if issubclass(kind, dict)]
    # The config is not searched.
    if nested and (
        nested != [dict] or types.count(dict) > 1 or type(result.get("config")) is not dict
    ):
        return None
    return (*result, *types)


def _flat(result: Result, prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in result.items():
        # No report searches the config for metrics.
        if isinstance(value, dict) and (prefix or key != "config"):
            yield from _flat(value, f"{prefix}{key}/")
        yield f"{prefix}{key}", value


# The types of most values, because a check of the abstract class takes long.
_SORTS = {type(None): "none", int: "number", float: "number", bool: "number", str: "other"}


def _sort_of(value: object) -> str:
    sort = _SORTS.get(type(value))
    if sort is None:
        sort = "number" if isinstance(value, Number) else "other"
    return sort
