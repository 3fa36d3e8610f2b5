"""Trials that can be pickled and not read back."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from ray import tune

from ray_tune_memguard import MemGuard


def report(config: dict[str, Any]) -> None:
    tune.report({"score": (config["x"] - 3) ** 2})


class TwoArguments(Exception):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")


class Explains(tune.Callback):
    """A user's: it notes on the trial why it is not good."""

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        if trial.config["x"] in (0, 3):
            trial.why = TwoArguments(3, "diverged")


def test_a_trial_that_cannot_be_read_back_is_whole(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fit(name: str, callbacks: list[Any]) -> Any:
        return tune.Tuner(
            report,
            param_space={"x": tune.grid_search(list(range(6)))},
            tune_config=tune.TuneConfig(metric="score", mode="min", max_concurrent_trials=1),
            run_config=tune.RunConfig(
                name=name, storage_path=str(tmp_path), callbacks=[*callbacks, Explains()], verbose=1
            ),
        ).fit()

    with caplog.at_level(logging.WARNING, "ray_tune_memguard"):
        guarded = fit("guarded", [MemGuard()])
    alone = fit("alone", [])
    assert [result.metrics["score"] for result in guarded] == [
        result.metrics["score"] for result in alone
    ]
    assert guarded.get_best_result().config == alone.get_best_result().config
    kept = guarded._experiment_analysis.trials
    assert [str(trial.why) for trial in kept if hasattr(trial, "why")] == ["3: diverged"] * 2
    assert any("cannot be serialized" in record.getMessage() for record in caplog.records)
