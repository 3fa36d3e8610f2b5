"""Whoever still holds a spilled trial finds all that Ray alone would show, and may change it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray import tune

from ray_tune_memguard import MemGuard, open_experiment
from ray_tune_memguard.lazy.cache import MAX_ACTIVE_TRIALS, TrialCache
from ray_tune_memguard.lazy.ghost import is_ghost
from tests.integration import equality, sweeps
from tests.integration.equality import Both

# More than are loaded at a time, so that each is turned back while others are read.
TRIALS = MAX_ACTIVE_TRIALS + 8


class Keeper(tune.Callback):
    """A third party that keeps every trial, and writes on each twice: when it completes, when the
    second one after it does."""

    def __init__(self) -> None:
        self.kept: list[Any] = []
        self.completed: list[Any] = []

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        self.kept.append(trial)

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        trial.own_note = ["completed"]
        trial.own_mark = "to be deleted"
        self.completed.append(trial)
        if len(self.completed) > 2:
            earlier = self.completed[-3]
            earlier.own_note.append("two later")
            earlier.config["own"] = len(self.completed)

    def read(self) -> list[dict[str, Any]]:
        return [equality.trial_answers(trial) for trial in self.kept]


def change(keeper: Keeper, grid: tune.ResultGrid) -> None:
    """Change every trial after the sweep, in each way there is, reading all others in between."""
    for number, trial in enumerate(keeper.kept):
        trial.own_number = number
        trial.own_note.append({"number": number})
        trial.config["late"] = {"number": number}
        trial.last_result["late"] = number
        trial.evaluated_params["late"] = (number,)
        trial.experiment_tag = f"tag {number}"
        trial.custom_trial_name = f"name {number}"
        del trial.own_mark
    assert sum(len(trial.config) for trial in grid._experiment_analysis.trials) > TRIALS


Held = tuple[list[Keeper], Both]


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Held:
    keepers, grids = [Keeper(), Keeper()], []
    for keeper, guards in zip(keepers, ([], [MemGuard()]), strict=True):
        storage: Path = tmp_path_factory.mktemp("results")
        callbacks = [keeper, *guards]
        grids.append(
            sweeps.fit(sweeps.one_report, storage, callbacks, samples=TRIALS, concurrent=1)
        )
    return keepers, Both(*grids)


@pytest.mark.slow
def test_held_trials_read_and_change_as_with_ray_alone(held: Held) -> None:
    (plain, guarded), both = held
    assert equality.was_guarded(both.guarded)
    assert all(is_ghost(trial) for trial in guarded.kept[:8])
    assert len(guarded.kept) == TRIALS

    expected = plain.read()
    assert all("own_note" in answers for answers in expected)
    for found, wanted in zip(guarded.read(), expected, strict=True):
        assert equality.differences(found, wanted) == {}

    change(plain, both.plain)
    change(guarded, both.guarded)
    expected = plain.read()
    assert expected[0] != expected[1]
    for _ in range(2):
        for found, wanted in zip(guarded.read(), expected, strict=True):
            assert equality.differences(found, wanted) == {}
    equality.check_trials(both)


def test_results_show_the_trials_as_they_were_when_fit_returned(held: Held) -> None:
    """Ray alone builds all results when `fit()` returns; MemGuard when they are asked for."""
    _, both = held
    expected = [answers_of_results(grid) for grid in both]
    assert equality.differences(expected[1], expected[0]) == {}
    for grid in both:
        trials = grid._experiment_analysis.trials
        for trial in trials[3:7]:
            change_what_results_are_made_of(trial)
        # All others are read in between, so the changed ones do not stay in memory.
        assert [trial.config for trial in trials]
        assert trials[3].last_result["changed"] is True
    for grid, before in zip(both, expected, strict=True):
        assert equality.differences(answers_of_results(grid), before) == {}
    # What Ray makes of the trials anew shows the change.
    again = [answers_of_results(tune.ResultGrid(grid._experiment_analysis)) for grid in both]
    assert equality.differences(again[1], again[0]) == {}
    assert again[0] != expected[0]
    best = [equality.normal(grid.get_best_result("changed", "max").metrics) for grid in both]
    assert best[1] == best[0]
    check_dataframes = [equality.normal(grid.get_dataframe()) for grid in both]
    assert check_dataframes[1] == check_dataframes[0]


def answers_of_results(grid: tune.ResultGrid) -> list[dict[str, Any]]:
    return [
        {
            "config": equality.normal(result.config),
            "metrics": equality.normal(result.metrics),
            "checkpoint": equality.normal(result.checkpoint),
            "error": equality.normal(result.error),
            "path": equality.normal(result.path),
            "rows": len(result.metrics_dataframe),
        }
        for result in grid
    ]


def change_what_results_are_made_of(trial: Any) -> None:
    # What RLlib's example runner does, among others.
    trial.last_result.pop("config")
    trial.last_result["changed"] = True
    trial.metric_analysis["changed"] = dict.fromkeys(trial.metric_analysis["score"], 1.0)
    trial.storage.trial_dir_name = "elsewhere"
    trial.config["changed"] = True


@pytest.mark.latest_only
def test_the_best_result_of_an_opened_experiment_is_found_without_reading_all_trials(
    held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, both = held
    grids = [open_experiment(grid.experiment_path) for grid in both]
    read: list[str] = []
    load = TrialCache._state

    def count(self: TrialCache[Any], trial_id: str, version: int) -> dict[str, object]:
        read.append(trial_id)
        return load(self, trial_id, version)

    monkeypatch.setattr(TrialCache, "_state", count)
    for grid in grids:
        for mode in ("max", "min"):
            read.clear()
            assert grid.get_best_result("score", mode).metrics
            assert len(set(read)) <= 1
