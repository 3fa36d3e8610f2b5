"""A sweep with MemGuard gives what the same sweep gives without it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from ray import cloudpickle, tune
from ray.air.result import Result
from ray.tune import ResultGrid
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule
from ray.tune.search import ConcurrencyLimiter, Searcher

from ray_tune_memguard import MemGuard
from ray_tune_memguard.spill.trials import SpilledTrials
from tests.integration import sweeps


class Dealt(Searcher):
    """A user's own searcher: hands out fixed configs and remembers what came back."""

    def __init__(self) -> None:
        super().__init__(metric="score", mode="max")
        self.dealt = 0
        self.completed: list[str] = []

    def suggest(self, trial_id: str) -> Any:
        if self.dealt >= 6:
            return Searcher.FINISHED
        self.dealt += 1
        return {"a": self.dealt / 10, "b": 0.1, "layers": (8,), "nested": {"c": self.dealt}}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        self.completed.append(trial_id)

    def save(self, checkpoint_path: str) -> None:
        pass

    def restore(self, checkpoint_path: str) -> None:
        pass


class OwnFifo(FIFOScheduler):
    """A user's scheduler that looks at all trials, finished ones too."""

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        trials = tune_controller.get_trials()
        assert len(trials) == len(list(trials))
        waiting = [trial for trial in trials if trial.status == "PENDING"]
        return waiting[0] if waiting else None


class MarksResults(tune.Callback):
    def on_trial_result(
        self, iteration: int, trials: Any, trial: Any, result: Any, **_: Any
    ) -> None:
        result["marked"] = len(result)


@dataclass
class Case:
    trainable: Any
    tune_config: dict[str, Any] = field(default_factory=dict)
    run_config: dict[str, Any] = field(default_factory=dict)
    space: dict[str, Any] | None = None
    samples: int = 8
    concurrent: int = 0


CASES = {
    "one report": Case(sweeps.one_report),
    "one trial": Case(sweeps.one_report, samples=1),
    "three reports": Case(sweeps.three_reports),
    "fresh actors": Case(sweeps.one_report, {"reuse_actors": False}, samples=4),
    "grid": Case(
        sweeps.one_report,
        space={**sweeps.SPACE, "a": tune.grid_search([0.1, 0.2, 0.3])},
        samples=2,
    ),
    "some fail": Case(sweeps.fails_sometimes, samples=6),
    "fail, then succeed": Case(
        sweeps.fails_first_time,
        run_config={"failure_config": tune.FailureConfig(max_failures=1)},
        samples=4,
        # Ray moves what it tries again to the end of its list: of two at once either may be first.
        concurrent=1,
    ),
    "actors die": Case(sweeps.dies, samples=5),
    "never report": Case(sweeps.never_reports, {"metric": None, "mode": None}, samples=4),
    "checkpoints": Case(
        sweeps.with_checkpoints,
        run_config={
            "checkpoint_config": tune.CheckpointConfig(
                num_to_keep=2, checkpoint_score_attribute="score"
            )
        },
        samples=4,
    ),
    "class": Case(sweeps.Stepwise, run_config={"stop": {"training_iteration": 3}}, samples=4),
    "lambda names": Case(
        sweeps.one_report,
        {
            "trial_name_creator": lambda trial: f"trial-{trial.trial_id}",
            "trial_dirname_creator": lambda trial: f"dir-{trial.trial_id}",
        },
    ),
    "asha, one at a time": Case(
        sweeps.three_reports,
        {
            "scheduler": AsyncHyperBandScheduler(max_t=3, grace_period=1),
            "max_concurrent_trials": 1,
            "search_alg": None,
        },
        space={**sweeps.SPACE, "a": 0.5, "b": 0.5, "nested": {"c": 3}, "layers": (8,)},
    ),
    "median stopping": Case(
        sweeps.three_reports,
        {"scheduler": MedianStoppingRule(grace_period=10)},
    ),
    "own scheduler": Case(sweeps.one_report, {"scheduler": OwnFifo()}),
    "own searcher": Case(sweeps.one_report, {"search_alg": Dealt()}, space={}, samples=6),
    "limited searcher": Case(
        sweeps.one_report,
        {"search_alg": ConcurrencyLimiter(Dealt(), max_concurrent=2)},
        space={},
        samples=6,
    ),
    "callback changes results": Case(sweeps.one_report, run_config={"callbacks": [MarksResults()]}),
}


@pytest.fixture(scope="module", params=CASES, ids=lambda name: name.replace(" ", "-"))
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[ResultGrid, ResultGrid]:
    """The grid of Ray alone, and that with MemGuard."""
    case = CASES[request.param]
    grids = []
    for guards in ([], [MemGuard()]):
        run_config = dict(case.run_config)
        callbacks = [*guards, *run_config.pop("callbacks", [])]
        tune_config = dict(case.tune_config)
        for key in ("scheduler", "search_alg"):
            if tune_config.get(key) is not None:
                tune_config[key] = cloudpickle.loads(cloudpickle.dumps(tune_config[key]))
        if tune_config.get("search_alg", 0) is None:
            del tune_config["search_alg"]
        grids.append(
            sweeps.fit(
                case.trainable,
                tmp_path_factory.mktemp("results"),
                callbacks,
                samples=case.samples,
                concurrent=case.concurrent,
                space=case.space,
                tune_config=tune_config,
                run_config=run_config,
            )
        )
    plain, guarded = grids
    assert isinstance(guarded._experiment_analysis.trials, SpilledTrials), "nothing was guarded"
    return plain, guarded


Both = tuple[ResultGrid, ResultGrid]


