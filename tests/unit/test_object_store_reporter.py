"""The reporter of the object store: which growth is a leak, and who is named."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ray_tune_memguard import ObjectStoreReporter, read_object_store
from ray_tune_memguard.callbacks import object_store_reporter, pacing
from ray_tune_memguard.cluster import object_holders
from ray_tune_memguard.cluster.core_names import OBJECT_OWNERS
from ray_tune_memguard.cluster.probe import Answer
from ray_tune_memguard.cluster.raylet import (
    LOCAL,
    RayletReport,
    Reference,
    StoreStats,
    WorkerObjects,
)
from tests.unit.fakes import Clock, FakeTrial

MIB = 2**20
Held = Callable[[int], tuple[int, int]]


def leaks(trials: int) -> tuple[int, int]:
    """Primary copies and spilled bytes: each trial leaves 200 KB, of which 5 MB fit."""
    left = 200_000 * trials
    return min(left, 5_000_000), max(0, left - 5_000_000)


class Run:
    """A run whose store holds what ``held`` says."""

    own_node = "own"

    def __init__(self, path: Path, held: Held, *, reuses: bool | None = False) -> None:
        self.path = path
        self.held = held
        self.reuses = reuses
        self.trials = 0
        self.running = 2
        self.pid_of_holder = 1
        self.capabilities = {OBJECT_OWNERS}
        self.answers = "at once"
        self.looks = 0
        self.report: RayletReport | None = None
        self.is_given_back = False

    def claim(self, job: str, owner: object) -> bool:
        return True

    def report_path(self, trials: object, kind: str, suffix: str) -> Path:
        return self.path / ".memguard" / f"{kind}-2026-11-26_10-00-00{suffix}"

    def running_trials(self) -> int:
        return self.running

    def reuses_actors(self) -> bool | None:
        return self.reuses

    def trials_by_pid(self, node: str) -> dict[int, tuple[str, str]]:
        return {2: ("t00077", "train_t00077")}

    # As the probes of the run.

    def node_probes(self, user: object) -> Run:
        return self

    def give_back(self, user: object) -> None:
        self.is_given_back = True

    def nodes(self) -> list[str]:
        return ["own"]

    def ask_here(self, function: Callable[..., Any], node: str) -> Answer[Any]:
        answer: Answer[Any] = Answer(node)
        if function is object_holders.read_references:
            if self.answers == "at once":
                answer.resolve(self.references())
        elif self.answers == "never":
            answer.fail(RuntimeError("it is gone"))
        else:
            self.looks += 1
            primary, spilled = self.held(self.trials)
            answer.resolve((80 * MIB, primary, spilled, 0.001))
        return answer

    def references(self) -> RayletReport | None:
        count = self.trials
        references = [Reference(str(one), 200_000, LOCAL, "train.py:f:3") for one in range(count)]
        holder = WorkerObjects(
            self.pid_of_holder, self.pid_of_holder == 1, "", count, count, tuple(references)
        )
        return RayletReport(StoreStats(0, 0, 0, 0, 0, 0, 0), (holder,))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    for module in (object_store_reporter, pacing):
        monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "ray_tune_memguard")
    return caplog


def sweep(
    run: Any, clock: Clock, trials: int, seconds_a_trial: float = 0.2, **options: Any
) -> ObjectStoreReporter:
    """A run in which five trials finish each second, or another number."""
    reporter = ObjectStoreReporter(**options)
    reporter.begin_run(run)
    reporter.on_step_begin(0, [])
    listed: list[Any] = []
    for number in range(trials):
        clock.now += seconds_a_trial
        run.trials = number + 1
        reporter.on_trial_complete(number, listed, FakeTrial(number))
        reporter.on_step_end(number, listed)
        reporter.on_step_end(number, listed)
    return reporter


def finished(trials: int) -> list[Any]:
    return [FakeTrial(number) for number in range(trials)]


def test_a_leak_of_200_kb_is_named_within_100_trials(
    tmp_path: Path, clock: Clock, log: pytest.LogCaptureFixture
) -> None:
    run = Run(tmp_path, leaks)
    reporter = sweep(run, clock, 99)
    [line] = log.messages
    assert int(line.partition("#")[2].split()[0]) <= 100
    assert "stay in it (4.8 MiB in memory, " in line
    assert "+195 KiB/trial. Who holds most: driver (pid 1)" in line
    assert "(LOCAL_REFERENCE), created at train.py:f:3" in line
    assert reporter.bytes_per_trial() == pytest.approx(200_000)
    reading = reporter.latest()
    assert reading is not None
    assert reading.held == 200_000 * 90
    reporter.on_experiment_end(finished(99))
    assert len(log.messages) == 1
    assert run.is_given_back
    store = read_object_store(tmp_path)
    assert store["trials"].tolist()[:3] == [10, 20, 30]
    assert (store["primary_bytes"] + store["spilled_bytes"]).is_monotonic_increasing
    [leak] = store.loc[store["leak"] != "", "leak"]
    assert leak in line


@pytest.mark.parametrize("trials_a_second", [30, 60, 75])
def test_a_leak_in_a_fast_sweep_is_named_by_its_end(
    tmp_path: Path, clock: Clock, log: pytest.LogCaptureFixture, trials_a_second: int
) -> None:
    run = Run(tmp_path, leaks)
    reporter = sweep(run, clock, 100, 1 / trials_a_second)
    reporter.on_experiment_end(finished(100))
    [line] = log.messages
    assert "Who holds most: driver (pid 1)" in line


@pytest.mark.parametrize(
    "held",
    [
        pytest.param(lambda trials: (20 * MIB, 0), id="constant"),
        pytest.param(lambda trials: (min(trials, 12) * 3 * MIB, 0), id="first wave"),
        pytest.param(lambda trials: (trials % 40 * MIB, 0), id="saw teeth"),
        pytest.param(lambda trials: (trials * 1000, 0), id="next to nothing"),
        pytest.param(lambda trials: (10 * MIB * (trials > 60), 0), id="one step"),
    ],
)
def test_no_other_growth_is_named(
    tmp_path: Path, clock: Clock, log: pytest.LogCaptureFixture, held: Held
) -> None:
    sweep(Run(tmp_path, held), clock, 400).on_experiment_end(finished(400))
    assert log.messages == []


def test_what_fluctuates_is_not_named(
    tmp_path: Path, clock: Clock, log: pytest.LogCaptureFixture
) -> None:
    for seed in range(20):
        chance = random.Random(seed)
        held = [chance.randrange(64) * MIB for _ in range(501)]
        sweep(Run(tmp_path, lambda trials, held=held: (held[trials], 0)), clock, 500)
    assert log.messages == []


def test_growth_over_a_few_rounds_of_running_trials_is_not_named(
    tmp_path: Path, clock: Clock, log: pytest.LogCaptureFixture
) -> None:
    run = Run(tmp_path, leaks)
    run.running = 64
    sweep(run, clock, 200)
    assert log.messages == []


def test_what_running_trials_hold_is_no_leak(
    tmp_path: Path, clock: Clock, log: pytest.LogCaptureFixture
) -> None:
    run = Run(tmp_path, leaks)
    run.pid_of_holder = 2
    sweep(run, clock, 300)
    assert log.messages == []


def test_what_earlier_trials_left_in_a_reused_actor_is_a_leak(
    tmp_path: Path, clock: Clock, log: pytest.LogCaptureFixture
) -> None:
    run = Run(tmp_path, leaks, reuses=True)
    run.pid_of_holder = 2
    sweep(run, clock, 100)
    [line] = log.messages
    assert "trial t00077 (pid 2)" in line


def test_a_leak_is_named_without_its_holder(
    tmp_path: Path, clock: Clock, log: pytest.LogCaptureFixture
) -> None:
    run = Run(tmp_path, leaks)
    run.capabilities = set()
    sweep(run, clock, 100)
    [line] = log.messages
    assert "Who holds the objects is not known" in line


def test_nothing_waits_for_those_who_are_asked(
    tmp_path: Path, clock: Clock, log: pytest.LogCaptureFixture
) -> None:
    run = Run(tmp_path, leaks)
    run.answers = "later"
    reporter = sweep(run, clock, 90)
    assert log.messages == []
    clock.now += 10
    reporter.on_step_end(1, [])
    assert len(log.messages) == 1


def test_a_store_that_is_not_told_is_one_warning(
    tmp_path: Path, clock: Clock, log: pytest.LogCaptureFixture
) -> None:
    run = Run(tmp_path, leaks)
    run.answers = "never"
    reporter = sweep(run, clock, 100)
    reporter.on_experiment_end(finished(100))
    [line] = log.messages
    assert "The object store is not measured" in line
    assert read_object_store(tmp_path).empty
    assert reporter.latest() is None


def test_no_looks_are_taken_on_request(tmp_path: Path, clock: Clock) -> None:
    run = Run(tmp_path, leaks)
    sweep(run, clock, 100, objects_every_seconds=None).on_experiment_end(finished(100))
    assert run.looks == 0


def test_trials_that_end_with_the_experiment_count(tmp_path: Path, clock: Clock) -> None:
    """Ray calls no hook for them."""
    sweep(Run(tmp_path, leaks), clock, 30).on_experiment_end(finished(40))
    assert read_object_store(tmp_path)["trials"].tolist() == [10, 20, 30, 40]


def test_looks_stay_in_their_budget(tmp_path: Path, clock: Clock) -> None:
    run = Run(tmp_path, lambda trials: (0, 0))
    ask = run.ask_here

    def slow(function: Callable[..., Any], node: str) -> Answer[Any]:
        clock.now += 0.3
        return ask(function, node)

    run.ask_here = slow  # type: ignore[method-assign]
    sweep(run, clock, 500)
    # 0.1 s are always allowed, and 0.1 % of the time.
    assert run.looks == 1
