"""What is remembered of spilled trials, so that nobody need read them all to report on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass
from numbers import Number
from typing import Any

from ray_tune_memguard.lazy.best import BestTrials

# Sweeps report tens of keys. One that makes up new keys for ever must not make the summaries grow.
_MOST_KEYS = 1024

Lookup = Callable[[str, dict[str, Any]], Any]


@dataclass
class _Best:
    value: float
    position: int
    trial_id: str


class TrialSummaryIndex:
    """What is remembered of spilled trials: the first one with each key, and the best ones.

    Its size depends on how many different metrics the sweep has, not on the number of trials.

    ``lookup``: finds a metric, nested ones by ``a/b``, in a result; None where there is none.
    """

    def __init__(self, lookup: Lookup) -> None:
        self._lookup = lookup
        # (key, sort of value) to the place and id of the first trial that has it.
        self._first_with: dict[tuple[str, str], tuple[int, str]] = {}
        self._best: dict[str, dict[str, _Best]] = {}
        # Of the last result whose features were noted, and its place: a later one like it has none
        # that are new.
        self._shape: tuple[Any, ...] | None = None
        self._shape_since = 0
        #: For results, which are asked for by more than the last value.
        self.best_trials = BestTrials()

    def note(
        self,
        position: int,
        trial_id: str,
        result: dict[str, Any] | None,
        summaries: Mapping[str, Mapping[str, Any]],
    ) -> None:
        """Take in a trial that is about to be spilled: its last result, its metrics' summaries."""
        self.best_trials.note(position, trial_id, summaries)
        if not result:
            return
        shape = _shape(result)
        if shape is None or shape != self._shape or position < self._shape_since:
            self._note_features(position, trial_id, result)
            self._shape, self._shape_since = shape, position
        for metric in self._best:
            self._compare(metric, position, trial_id, result)

    def _note_features(self, position: int, trial_id: str, result: dict[str, Any]) -> None:
        first_with = self._first_with
        for key, value in _flat(result):
            feature = (key, _sort_of(value))
            known = first_with.get(feature)
            if known is None:
                if len(first_with) < _MOST_KEYS:
                    first_with[feature] = (position, trial_id)
            elif position < known[0]:
                first_with[feature] = (position, trial_id)

    def follow(self, metric: str, spilled: Iterable[tuple[int, Any]]) -> None:
        """Keep the best trials by ``metric`` from now on; ``spilled`` are those so far."""
        if metric in self._best:
            return
        self._best[metric] = {}
        for position, trial in spilled:
            self._compare(metric, position, trial.trial_id, trial.last_result)

    def _compare(self, metric: str, position: int, trial_id: str, result: dict[str, Any]) -> None:
        value = self._lookup(metric, result)
        # Whatever else a user reports under the metric, Ray's own comparison has to say to it.
        if not isinstance(value, Number) or value != value:
            return
        best = self._best[metric]
        for mode, sign in (("max", 1.0), ("min", -1.0)):
            score = value * sign  # type: ignore[operator]
            held = best.get(mode)
            # The first of equals wins, in order of the sweep and not of the spill.
            if (
                held is None
                or score > held.value
                or (score == held.value and position < held.position)
            ):
                best[mode] = _Best(score, position, trial_id)

    def trial_ids(self, metric: str | None) -> set[str]:
        """The spilled trials that decide columns and, by ``metric``, the best trial."""
        ids = {trial_id for _, trial_id in self._first_with.values()}
        ids.update(best.trial_id for best in self._best.get(metric or "", {}).values())
        return ids

    def follows(self, metric: str) -> bool:
        return metric in self._best

    def dump(self) -> dict[str, Any]:
        """All of it, as JSON can hold it."""
        return {
            "first": [[*feature, *first] for feature, first in self._first_with.items()],
            "best": {
                metric: {mode: astuple(best) for mode, best in modes.items()}
                for metric, modes in self._best.items()
            },
            "best trials": self.best_trials.dump(),
        }

    def load(self, dumped: dict[str, Any], positions: Mapping[str, int] | None = None) -> None:
        """Take over what :meth:`dump` wrote; ``positions``: of trials where they are new.

        A trial that is not among them is not spilled any more and is forgotten.
        """
        self.best_trials.load(dumped["best trials"], positions)
        for key, sort, position, trial_id in dumped["first"]:
            place = position if positions is None else positions.get(trial_id)
            if place is not None:
                self._first_with[key, sort] = (place, trial_id)
        for metric, modes in dumped["best"].items():
            if positions is not None and any(best[2] not in positions for best in modes.values()):
                continue  # Who is best without it is found when next asked for.
            self._best[metric] = {
                mode: _Best(value, position if positions is None else positions[trial_id], trial_id)
                for mode, (value, position, trial_id) in modes.items()
            }


def _shape(result: dict[str, Any]) -> tuple[Any, ...] | None:
    """By which results with the same features are told; None if it does not say all of them."""
    types = tuple(map(type, result.values()))
    nested = [kind for kind in set(types) if issubclass(kind, dict)]
    # The config is not looked into.
    if nested and (
        nested != [dict] or types.count(dict) > 1 or type(result.get("config")) is not dict
    ):
        return None
    return (*result, *types)


def _flat(result: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in result.items():
        # The config is the one entry whose keys no report looks for as metrics.
        if isinstance(value, dict) and (prefix or key != "config"):
            yield from _flat(value, f"{prefix}{key}/")
        yield f"{prefix}{key}", value


# What most values are, for which asking for the abstract class takes long.
_SORTS = {type(None): "none", int: "number", float: "number", bool: "number", str: "other"}


def _sort_of(value: Any) -> str:
    sort = _SORTS.get(type(value))
    if sort is None:
        sort = "number" if isinstance(value, Number) else "other"
    return sort
