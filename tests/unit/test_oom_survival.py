"""A kill by Ray's memory monitor is the death of the trial's actor, and nothing else is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError
from ray.tune.experiment import Trial

import ray_tune_memguard  # noqa: F401 (wraps a method of trials)
from ray_tune_memguard.adapter.run.actor_manager import tolerate_out_of_memory

KILLED = "1 worker(s) were killed due to the node running low on memory."


class FakeManager:
    """Remembers what the methods of Ray's actor manager get."""

    def __init__(self) -> None:
        self.got: list[Exception] = []

    def _actor_task_failed(self, tracked_actor_task: Any, exception: Exception) -> None:
        self.got.append(exception)

    def _actor_start_failed(self, tracked_actor: Any, exception: Exception) -> None:
        self.got.append(exception)


@pytest.fixture
def manager() -> Any:
    found = FakeManager()
    controller: Any = SimpleNamespace(_actor_manager=found)
    tolerate_out_of_memory(controller)
    return found


def test_a_kill_by_the_monitor_is_the_death_of_the_actor(manager: Any) -> None:
    manager._actor_task_failed(SimpleNamespace(), OutOfMemoryError(KILLED))
    manager._actor_start_failed(tracked_actor=None, exception=OutOfMemoryError(KILLED))
    assert [type(error) for error in manager.got] == [RayActorError, RayActorError]
    assert all(KILLED in str(error) for error in manager.got)


def test_a_trial_whose_own_code_raises_it_lives(manager: Any) -> None:
    # As when it gets the result of an actor of its own that the monitor has killed.
    raised = RayTaskError("train", "Traceback\n" + KILLED, OutOfMemoryError(KILLED))
    error = raised.as_instanceof_cause()
    assert isinstance(error, OutOfMemoryError)
    manager._actor_task_failed(SimpleNamespace(), error)
    assert manager.got == [error]


def test_a_trial_that_was_killed_before_its_first_result_has_a_last_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def get(_reference: object) -> object:
        raise OutOfMemoryError(KILLED)

    monkeypatch.setattr(ray, "get", get)
    trial = Trial("trains", stub=True, trial_id="1")
    trial._default_result_or_future = ray.ObjectRef.from_random()
    assert trial.last_result == {"trial_id": "1"}
    assert trial._default_result_or_future is None
