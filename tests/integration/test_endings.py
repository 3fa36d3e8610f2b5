"""However a sweep ends, it leaves what it leaves without MemGuard."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray import tune
from ray.tune.analysis import ExperimentAnalysis
from ray.tune.stopper import (
    CombinedStopper,
    ExperimentPlateauStopper,
    MaximumIterationStopper,
    TrialPlateauStopper,
)

from ray_tune_memguard import MemGuard
from tests.integration import equality, sweeps
from tests.integration.equality import Case
from tests.integration.own_process import said_by


class EnoughInAll(tune.Stopper):
    """A user's own: stops a trial by its score, and everything after so many results."""

    def __init__(self) -> None:
        self.results = 0

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        self.results += 1
        return result["training_iteration"] >= 3

    def stop_all(self) -> bool:
        return self.results >= 8


class Clock(tune.Callback):
    """Makes the time budget run out at the eighth result; a real clock would not be so exact."""

    def __init__(self, clock: SimpleNamespace) -> None:
        self.clock = clock
        self.results = 0

    def on_trial_result(self, **_: Any) -> None:
        self.results += 1
        if self.results == 8:
            self.clock.now += 3600

    def __reduce__(self) -> Any:
        return tune.Callback, ()


SOME_FAIL = {**sweeps.SPACE, "nested": {"c": tune.grid_search([0, 2, 1, 4, 6])}}

