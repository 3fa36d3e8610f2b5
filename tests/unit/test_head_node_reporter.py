"""The reporter of the head node, where it answers at once, later, or never."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ray_tune_memguard import HeadNodeReporter, read_head_node
from ray_tune_memguard.callbacks import head_node_reporter, pacing
from ray_tune_memguard.cluster import head_node
from ray_tune_memguard.cluster.probe import Answer
from tests.unit.fakes import Clock, FakeTrial

MIB = 2**20


class Probes:
    """The way to the head, which answers at once, later, or never."""

    def __init__(self, answers: str) -> None:
        self.answers = answers
        self.asked: list[Answer[Any]] = []
        self.is_given_back = False
        self.gcs = 50 * MIB

    def ask(self, node: str, function: object, *args: object) -> Answer[Any]:
        assert node == args[0] == "head"
        answer: Answer[Any] = Answer(node)
        self.asked.append(answer)
        if self.answers == "at once":
            self.resolve()
        elif self.answers == "never":
            answer.fail(RuntimeError("it is gone"))
        return answer

    def resolve(self) -> None:
        self.gcs += 400_000
        self.asked[-1].resolve({"gcs_server": (self.gcs + 10_000_000, self.gcs)})

    def give_back(self, user: object) -> None:
        self.is_given_back = True


class Run:
    def __init__(self, probes: Probes, path: Path) -> None:
        self.probes = probes
        self.path = path

    def claim(self, job: str, owner: object) -> bool:
        return True

    def node_probes(self, user: object) -> Probes:
        return self.probes

    def reuses_actors(self) -> bool:
        return False

    def report_path(self, trials: object, kind: str, suffix: str) -> Path:
        return self.path / ".memguard" / f"{kind}-2026-11-26_10-00-00{suffix}"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    for module in (head_node_reporter, pacing):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(head_node, "head_node_id", lambda: "head")
    return clock


def sweep(probes: Probes, path: Path, clock: Clock, steps: int, **options: Any) -> HeadNodeReporter:
    """A run in which 25 trials finish each second."""
    reporter = HeadNodeReporter(**options)
    run: Any = Run(probes, path)
    reporter.begin_run(run)
    reporter.on_step_begin(0, [])
    trials: list[Any] = []
    for step in range(steps):
        clock.now += 1.0
        for number in range(25):
            reporter.on_trial_complete(step, trials, FakeTrial(step * 25 + number))
        reporter.on_step_end(step, trials)
    return reporter


def test_the_growth_is_logged_once_and_written(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ray_tune_memguard")
    probes = Probes("at once")
    reporter = sweep(probes, tmp_path, clock, 30)
    reporter.on_experiment_end([FakeTrial(number) for number in range(800)])  # type: ignore[misc]
    [line] = [record.getMessage() for record in caplog.records]
    assert "head node: gcs_server" in line
    assert "+15.6 KiB/trial, +1.3 GiB/hour. It keeps the events of every task" in line
    assert {process.name for process in reporter.processes()} == {"gcs_server", "driver"}
    series = read_head_node(tmp_path)
    gcs = series[series["process"] == "gcs_server"]
    assert gcs["trials"].tolist()[:3] == [25, 50, 75]
    assert gcs["rss_bytes"].is_monotonic_increasing
    # Trials that end with the experiment count: Ray calls no hook for them.
    assert gcs["trials"].tolist()[-1] == 800
    assert probes.is_given_back


def test_an_answer_that_comes_later_is_used_then(tmp_path: Path, clock: Clock) -> None:
    probes = Probes("later")
    reporter = sweep(probes, tmp_path, clock, 4)
    # It is asked once, and nothing waits.
    assert len(probes.asked) == 1
    assert reporter.processes() == []
    probes.resolve()
    reporter.on_step_end(5, [])
    assert {process.name for process in reporter.processes()} == {"gcs_server", "driver"}


def test_a_head_that_does_not_answer_is_one_warning(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    reporter = sweep(Probes("never"), tmp_path, clock, 10)
    reporter.on_experiment_end([])
    [record] = caplog.records
    assert "The head node's processes are not measured" in record.getMessage()
    assert "it is gone" in record.getMessage()
    assert read_head_node(tmp_path).empty


def test_no_looks_are_taken_on_request(tmp_path: Path, clock: Clock) -> None:
    probes = Probes("at once")
    sweep(probes, tmp_path, clock, 10, head_every_seconds=None)
    assert probes.asked == []


def test_looks_stay_in_their_budget(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    probes = Probes("at once")
    ask = probes.ask

    def slow(*args: Any) -> Answer[Any]:
        clock.now += 0.3
        return ask(*args)

    monkeypatch.setattr(probes, "ask", slow)
    sweep(probes, tmp_path, clock, 100)
    # 0.1 s are always allowed, and 0.1 % of the time.
    assert len(probes.asked) == 1
