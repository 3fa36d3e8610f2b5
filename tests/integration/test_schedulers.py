"""A user's own scheduler costs what it costs with Ray alone: Ray's loops skip finished trials."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from ray_tune_memguard import MemGuard
from ray_tune_memguard.lazy.trial_list import SpilledTrials
from tests.integration import sweeps

TRIALS = 12


class Subclassed(FIFOScheduler):
    """Extends one of Ray's schedulers."""

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        return super().choose_trial_to_run(tune_controller)


class Wrapping(TrialScheduler):
    """Holds one of Ray's schedulers and passes each call on."""

    def __init__(self) -> None:
        self.inner = FIFOScheduler()

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        return True

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        self.inner.on_trial_add(tune_controller, trial)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        self.inner.on_trial_error(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        return self.inner.on_trial_result(tune_controller, trial, result)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        self.inner.on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        self.inner.on_trial_remove(tune_controller, trial)

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        return self.inner.choose_trial_to_run(tune_controller)

    def debug_string(self) -> str:
        return self.inner.debug_string()


class Delegating(FIFOScheduler):
    """Hands out another scheduler's methods as its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = FIFOScheduler()

    choose_trial_to_run = property(lambda self: self.inner.choose_trial_to_run)


class LooksItself(FIFOScheduler):
    """Looks at all trials by its own code before it asks Ray's."""

    def __init__(self) -> None:
        super().__init__()
        self.most_seen = 0

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        seen = [trial.status for trial in tune_controller.get_trials()]
        assert len(seen) == len(tune_controller.get_trials())
        self.most_seen = max(self.most_seen, len(seen))
        return super().choose_trial_to_run(tune_controller)


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The finished trials that were handed out by walking over the list of all trials."""
    handed_out: list[str] = []
    original = SpilledTrials.__iter__

    def walk(trials: SpilledTrials) -> Iterator[Any]:
        for trial in original(trials):
            if trial.is_finished():
                handed_out.append(trial.trial_id)
            yield trial

    monkeypatch.setattr(SpilledTrials, "__iter__", walk)
    return handed_out


def fit_with(scheduler: Any, storage: Path, walks: list[str]) -> int:
    """How many finished trials were handed out while the sweep ran."""
    during: list[int] = []

    class Counts(tune.Callback):
        def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
            during.append(len(walks))

    grid = sweeps.fit(
        sweeps.one_report,
        storage,
        [MemGuard(), Counts()],
        samples=TRIALS,
        tune_config={"scheduler": scheduler},
    )
    assert isinstance(grid._experiment_analysis.trials, SpilledTrials)
    assert len(grid) == TRIALS
    return during[-1]


@pytest.mark.slow
@pytest.mark.parametrize("make_scheduler", [FIFOScheduler, Subclassed, Wrapping, Delegating])
def test_rays_choice_of_the_next_trial_passes_over_finished_ones(
    make_scheduler: Any, storage: Path, walks: list[str]
) -> None:
    assert fit_with(make_scheduler(), storage, walks) == 0


def test_a_users_own_code_gets_all_trials(storage: Path, walks: list[str]) -> None:
    scheduler = LooksItself()
    assert fit_with(scheduler, storage, walks) > TRIALS
    assert scheduler.most_seen == TRIALS
