"""A digest gives a progress report what all trials would have given it."""

from __future__ import annotations

import json
import random
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
from ray.tune.experiment import Trial

from ray_tune_memguard.lazy.cache import TrialCache
from ray_tune_memguard.lazy.ghost import is_ghost
from ray_tune_memguard.lazy.interfaces import FINISHED
from ray_tune_memguard.lazy.progress import ProgressView
from ray_tune_memguard.lazy.summaries import TrialSummaryIndex
from ray_tune_memguard.lazy.trial_list import SpilledTrials
from ray_tune_memguard.store.trial_store import TrialStore
from tests.unit.fakes import FakeCodec, FakeTrial


def best(trials: Any, metric: str, sign: int) -> Any:
    """Ray's rule: the first of the best, in order."""
    found, score = None, float("-inf")
    for trial in trials:
        value = trial.last_result.get(metric)
        if value is None or value != value:
            continue
        if found is None or value * sign > score:
            found, score = trial, value * sign
    return found


@pytest.fixture(params=range(5))
def sweep(request: pytest.FixtureRequest, tmp_path: Path, spill: Any) -> Any:
    chance = random.Random(request.param)
    plain = []
    for number in range(300):
        status = chance.choices(["TERMINATED", "ERROR", "RUNNING"], [90, 5, 5])[0]
        trial = FakeTrial(number, status, score=float(chance.randrange(20)))
        if number % 97 == 13:
            trial.last_result[f"rare{number}"] = 1
        if status == "ERROR":
            trial.error_file = "error.txt"
        plain.append(trial)
    store = TrialStore.create(tmp_path, "trials")
    summaries = TrialSummaryIndex(lambda metric, result: result.get(metric))
    trials = SpilledTrials(plain, TrialCache(store, FakeCodec()), summaries)
    finished = [n for n, trial in enumerate(plain) if trial.is_finished()]
    chance.shuffle(finished)
    half = len(finished) // 2
    spill(trials, *finished[:half])
    ProgressView(trials, metric="score", errors=False)
    spill(trials, *finished[half:])
    return trials, plain


@pytest.mark.parametrize("sign", [1, -1])
def test_best_trial(sweep: Any, sign: int) -> None:
    trials, plain = sweep
    digest = ProgressView(trials, metric="score", errors=False)
    assert best(digest, "score", sign) is best(plain, "score", sign)


def test_length_counts_and_order_of_statuses(sweep: Any) -> None:
    trials, plain = sweep
    expected: dict[str, list[Any]] = {}
    for trial in plain:
        expected.setdefault(trial.status, []).append(trial)
    digest = ProgressView(trials, metric=None, errors=False)
    groups = digest.by_status()
    assert len(digest) == len(plain)
    assert list(groups) == list(expected)
    for status, group in groups.items():
        assert len(group) == len(expected[status])
        assert all(a is b for a, b in zip(group, expected[status], strict=True))
    assert groups["PAUSED"] == []


def test_who_only_reads_sees_the_same_and_leaves_nothing_loaded(
    trials: SpilledTrials, spill: Any
) -> None:
    spill(trials, *range(10))
    held = trials[3]
    held.config["number"] = "changed"
    # No more than four are loaded at a time.
    for number in (4, 5, 6, 7):
        assert trials[number].config["number"] == number
    digest = ProgressView(trials, metric=None, errors=False, only_reads=True)
    loaded = trials.cache.active()
    [group] = digest.by_status().values()
    seen = [(trial.config["number"], trial.trial_id, type(trial)) for trial in group]
    numbers = [0, 1, 2, "changed", *range(4, 12)]
    assert seen == [(number, f"t{at:05d}", FakeTrial) for at, number in enumerate(numbers)]
    # But for what the digest holds itself.
    assert set(trials.cache.active()) - set(loaded) <= {held, *digest}
    assert trials[3] is held
    assert held.config["number"] == "changed"


def test_every_column_has_a_trial_in_it(sweep: Any) -> None:
    trials, plain = sweep
    keys = {key for trial in plain for key in trial.last_result}
    digest = ProgressView(trials, metric=None, errors=False)
    assert {key for trial in digest for key in trial.last_result} == keys


def test_every_failed_trial_is_in_it(sweep: Any) -> None:
    trials, plain = sweep
    digest = ProgressView(trials, metric=None, errors=True)
    failed = [trial.trial_id for trial in plain if trial.error_file]
    assert [trial.trial_id for trial in digest if trial.error_file] == failed


@pytest.mark.parametrize("sign", [1, -1])
def test_a_metric_that_is_asked_for_late_loads_no_trial(sweep: Any, sign: int) -> None:
    trials, plain = sweep
    held = plain[next(n for n, trial in enumerate(plain) if is_ghost(trial))]
    held.last_result["late"] = 1000.0 * sign
    for number, trial in enumerate(plain):
        trial.last_result.setdefault("late", float(number % 7))
    trials.cache.deactivate_all()
    loaded = set(trials.cache.active())
    digest = ProgressView(trials, metric="late", errors=False)
    assert len(set(trials.cache.active()) - loaded - set(digest)) == 0
    assert best(digest, "late", sign) is best(plain, "late", sign)


