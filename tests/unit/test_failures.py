"""Which trial has which process, as the driver knows it without waiting."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from ray_tune_memguard.adapter.run.failures import trials_by_pid


class FakeTrial:
    def __init__(self, trial_id: str, **last_result: object) -> None:
        self.trial_id = trial_id
        self.temporary_state = SimpleNamespace(ray_actor=None)
        self.run_metadata = SimpleNamespace(last_result=last_result)

    @property
    def last_result(self) -> dict[str, object]:
        raise AssertionError("Ray waits for the process of a trial that has not reported.")

    def __str__(self) -> str:
        return f"train_{self.trial_id}"


def test_trials_that_have_not_reported_are_not_waited_for() -> None:
    trials = FakeTrial("a", pid=7), FakeTrial("b")
    controller: Any = SimpleNamespace(_trial_to_actor=dict.fromkeys(trials))
    assert trials_by_pid(controller, None, asks_ray=True) == {7: ("a", "train_a")}
