"""Any sequence of uses of the list of trials, and of a lazy trial, has the result that it has on a
plain list and on a plain trial: whatever was spilled, activated, changed or dropped in between."""

from __future__ import annotations

import copy
import operator
import pickle
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ray_tune_memguard.lazy.cache import TrialCache
from ray_tune_memguard.lazy.containers import LazyTrialSequence
from ray_tune_memguard.lazy.ghost import is_ghost
from ray_tune_memguard.lazy.progress import ProgressView
from ray_tune_memguard.lazy.summaries import TrialSummaryIndex
from ray_tune_memguard.lazy.trial_list import SpilledTrials
from ray_tune_memguard.store.trial_store import TrialStore
from tests.unit.fakes import FakeCodec, FakeTrial, fake_row

numbers = st.integers(0, 40)
# Few enough that trials are deactivated all the time.
CAPACITY = 2


class Result:
    """What is made of a trial, and may be referred to weakly."""

    def __init__(self, trial: Any) -> None:
        self.state = plain_state(trial)


def plain_state(trial: Any) -> str:
    # Equal by value, whatever objects it consists of; a pickle tells equal objects from the same.
    return repr({name: vars(trial)[name] for name in sorted(vars(trial))})


def pickled_and_read(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


class Spilling(RuleBasedStateMachine):
    """A list of trials in a store of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.store = TrialStore.create(Path(self.directory.name), "trials")
        cache = TrialCache(self.store, FakeCodec(), capacity=CAPACITY)
        summaries = TrialSummaryIndex(lambda metric, result: result.get(metric))
        self.trials: SpilledTrials[Any] = SpilledTrials((), cache, summaries)
        self.made = 0

    def new_trial(self) -> FakeTrial:
        self.made += 1
        return FakeTrial(self.made)

    def spill_one(self, trial: FakeTrial) -> None:
        with self.store.transaction():
            row = fake_row(trial.trial_id, trial.status, FakeCodec().dump(trial))
            self.store.put(self.trials.position(trial), row)
        self.trials.summaries.note(
            self.trials.position(trial), trial.trial_id, trial.last_result, trial.metric_analysis
        )
        self.trials.release(trial)

    def teardown(self) -> None:
        self.store.close()
        self.directory.cleanup()


class ListOfTrials(Spilling):
    """Beside a plain list of the same trials."""

    def __init__(self) -> None:
        super().__init__()
        self.plain: list[Any] = []
        #: Trials that were spilled once, ever: these cannot be spilled again.
        self.spilled: set[str] = set()
        self.frozen: list[tuple[LazyTrialSequence[Any, Any], list[str]]] = []

    def some(self, number: int) -> Any:
        return self.plain[number % len(self.plain)]

    @rule()
    def append(self) -> None:
        trial = self.new_trial()
        self.trials.append(trial)
        self.plain.append(trial)

    @rule(count=st.integers(0, 3))
    def extend(self, count: int) -> None:
        more = [self.new_trial() for _ in range(count)]
        self.trials += more
        self.plain += more

    @precondition(lambda self: self.trials.resident())
    @rule(number=numbers)
    def spill(self, number: int) -> None:
        waiting = [t for t in self.trials.resident() if t.trial_id not in self.spilled]
        if waiting:
            trial = waiting[number % len(waiting)]
            self.spill_one(trial)
            self.spilled.add(trial.trial_id)

    @precondition(lambda self: self.plain)
    @rule(number=numbers)
    def move_to_the_end(self, number: int) -> None:
        """As Ray does with a trial that is tried again."""
        trial = self.some(number)
        self.trials.append(self.trials.pop(self.trials.index(trial)))
        self.plain.append(self.plain.pop(self.plain.index(trial)))

    @precondition(lambda self: self.plain)
    @rule(number=numbers)
    def remove(self, number: int) -> None:
        trial = self.some(number)
        self.trials.remove(trial)
        self.plain.remove(trial)
        assert trial not in self.trials
        assert self.trials.find(trial.trial_id) is None
        with pytest.raises(ValueError, match="not in list"):
            self.trials.remove(trial)

    @precondition(lambda self: self.plain)
    @rule(number=numbers)
    def pop(self, number: int) -> None:
        index = number % len(self.plain)
        assert self.trials.pop(index) is self.plain.pop(index)

    @rule(start=numbers, length=st.integers(0, 3), step=st.sampled_from([1, 2, -1]))
    def delete(self, start: int, length: int, step: int) -> None:
        chosen = slice(start, max(0, start + length * step), step)
        del self.trials[chosen]
        del self.plain[chosen]

    @precondition(lambda self: self.plain)
    @rule(number=numbers, status=st.sampled_from(["TERMINATED", "ERROR"]))
    def change_status(self, number: int, status: str) -> None:
        self.some(number).status = status

    @precondition(lambda self: self.plain)
    @rule(number=numbers, value=numbers)
    def change_config(self, number: int, value: int) -> None:
        self.some(number).config["number"] = value

    @rule()
    def drop_what_nobody_holds(self) -> None:
        """From here on the plain list holds other objects: those that are given out."""
        del self.plain[:]
        self.plain = list(self.trials)

    @rule()
    def freeze(self) -> None:
        expected = [plain_state(trial) for trial in self.plain]
        self.frozen = [*self.frozen[-2:], (LazyTrialSequence(self.trials, Result), expected)]

    @rule()
    def frozen_sequences_stay(self) -> None:
        for sequence, expected in self.frozen:
            assert [result.state for result in sequence] == expected

    @rule(start=st.integers(-6, 6), stop=st.integers(-6, 6), step=st.sampled_from([1, 2, -1, -3]))
    def slices(self, start: int, stop: int, step: int) -> None:
        chosen = slice(start, stop, step)
        assert list(map(id, self.trials[chosen])) == list(map(id, self.plain[chosen]))

    @precondition(lambda self: self.plain)
    @rule(number=numbers, start=st.integers(-6, 6), stop=st.integers(-6, 6))
    def index(self, number: int, start: int, stop: int) -> None:
        trial = self.some(number)
        try:
            expected: int | None = self.plain.index(trial, start, stop)
        except ValueError:
            expected = None
        try:
            found: int | None = self.trials.index(trial, start, stop)
        except ValueError:
            found = None
        assert found == expected

    @rule()
    def operators(self) -> None:
        assert self.trials == self.plain
        assert operator.ne(self.trials, self.plain) is False
        assert (self.trials != []) == bool(self.plain)
        assert [None, *self.plain] == [None] + self.trials  # noqa: RUF005
        assert self.trials + [None] == [*self.plain, None]  # noqa: RUF005
        assert self.trials * 2 == self.plain * 2
        longer = [None]
        longer += self.trials
        longer[:1] = self.trials
        assert longer == self.plain * 2
        assert copy.copy(self.trials) == self.plain
        assert list(map(id, reversed(self.trials))) == list(map(id, reversed(self.plain)))
        unpickled = pickle.loads(pickle.dumps(self.trials))
        assert type(unpickled) is list
        assert list(map(plain_state, unpickled)) == list(map(plain_state, self.plain))

    @rule()
    def what_changes_the_order(self) -> None:
        for name, arguments in (("sort", ()), ("reverse", ()), ("insert", (0, None))):
            with pytest.raises(TypeError, match=name):
                getattr(self.trials, name)(*arguments)
        with pytest.raises(TypeError, match="assignment"):
            operator.setitem(self.trials, 0, None)

    @rule()
    def progress(self) -> None:
        groups = ProgressView(self.trials, metric="score", errors=False).by_status()
        for status in ("TERMINATED", "ERROR"):
            expected = [trial for trial in self.plain if trial.status == status]
            assert len(groups[status]) == len(expected)
            assert list(map(id, groups[status])) == list(map(id, expected))

    @rule(mode=st.sampled_from(["max", "min"]))
    def best(self, mode: str) -> None:
        few = self.trials.best_candidates("score", mode, "last")
        if few is not None and self.plain:
            scores = [trial.metric_analysis["score"]["last"] for trial in self.plain]
            extreme = {"max": max, "min": min}[mode]
            assert extreme(t.metric_analysis["score"]["last"] for t in few) == extreme(scores)

    @invariant()
    def the_same_trials(self) -> None:
        assert len(self.trials) == len(self.plain)
        assert bool(self.trials) == bool(self.plain)
        assert list(map(id, self.trials)) == list(map(id, self.plain))
        # Trials whose status was changed cannot leave.
        sticky = len(self.trials.cache.with_other_status())
        assert len(self.trials.cache.active()) <= CAPACITY + sticky + 1


NAMES = st.sampled_from(["own", "other", "config", "last_result", "missing"])
VALUES = st.one_of(
    st.integers(), st.tuples(st.integers()), st.dictionaries(st.text(), st.integers())
)


class LazyTrial(Spilling):
    """One spilled trial beside a plain one, on which the same is done."""

    def __init__(self) -> None:
        super().__init__()
        self.others = [self.new_trial() for _ in range(CAPACITY + 1)]
        self.held: Any = self.new_trial()
        self.plain = FakeTrial(self.made)
        for trial in [*self.others, self.held]:
            self.trials.append(trial)
        for trial in [*self.others, self.held]:
            self.spill_one(trial)
        self.results: list[tuple[LazyTrialSequence[Any, Any], str]] = []

    @property
    def lazy(self) -> Any:
        return self.trials[-1] if self.held is None else self.held

    @rule()
    def hold(self) -> None:
        self.held = self.trials[-1]

    @rule()
    def let_go(self) -> None:
        self.held = None

    @rule()
    def read_others(self) -> None:
        """Which deactivates this one, if it can be."""
        for trial in self.others:
            assert trial.config
        assert is_ghost(self.lazy) or self.is_sticky()

    @rule()
    def deactivate_all(self) -> None:
        self.trials.cache.deactivate_all()
        assert is_ghost(self.lazy) or self.is_sticky()

    def is_sticky(self) -> bool:
        return "lock" in vars(self.plain) or self.plain.status != "TERMINATED"

    @rule(name=NAMES)
    def read(self, name: str) -> None:
        missing = object()
        found, expected = (getattr(t, name, missing) for t in (self.lazy, self.plain))
        assert found == expected
        assert hasattr(self.lazy, name) == hasattr(self.plain, name)

    @rule(name=NAMES, value=VALUES)
    def write(self, name: str, value: object) -> None:
        setattr(self.lazy, name, copy.deepcopy(value))
        setattr(self.plain, name, copy.deepcopy(value))

    @rule(name=NAMES)
    def delete(self, name: str) -> None:
        outcomes = []
        for trial in (self.lazy, self.plain):
            try:
                delattr(trial, name)
                outcomes.append("")
            except AttributeError:
                outcomes.append("there is none")
        assert outcomes[0] == outcomes[1]

    @precondition(lambda self: isinstance(getattr(self.plain, "config", None), dict))
    @rule(key=st.text(), value=VALUES)
    def change_inside(self, key: str, value: object) -> None:
        for trial in (self.lazy, self.plain):
            trial.config[key] = copy.deepcopy(value)

    @rule(status=st.sampled_from(["TERMINATED", "ERROR", "PENDING"]))
    def change_status(self, status: str) -> None:
        self.lazy.status = self.plain.status = status

    @rule()
    def give_it_what_does_not_pickle(self) -> None:
        self.lazy.lock = self.plain.lock = threading.Lock()  # type: ignore[attr-defined]

    @precondition(lambda self: hasattr(self.plain, "lock"))
    @rule()
    def take_that_away(self) -> None:
        del self.lazy.lock
        del self.plain.lock

    @precondition(lambda self: not hasattr(self.plain, "lock"))
    @rule(copied=st.sampled_from([copy.copy, copy.deepcopy, pickled_and_read]))
    def copy_it(self, copied: Any) -> None:
        twin = copied(self.lazy)
        assert type(twin) is FakeTrial
        assert plain_state(twin) == plain_state(copied(self.plain))
        twin.config = "the copy's own"
        assert getattr(self.lazy, "config", None) == getattr(self.plain, "config", None)

    @precondition(lambda self: not hasattr(self.plain, "lock"))
    @rule()
    def build_results(self) -> None:
        sequence = LazyTrialSequence(self.trials, Result)
        self.results = [*self.results[-2:], (sequence, plain_state(self.plain))]

    @rule()
    def results_stay(self) -> None:
        for sequence, expected in self.results:
            assert sequence[-1].state == expected

    @precondition(lambda self: not hasattr(self.plain, "lock"))
    @rule()
    def read_a_detached_copy(self) -> None:
        assert plain_state(self.trials.cache.peek(self.lazy)) == plain_state(self.plain)

    @invariant()
    def it_answers_as_a_plain_trial(self) -> None:
        lazy = self.lazy
        assert (lazy.trial_id, lazy.status) == (self.plain.trial_id, self.plain.status)
        assert lazy.is_finished() == self.plain.is_finished()
        assert lazy.__class__ is FakeTrial
        assert isinstance(lazy, FakeTrial)
        assert self.trials.index(lazy) == len(self.others)


quick = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
ListOfTrials.TestCase.settings = quick
LazyTrial.TestCase.settings = quick
TestListOfTrials = ListOfTrials.TestCase
TestLazyTrial = LazyTrial.TestCase


def test_what_is_not_allowed_raises(trials: SpilledTrials[Any], spill: Any) -> None:
    held, unspilled = trials[3], trials[4]
    spill(trials, 3)
    for is_active in (False, True):
        assert is_ghost(held) is not is_active
        with pytest.raises(ValueError, match="has been released already"):
            trials.cache.release(held)
        assert held.config
    with pytest.raises(ValueError, match="is not spilled"):
        trials.cache.activate(unspilled)


def test_results_of_trials_that_cannot_be_stored_are_made_at_once(
    trials: SpilledTrials[Any], spill: Any
) -> None:
    spill(trials, 3, 4)
    unspilled, sticky, lazy = trials[2], trials[3], trials[4]
    sticky.lock = threading.Lock()
    configs = LazyTrialSequence(trials, lambda trial: Result(SimpleNamespace(**trial.config)))
    before = [result.state for result in configs]
    for trial in (unspilled, sticky, lazy):
        trial.config["number"] = "changed"
    trials.cache.deactivate_all()
    trials.pop(0)
    trials.remove(lazy)
    assert [result.state for result in configs] == before


def test_a_change_does_not_touch_the_store(trials: SpilledTrials[Any], spill: Any) -> None:
    spill(trials, *range(12))
    store = trials.cache.store
    rows, state = store.rows(0, 12), store.state("t00003")
    trials[3].config["number"] = "changed"
    trials.cache.deactivate_all()
    trials.pop(4)
    assert trials[3].config["number"] == "changed"
    assert (store.rows(0, 12), store.state("t00003")) == (rows, state)