def test_a_metric_is_asked_for_again_after_a_trial_could_not_be_read(
    sweep: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials, plain = sweep
    with monkeypatch.context() as patched:
        patched.setattr(FakeCodec, "load_for_report", lambda self, raw: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            ProgressView(trials, metric="other", errors=False)
    for trial in plain:
        trial.last_result["other"] = -int(trial.trial_id[1:])
    digest = ProgressView(trials, metric="other", errors=False)
    assert best(digest, "other", 1) is best(plain, "other", 1)


def test_a_metric_is_found_where_a_result_reads_more_of_a_trial(
    sweep: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials, plain = sweep
    monkeypatch.setattr(FakeCodec, "load_for_report", lambda self, raw: {"trial_id": "alone"})
    digest = ProgressView(trials, metric="rare13", errors=False)
    assert best(digest, "rare13", 1) is best(plain, "rare13", 1)


def test_it_does_not_read_all_trials(sweep: Any) -> None:
    trials, plain = sweep
    trials.cache.deactivate_all()
    digest = ProgressView(trials, metric="score", errors=False)
    walked = [trial.last_result for trial in digest]
    assert len(walked) < 60
    loaded = sum(trial.is_finished() and not is_ghost(trial) for trial in plain)
    assert 0 < loaded < 60


def test_the_ledger_does_not_grow_with_made_up_keys() -> None:
    summaries = TrialSummaryIndex(lambda metric, result: result.get(metric))
    for number in range(5000):
        summaries.note(number, "t", FakeTrial(number, **{f"key{number}": 1}).last_result, {})
    assert len(summaries._first_with) <= 1024


RESULTS: list[dict[str, Any]] = [
    {"score": 1.0, "config": {"x": 1}},
    {"score": 2.0, "config": {"y": 1}},
    {"score": None, "config": {"x": 1}},
    {"score": 1.0, "eval": {"loss": 1.0}},
    {"score": 1.0, "eval": {"other": 1.0}},
    {"score": 1.0, "eval": OrderedDict(more=1.0), "config": {}},
    {"score": 1.0, "eval": OrderedDict(yet=1.0), "config": {}},
    {"score": "text", "config": {"x": 1}},
    {"other": 1.0, "score": 1.0},
]


@pytest.mark.parametrize("seed", range(8))
def test_the_first_trial_with_each_feature_is_known(seed: int) -> None:
    """Whatever is remembered of the result before, so as not to look at each."""
    chance = random.Random(seed)
    results = [chance.choice(RESULTS) for _ in range(60)]
    order = chance.sample(range(60), 60)
    quick = TrialSummaryIndex(lambda metric, result: result.get(metric))
    for position in order:
        quick.note(position, f"t{position}", results[position], {})
    each = TrialSummaryIndex(lambda metric, result: result.get(metric))
    for position in range(60):
        each._note_features(position, f"t{position}", results[position])
    assert quick._first_with == each._first_with


def test_what_the_first_version_wrote_is_read() -> None:
    """Stores of experiments that exist have it, so the names in it stay."""
    index = TrialSummaryIndex(lambda metric, result: result.get(metric))
    dumped = {
        "first": [["score", "number", 3, "t3"], ["text", "other", 5, "t5"]],
        "best": {"score": {"max": [9.0, 4, "t4"], "min": [-1.0, 6, "t6"]}},
        "best trials": {
            "metrics": {"score": [["max", "last", 9.0, 4, "t4"]]},
            "unknown": ["odd"],
        },
    }
    index.load(json.loads(json.dumps(dumped)))
    assert index.trial_ids("score") == {"t3", "t4", "t5", "t6"}
    assert index.best_trials.best("score", "max", "last") == ("t4", "last", 9.0)
    assert not index.best_trials.knows("odd")
    # A better one by each mode, and one that is not.
    index.note(7, "t7", {"score": 0.5}, {})
    index.note(8, "t8", {"score": 9.5}, {})
    index.note(9, "t9", {"score": 5.0}, {})
    assert index.trial_ids("score") == {"t3", "t5", "t7", "t8"}
    assert json.loads(json.dumps(index.dump()))["best"] == {
        "score": {"max": [9.5, 8, "t8"], "min": [-0.5, 7, "t7"]}
    }


def test_the_statuses_of_finished_trials_are_rays() -> None:
    every = ("PENDING", "RUNNING", "PAUSED", "TERMINATED", "ERROR")
    trial = Trial("trainable", stub=True)
    for status in every:
        trial.status = status
        assert trial.is_finished() == (status in FINISHED)
    assert set(every) == {value for name, value in vars(Trial).items() if name == value}
