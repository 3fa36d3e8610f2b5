"""The tracker's hooks, called by hand."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from ray_tune_memguard import ObjectGrowthTracker
from ray_tune_memguard.diagnostics.diagnosis import Diagnosis
from ray_tune_memguard.diagnostics.tracking import GrowthTracking


def finish(tracker: ObjectGrowthTracker, trials: list[Any], numbers: range) -> None:
    for number in numbers:
        trials[number].status = "TERMINATED"
        tracker.on_trial_complete(iteration=number, trials=trials, trial=trials[number])
        tracker.on_step_end(iteration=number, trials=trials)


def test_a_run_does_not_wait_for_a_thread_that_asks_for_a_diagnosis(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked, answers, samples = threading.Event(), threading.Event(), []
    sample = GrowthTracking.sample

    def note(self: GrowthTracking, trials: int, *args: Any, **options: Any) -> Any:
        samples.append(trials)
        return sample(self, trials, *args, **options)

    def wait(self: GrowthTracking, trials: int, results: int, on_demand: bool = False) -> Diagnosis:
        asked.set()
        answers.wait()
        return Diagnosis(trials, results)

    monkeypatch.setattr(GrowthTracking, "sample", note)
    monkeypatch.setattr(GrowthTracking, "diagnose", wait)
    # Whether the budget allows a sample depends on the clock.
    monkeypatch.setattr(ObjectGrowthTracker, "_is_due", lambda self, state: True)
    tracker = ObjectGrowthTracker()
    trials = [SimpleNamespace(trial_id=str(n), status="PENDING") for n in range(20)]
    tracker.setup()
    tracker.on_step_begin(iteration=0, trials=trials)
    finish(tracker, trials, range(10))
    assert samples == [*range(1, 11)]
    thread = threading.Thread(target=tracker.diagnosis)
    thread.start()
    asked.wait()
    finish(tracker, trials, range(10, 15))
    answers.set()
    thread.join()
    finish(tracker, trials, range(15, 20))
    assert samples == [*range(1, 11), *range(16, 21)]


def test_a_run_that_finished_no_trial_is_not_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    samples: list[int] = []
    monkeypatch.setattr(GrowthTracking, "sample", lambda *_, **__: samples.append(1))
    tracker = ObjectGrowthTracker()
    trials: list[Any] = [SimpleNamespace(trial_id=str(n), status="TERMINATED") for n in range(300)]
    tracker.setup()
    # As Ray calls it for a resumed run with nothing left to do.
    tracker.on_experiment_end(trials=trials)
    assert samples == []


def test_without_a_sweep_there_is_no_diagnosis() -> None:
    tracker = ObjectGrowthTracker()
    tracker.sample()
    with pytest.raises(RuntimeError, match="has not measured anything yet"):
        tracker.diagnosis()


class _RunEndsNow:
    """A lock that the end of the run has held until now."""

    def __init__(self, end: Any) -> None:
        self._end = end

    def __enter__(self) -> None:
        self._end()

    def __exit__(self, *error: object) -> None: ...


def test_a_thread_that_asks_while_the_run_ends_gets_the_last_diagnosis() -> None:
    tracker: Any = ObjectGrowthTracker()
    state = SimpleNamespace(tracking=object(), diagnosis=None, last_trials=0)

    def end() -> None:
        state.tracking, state.diagnosis = None, "the last one"

    state.lock = _RunEndsNow(end)
    tracker._state, tracker.active = state, True
    assert tracker.diagnosis() == "the last one"