CASES = {
    "function": Case(
        sweeps.Stepwise,
        run_config={"stop": lambda trial_id, result: result["training_iteration"] >= 3},
        samples=3,
        concurrent=1,
    ),
    "two stoppers": Case(
        sweeps.Stepwise,
        run_config={
            "stop": partial(
                lambda: CombinedStopper(
                    MaximumIterationStopper(6),
                    TrialPlateauStopper("score", std=2.0, num_results=3, grace_period=3),
                )
            )
        },
        samples=3,
        concurrent=1,
    ),
    "plateau of the experiment": Case(
        sweeps.one_report,
        run_config={"stop": partial(ExperimentPlateauStopper, "score", std=9.0, top=2)},
        samples=6,
        concurrent=1,
    ),
    "own stopper": Case(
        sweeps.Stepwise, run_config={"stop": partial(EnoughInAll)}, samples=6, concurrent=1
    ),
    "time budget": Case(
        sweeps.Stepwise,
        {"time_budget_s": 60},
        {"stop": {"training_iteration": 3}},
        samples=6,
        concurrent=1,
    ),
    "fail fast": Case(
        sweeps.fails_sometimes,
        run_config={"failure_config": tune.FailureConfig(fail_fast=True)},
        space=SOME_FAIL,
        samples=1,
        concurrent=1,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_endings(
    name: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]
    if name == "time budget":
        clock = SimpleNamespace(now=1.0)
        clock.time = lambda: clock.now
        monkeypatch.setattr("ray.tune.stopper.timeout.time", clock)
        case.run_config["callbacks"] = partial(lambda: [Clock(clock)])
    both = equality.run_both(case, tmp_path_factory)
    # Trials that end with the experiment end after Ray's last checkpoint, and stay in memory.
    equality.assert_equal(both, leave_out=("nothing_stayed_in_memory",))
    if name not in ("function", "two stoppers"):
        assert len(both.plain) < 6 or both.plain[-1].metrics == {}


def test_an_experiment_that_is_saved_at_every_step(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray writes of a last result what it was when it was first saved, before it was `done`."""
    monkeypatch.setenv("TUNE_GLOBAL_CHECKPOINT_S", "0")
    case = Case(sweeps.three_reports, samples=3, concurrent=1)
    both = equality.run_both(case, tmp_path_factory)
    equality.assert_equal(both)
    assert both.plain[0].metrics["done"]
    plain, guarded = (
        [trial.last_result["done"] for trial in ExperimentAnalysis(grid.experiment_path).trials]
        for grid in both
    )
    assert guarded == plain == [False] * 3


# Endings that raise.


class Raises(tune.Callback):
    """A user's callback with one error, in one hook, when some trials are finished."""

    armed = True

    def __init__(self, hook: str) -> None:
        self.completed = 0
        self.hook = hook

    def on_trial_complete(self, **_: Any) -> None:
        self.completed += 1
        self.maybe_raise("on_trial_complete")

    def on_step_end(self, **_: Any) -> None:
        self.maybe_raise("on_step_end")

    def on_experiment_end(self, **_: Any) -> None:
        self.maybe_raise("on_experiment_end")

    def maybe_raise(self, hook: str) -> None:
        if Raises.armed and hook == self.hook and self.completed >= 3:
            Raises.armed = False
            raise RuntimeError(f"the user's own error in {hook}")


def takes_all(trainable: Any) -> Any:
    """Needs both cores: all trials are known from the start, and run one at a time."""
    return tune.with_resources(trainable, {"cpu": 2})


RAISING = {
    "fail fast, raise": Case(
        takes_all(sweeps.fails_sometimes),
        run_config={"failure_config": tune.FailureConfig(fail_fast="raise")},
        space=SOME_FAIL,
        samples=1,
    ),
    **{
        hook: Case(
            takes_all(sweeps.three_reports),
            run_config={"callbacks": partial(lambda hook=hook: [Raises(hook)])},
            samples=4,
        )
        for hook in ("on_trial_complete", "on_step_end", "on_experiment_end")
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RAISING)
def test_endings_that_raise(
    name: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = RAISING[name]
    # What is in the storage is that of the first upload; when there is another is up to the clock.
    monkeypatch.setenv("TUNE_GLOBAL_CHECKPOINT_S", "3600")
    left = []
    for guards in ([], [MemGuard()]):
        monkeypatch.setattr(Raises, "armed", True)
        storage = tmp_path_factory.mktemp("results")
        raised = None
        try:
            equality.run(case, storage, guards)
        except Exception as error:
            raised = error
        # Ray takes an error in one of its hooks for one of the trial.
        assert (raised is None) == (name == "on_trial_complete")
        assert bool(list(storage.glob("*/.memguard/*.sqlite"))) == bool(guards)
        monkeypatch.setattr(Raises, "armed", False)
        left.append(
            {
                "raised": (type(raised).__name__, sweeps.error_text(raised)),
                **equality.what_restore_gives(storage / "sweep", case.trainable),
            }
        )
    plain, guarded = left
    assert len(plain["opened"]) >= 4
    # Ray saves nothing more when it ends so; the trial store has what finished in the meantime.
    for trial_id in finished_only_in(guarded["opened"], plain["opened"]):
        for view in ("opened", "restored", "resumed"):
            # A sweep that is resumed may raise again, and then has no results.
            ours = guarded[view].pop(trial_id, None)
            theirs = plain[view].pop(trial_id, None)
        assert ours is None or ours[0] == theirs[0] == "TERMINATED"
    # The first look at a waiting trial's last result leaves its id there; whether that came before
    # the save is up to the clock.
    for trial in (*plain["opened"].values(), *guarded["opened"].values()):
        if not trial["is_finished"]:
            for name in ("has_reported_at_least_once", "last_result", "run_metadata"):
                trial.pop(name, None)
    assert equality.differences(guarded, plain) == {}


def finished_only_in(here: dict[str, Any], there: dict[str, Any]) -> list[str]:
    return [
        trial_id
        for trial_id, trial in here.items()
        if trial["is_finished"] and not (trial_id in there and there[trial_id]["is_finished"])
    ]


# Endings from outside.


def test_endings_by_signal(tmp_path: Path) -> None:
    """Ray stops the sweep in good order at either signal, and it can be resumed."""
    address = ray.get_runtime_context().gcs_address
    left = said_by(["tests.integration.interrupted", address, str(tmp_path)])
    for signal in ("SIGINT", "SIGUSR1"):
        plain, guarded = left[f"{signal} plain"], left[f"{signal} guarded"]
        assert guarded.pop("guarded")
        assert not plain.pop("guarded")
        assert equality.differences(guarded, plain) == {}
        assert len(plain["ended"]) < 5 <= len(plain["resumed"])
