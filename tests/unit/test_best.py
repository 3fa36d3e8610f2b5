"""The best of spilled trials is the one that Ray would find by asking all of them."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from ray.tune import ExperimentAnalysis

from ray_tune_memguard.lazy.best import MODES, SCOPES, BestTrials
from ray_tune_memguard.lazy.cache import TrialCache
from ray_tune_memguard.lazy.summaries import TrialSummaryIndex
from ray_tune_memguard.lazy.trial_list import SpilledTrials
from ray_tune_memguard.store.trial_store import TrialStore
from tests.unit.conftest import Spill
from tests.unit.fakes import FakeCodec, FakeTrial, summary

METRICS = ("score", "flat", "rare", "wild")


def _rays_best(trials: Any, metric: str, mode: str, scope: str) -> Any:
    analysis = ExperimentAnalysis.__new__(ExperimentAnalysis)
    analysis.trials = list(trials)
    return analysis.get_best_trial(metric, mode, scope)


def _make_trials(count: int, seed: int) -> list[FakeTrial]:
    """With ties, values that are not numbers, infinite ones, and metrics that few report."""
    chance = random.Random(seed)
    made = []
    for number in range(count):
        trial = FakeTrial(number)
        reports = chance.randint(1, 12)
        trial.metric_analysis = {
            "score": summary(*(float(chance.randint(0, 9)) for _ in range(reports))),
            "flat": summary(*([0.1] * reports)),
            "wild": summary(
                *(chance.choice((math.nan, math.inf, -math.inf, 1.0, -1.0)) for _ in range(2))
            ),
        }
        if chance.random() < 0.05:
            trial.metric_analysis["rare"] = summary(chance.random())
        made.append(trial)
    return made


def _trials_in(directory: Path, made: list[FakeTrial]) -> SpilledTrials:
    store = TrialStore.create(directory / "memguard", "trials")
    summaries = TrialSummaryIndex(lambda metric, result: result.get(metric))
    return SpilledTrials(made, TrialCache(store, FakeCodec(), capacity=4), summaries)


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_one_that_ray_finds(tmp_path: Path, spill: Spill, seed: int) -> None:
    made = _make_trials(120, seed)
    trials = _trials_in(tmp_path, list(made))
    order = list(range(120))
    random.Random(seed).shuffle(order)
    for spilled in (0, 1, 60, 110):
        spill(trials, *order[trials.cache.store.extent()[0] : spilled])
        for metric in METRICS:
            for mode in MODES:
                for scope in SCOPES:
                    few = trials.best_candidates(metric, mode, scope)
                    assert few is not None
                    assert len(few) <= 120 - spilled + 5
                    found = _rays_best(few * 2, metric, mode, scope)
                    assert found is _rays_best(trials, metric, mode, scope)


def test_what_was_changed_after_the_spill_counts(trials: SpilledTrials, spill: Spill) -> None:
    spill(trials, *range(12))
    assert _best_of(trials) == "t00011"
    trials[3].metric_analysis["score"] = summary(99.0)
    # As long as it is in memory …
    assert _best_of(trials) == "t00003"
    for trial in trials:  # … and after it was written again.
        assert trial.config
    assert trials.best_candidates("score", "max", "last") is None


def test_a_best_trial_that_was_made_worse_is_not_taken(trials: SpilledTrials, spill: Spill) -> None:
    spill(trials, *range(12))
    trials[11].metric_analysis["score"] = summary(-1.0)
    assert trials.best_candidates("score", "max", "last") is None


def test_a_best_trial_that_was_removed_is_not_taken(trials: SpilledTrials, spill: Spill) -> None:
    spill(trials, *range(12))
    trials.pop(11)
    assert trials.best_candidates("score", "max", "last") is None


def test_it_survives_as_json_with_new_places() -> None:
    best = BestTrials()
    for number, trial in enumerate(_make_trials(50, seed=1)):
        best.note(number, trial.trial_id, trial.metric_analysis)
    dumped = json.loads(json.dumps(best.dump()))
    again = BestTrials()
    again.load(dumped, {f"t{number:05d}": 49 - number for number in range(50)})
    for metric in METRICS:
        assert again.best(metric, "max", "last") == best.best(metric, "max", "last")
    # Of equals the first one wins, by the new places.
    again.note(-1, "first", {"flat": summary(0.1)})
    assert _id_of(again.best("flat", "max", "last")) == "first"


def test_without_one_of_the_best_the_metric_is_not_known() -> None:
    best = BestTrials()
    for number in range(3):
        best.note(number, f"t{number}", {"score": summary(float(number)), "other": summary(1.0)})
    again = BestTrials()
    again.load(best.dump(), {"t0": 0, "t1": 1})
    assert not again.knows("score")
    assert again.knows("other")
    again.note(2, "t2", {"score": summary(5.0)})
    assert not again.knows("score")


def test_values_that_only_ray_can_compare_are_left_to_ray() -> None:
    best = BestTrials()
    odd = {**summary(1.0), "max": "one"}
    huge = {**summary(1.0), "avg": 10**400}
    best.note(0, "t0", {"odd": odd, "huge": huge, "score": summary(1.0)})  # type: ignore[dict-item]
    assert not best.knows("odd")
    assert not best.knows("huge")
    assert _id_of(best.best("score", "max", "last")) == "t0"


def test_ever_new_metrics_do_not_make_it_grow() -> None:
    best = BestTrials()
    for number in range(3000):
        best.note(
            number, f"t{number}", {f"m{number}": summary(1.0), "score": summary(1.0 * number)}
        )
    assert len(json.dumps(best.dump())) < 1_500_000
    assert not best.knows("m2999")
    assert _id_of(best.best("score", "max", "last")) == "t2999"


def _id_of(best: tuple[str, str, float] | None) -> str | None:
    return None if best is None else best[0]


def _best_of(trials: SpilledTrials) -> str:
    few = trials.best_candidates("score", "max", "last")
    assert few is not None
    return str(_rays_best(few * 2, "score", "max", "last").trial_id)