def test_every_trial_was_spilled(both: Both) -> None:
    trials = both[1]._experiment_analysis.trials
    assert trials.resident() == []
    assert len(trials) > 0


def test_results_one_by_one(both: Both) -> None:
    plain, guarded = both
    assert len(guarded) == len(plain)
    for expected, result in zip(plain, guarded, strict=True):
        assert type(result) is Result
        assert sweeps.stable(result.metrics) == sweeps.stable(expected.metrics)
        assert result.config == expected.config
        assert Path(result.path).name.split("_20")[0] == Path(expected.path).name.split("_20")[0]
        assert sweeps.error_text(result.error) == sweeps.error_text(expected.error)
        assert type(result.error).__name__ == type(expected.error).__name__
        assert (result.checkpoint is None) == (expected.checkpoint is None)
        if result.checkpoint is not None:
            assert Path(result.checkpoint.path).name == Path(expected.checkpoint.path).name
            assert list(Path(result.checkpoint.path).iterdir())
        assert len(result.best_checkpoints) == len(expected.best_checkpoints)
        for (_, metrics), (_, wanted) in zip(
            result.best_checkpoints, expected.best_checkpoints, strict=True
        ):
            assert sweeps.stable(metrics) == sweeps.stable(wanted)
        pd.testing.assert_frame_equal(
            sweeps.stable_frame(result.metrics_dataframe),
            sweeps.stable_frame(expected.metrics_dataframe),
        )


def test_grid_as_a_sequence(both: Both) -> None:
    plain, guarded = both
    assert [r.config for r in guarded[1:3]] == [r.config for r in plain[1:3]]
    assert guarded[-1].config == plain[-1].config
    assert guarded[0] is guarded[0] or guarded[0].config == plain[0].config
    assert sweeps.raised(lambda: guarded[len(plain)]) == sweeps.raised(lambda: plain[len(plain)])
    assert guarded.num_errors == plain.num_errors
    assert guarded.num_terminated == plain.num_terminated
    assert len(guarded.errors) == len(plain.errors)


@pytest.mark.parametrize("scope", ["last", "all", "avg", "last-5-avg", "last-10-avg"])
@pytest.mark.parametrize("metric", ["score", "info/loss", "info/nan", "missing"])
def test_best_result(both: Both, scope: str, metric: str) -> None:
    plain, guarded = (
        sweeps.raised(
            lambda grid=grid: sweeps.stable(
                grid.get_best_result(metric=metric, mode="min", scope=scope).metrics
            )
        )
        for grid in both
    )
    assert guarded == plain


@pytest.mark.parametrize("filters", [(None, None), ("score", "max"), ("info/loss", "min")])
def test_dataframe(both: Both, filters: tuple[str | None, str | None]) -> None:
    plain, guarded = (sweeps.stable_frame(grid.get_dataframe(*filters)) for grid in both)
    pd.testing.assert_frame_equal(guarded, plain)


def test_analysis(both: Both) -> None:
    plain, guarded = (grid._experiment_analysis for grid in both)
    assert guarded.get_all_configs() == plain.get_all_configs()
    assert guarded.get_all_configs(prefix=True) == plain.get_all_configs(prefix=True)
    assert type(guarded.get_all_configs()) is dict
    assert guarded.trial_dataframes.keys() == plain.trial_dataframes.keys()
    assert {k: sweeps.stable(v) for k, v in guarded.results.items()} == {
        k: sweeps.stable(v) for k, v in plain.results.items()
    }
    for attribute in ("best_trial", "best_config", "best_checkpoint", "best_dataframe"):
        found, expected = (
            sweeps.raised(lambda a=analysis: getattr(a, attribute))  # noqa: B023
            for analysis in (guarded, plain)
        )
        assert type(found) is type(expected), attribute
    assert sweeps.raised(lambda: guarded.best_config) == sweeps.raised(lambda: plain.best_config)


def test_trials_read_like_rays(both: Both) -> None:
    plain, guarded = (grid._experiment_analysis.trials for grid in both)
    for expected, trial in zip(plain, guarded, strict=True):
        assert str(trial) == str(expected)
        assert repr(trial) == repr(expected)
        for name in (
            "trial_id",
            "status",
            "config",
            "evaluated_params",
            "experiment_tag",
            "trainable_name",
            "stopping_criterion",
            "max_failures",
            "num_failures",
            "is_restoring",
            "is_saving",
            "node_ip",
            "checkpoint_at_end",
            "checkpoint_freq",
            "experiment_dir_name",
            "custom_trial_name",
            "custom_dirname",
            "has_reported_at_least_once",
        ):
            assert getattr(trial, name) == getattr(expected, name), name
        assert set(vars(trial)) == set(vars(expected))
        assert trial.metric_analysis.keys() == expected.metric_analysis.keys()
        assert type(trial) is type(expected)


def test_pickles_open_as_plain_ray(both: Both) -> None:
    plain, guarded = both
    again = cloudpickle.loads(cloudpickle.dumps(guarded))
    assert type(again._experiment_analysis.trials) is list
    assert [sweeps.stable(r.metrics) for r in again] == [sweeps.stable(r.metrics) for r in plain]
    assert b"ray_tune_memguard" not in cloudpickle.dumps(guarded)


def test_files(both: Both) -> None:
    plain, guarded = (
        # A set: a retried trial has one event file or two, as the clock will have it.
        {
            (path.parent.name.split("_20")[0], path.name.split(".")[0])
            for path in Path(grid.experiment_path).glob("*/**/*")
            if path.is_file() and path.relative_to(grid.experiment_path).parts[0] != "memguard"
        }
        for grid in both
    )
    assert guarded == plain
