"""Several parts override methods of one controller, and each can be taken away alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from ray.exceptions import RayActorError

from ray_tune_memguard.adapter.run.controller import add_methods
from ray_tune_memguard.adapter.run.failures import observe_failures
from ray_tune_memguard.adapter.run.stops import observe_stops


class Plain:
    def __init__(self) -> None:
        self.handled: list[str] = []

    def _process_trial_failure(self, trial: Any, exception: Exception) -> None:
        self.handled.append(str(exception))
        trial.status = "ERROR"

    def name(self) -> str:
        return "plain"


class Observer:
    def __init__(self) -> None:
        self.after: list[bool] = []

    def before_failure(self, trial: Any, exception: Exception, actor_id: str | None) -> str | None:
        self.actor_id = actor_id
        return f"seen {trial.status}"

    def after_failure(self, trial: Any, is_retried: bool) -> None:
        self.after.append(is_retried)


def make_trial() -> Any:
    actor = SimpleNamespace(_actor_id=bytes.fromhex("abcd"))
    state = SimpleNamespace(ray_actor=actor)
    return SimpleNamespace(status="RUNNING", trial_id="t", temporary_state=state)


def layer(controller: Any, **methods: object) -> Any:
    return add_methods(controller, methods)


def test_layers_are_taken_away_in_any_order() -> None:
    for order in ((0, 1), (1, 0)):
        controller: Any = Plain()
        take_away = [
            layer(controller, first=lambda self: 1),
            layer(controller, name=lambda self: ""),
        ]
        assert (controller.first(), controller.name()) == (1, "")
        take_away[order[0]](controller)
        assert hasattr(controller, "first") == (order[0] == 1)
        assert controller.name() == ("plain" if order[0] == 1 else "")
        take_away[order[1]](controller)
        assert type(controller) is Plain
        take_away[order[1]](controller)
        assert type(controller) is Plain


def test_an_observer_is_told_before_and_after_ray_and_stays_when_another_layer_goes() -> None:
    controller: Any = Plain()
    take_away = layer(controller, name=lambda self: "spilling")
    observer = Observer()
    observe_failures(controller, observer)
    take_away(controller)
    assert controller.name() == "plain"
    trial = make_trial()
    controller._process_trial_failure(trial, exception=RayActorError(error_msg="It died.\n"))
    assert controller.handled == ["It died.\n\nseen RUNNING"]
    assert observer.after == [False]
    assert observer.actor_id == "abcd"
    controller._process_trial_failure(trial, RayActorError("dead"))
    assert observer.actor_id == "dead"


def test_an_error_of_the_observer_is_not_the_runs() -> None:
    class Broken(Observer):
        def before_failure(
            self, trial: Any, exception: Exception, actor_id: str | None
        ) -> str | None:
            raise RuntimeError("ours")

        def after_failure(self, trial: Any, is_retried: bool) -> None:
            raise RuntimeError("ours, too")

    controller: Any = Plain()
    observe_failures(controller, Broken())
    trial = make_trial()
    controller._process_trial_failure(trial, RayActorError(error_msg="It died."))
    assert controller.handled == ["It died."]


def test_an_observer_of_stops_is_told_before_ray_and_its_errors_stop_nothing() -> None:
    told: list[object] = []

    class Stopping(Plain):
        def _schedule_trial_stop(self, trial: Any, exception: Exception | None = None) -> None:
            told.append(("Ray", trial, exception))

    class StopObserver:
        def before_stop(self, trial: Any, is_failure: bool) -> None:
            told.append((trial, is_failure))
            if trial == "t2":
                raise RuntimeError("planned")

    controller: Any = Stopping()
    observe_stops(controller, StopObserver())
    error = RuntimeError("of the trial")
    controller._schedule_trial_stop("t1")
    controller._schedule_trial_stop("t2", exception=error)
    assert told == [("t1", False), ("Ray", "t1", None), ("t2", True), ("Ray", "t2", error)]
