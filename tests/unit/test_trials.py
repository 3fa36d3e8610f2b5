"""SpilledTrials behaves as a list, however many of its trials are on disk."""

from __future__ import annotations

import operator
import pickle
import random
from typing import Any

import pytest

from ray_tune_memguard.lazy.trial_list import SpilledTrials
from tests.unit.fakes import FakeTrial

PATTERNS = {"none": (), "some": (0, 3, 4, 11), "all": tuple(range(12))}


@pytest.fixture(params=PATTERNS.values(), ids=PATTERNS)
def twin(request: pytest.FixtureRequest, trials: SpilledTrials, spill: Any) -> Any:
    """The list under test, and a plain list of the same objects."""
    plain = list(trials)
    spill(trials, *request.param)
    return trials, plain


def test_reads_as_a_list(twin: Any) -> None:
    trials, plain = twin
    assert isinstance(trials, list)
    assert len(trials) == len(plain)
    assert bool(trials)
    for view in (list, tuple, lambda x: [*x], lambda x: list(reversed(x)), lambda x: x[2:9:3]):
        assert list(map(id, view(trials))) == list(map(id, view(plain)))
    assert [trials[i] for i in (0, -1, 5, -12)] == [plain[i] for i in (0, -1, 5, -12)]
    assert [trials.index(t) for t in plain] == list(range(12))
    assert all(t in trials for t in plain)
    assert FakeTrial(3) not in trials
    assert trials == plain
    assert operator.add(trials, [1]) == [*plain, 1]
    assert trials.copy() == plain
    assert sorted(trials, key=lambda t: t.trial_id, reverse=True) == plain[::-1]


def test_counts_by_status_as_trials_are_changed_and_removed(twin: Any) -> None:
    trials, plain = twin
    plain[3].status = "ERROR"
    plain[5].status = "ERROR"
    trials.remove(plain[4])
    statuses = [trial.status for trial in plain if trial is not plain[4]]
    for status in ("TERMINATED", "ERROR", "RUNNING"):
        assert trials.count_status(status) == statuses.count(status)


@pytest.mark.parametrize("index", [12, -13])
def test_out_of_range(twin: Any, index: int) -> None:
    with pytest.raises(IndexError):
        twin[0][index]


def test_index_of_a_stranger(twin: Any) -> None:
    with pytest.raises(ValueError, match="not in list"):
        twin[0].index(FakeTrial(3))


def test_pickles_as_a_plain_list(twin: Any) -> None:
    again = pickle.loads(pickle.dumps(twin[0]))
    assert type(again) is list
    assert [t.config["number"] for t in again] == list(range(12))
    assert all(type(t) is FakeTrial for t in again)


def test_random_changes_like_a_list(trials: SpilledTrials, spill: Any) -> None:
    chance = random.Random(1)
    plain = list(trials)
    number = 12
    for _ in range(300):
        action = chance.choice(["append", "requeue", "spill", "remove", "read"])
        waiting = trials.resident()
        if action == "append":
            trials.append(FakeTrial(number))
            plain.append(trials.resident()[-1])
            number += 1
        elif action == "requeue" and waiting:
            trial = chance.choice(waiting)
            trials.append(trials.pop(trials.index(trial)))
            plain.append(plain.pop(plain.index(trial)))
        elif action == "spill" and waiting:
            spill(trials, int(chance.choice(waiting).trial_id[1:]))
        elif action == "remove" and len(plain) > 5:
            trial = chance.choice(plain)
            trials.remove(trial)
            plain.remove(trial)
        index = chance.randrange(len(plain))
        assert trials[index] is plain[index]
        assert len(trials) == len(plain)
    assert all(a is b for a, b in zip(trials, plain, strict=True))


@pytest.mark.parametrize(
    ("change", "instead"),
    [
        (lambda trials: trials.sort(key=id), "sorted\\(trials"),
        (lambda trials: trials.reverse(), "reversed\\(trials\\)"),
        (lambda trials: trials.insert(0, FakeTrial(99)), "append\\(\\)"),
        (lambda trials: operator.setitem(trials, 0, trials[1]), "list\\(trials\\)"),
        (lambda trials: operator.setitem(trials, slice(2), []), "list\\(trials\\)"),
        (lambda trials: operator.imul(trials, 2), "trials \\* n"),
    ],
    ids=["sort", "reverse", "insert", "assign", "assign a slice", "multiply"],
)
def test_what_would_change_the_order_raises_and_says_what_to_do(
    trials: SpilledTrials[Any], change: Any, instead: str
) -> None:
    before = list(trials)
    with pytest.raises(TypeError, match=instead):
        change(trials)
    assert list(trials) == before


def test_spilling_while_somebody_walks(trials: SpilledTrials, spill: Any) -> None:
    seen = []
    for trial in trials:
        seen.append(trial.config["number"])
        if trial.config["number"] == 2:
            spill(trials, 0, 2, 3, 9)
    assert seen == list(range(12))


def test_del_and_clear(trials: SpilledTrials, spill: Any) -> None:
    spill(trials, 0, 1, 5)
    del trials[1]
    del trials[2:4]
    assert [t.config["number"] for t in trials] == [0, 2, 5, 6, 7, 8, 9, 10, 11]
    trials.clear()
    assert list(trials) == []
    assert not trials


def test_two_trials_with_the_same_random_id(trials: SpilledTrials, spill: Any) -> None:
    twin = FakeTrial(3)
    trials.append(twin)
    first = trials[3]
    spill(trials, 3)
    assert trials[3] is first
    assert trials[12] is twin
    assert twin in trials
    assert [trials.index(first), trials.index(twin)] == [3, 12]
    assert trials.resident()[-1] is twin
