"""A sweep with MemGuard gives what the same sweep gives without it: one row a case.

Where a scheduler or a searcher decides by what finished first, the case runs one trial at a time,
so that Ray alone gives the same twice.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from ray import tune
from ray.tune.analysis import ExperimentAnalysis
from ray.tune.logger import LoggerCallback
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    HyperBandForBOHB,
    HyperBandScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    ResourceChangingScheduler,
)
from ray.tune.search import ConcurrencyLimiter, Repeater, Searcher

from tests.integration import equality, sweeps
from tests.integration.equality import Both, Case


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

    def on_pause(self, trial_id: str) -> None:
        pass

    def on_unpause(self, trial_id: str) -> None:
        pass

    def save(self, checkpoint_path: str) -> None:
        pass

    def restore(self, checkpoint_path: str) -> None:
        pass


class Learns(Dealt):
    """Suggests what follows from the results so far, so it must be told all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0.0

    def suggest(self, trial_id: str) -> Any:
        config = super().suggest(trial_id)
        return {**config, "a": self.seen % 1} if isinstance(config, dict) else config

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self.seen += result["score"] / 7

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        self.seen += result["score"] / 3


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


def optuna_search() -> Any:
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    return ConcurrencyLimiter(OptunaSearch(sampler=optuna.samplers.TPESampler(seed=7)), 1)


def hyperopt_search() -> Any:
    from ray.tune.search.hyperopt import HyperOptSearch

    return ConcurrencyLimiter(HyperOptSearch(random_state_seed=7, n_initial_points=2), 1)


def bohb_search() -> Any:
    from ray.tune.search.bohb import TuneBOHB

    return TuneBOHB(seed=7)


def pb2() -> Any:
    from ray.tune.schedulers.pb2 import PB2

    return PB2(
        time_attr="training_iteration",
        perturbation_interval=2,
        quantile_fraction=0.5,
        hyperparam_bounds={"a": [0.0, 1.0], "b": [1e-4, 1.0]},
    )


def two_cpus_later(controller: Any, trial: Any, result: dict[str, Any], scheduler: Any) -> Any:
    """A second core for each trial after its first result."""
    cpus = 2 if result["training_iteration"] >= 1 else 1
    return tune.PlacementGroupFactory([{"CPU": cpus}])


def takes_all(trainable: Any) -> Any:
    """Needs both cores, so that trials take turns."""
    return tune.with_resources(trainable, {"cpu": 2})


def with_c(*values: int) -> dict[str, Any]:
    """The space with these values of `c`, which decides what fails."""
    return {**sweeps.SPACE, "nested": {"c": tune.grid_search(list(values))}}


def some_stopped_early(grid: tune.ResultGrid) -> bool:
    steps = {result.metrics["training_iteration"] for result in grid}
    return len(steps) > 1


def some_were_perturbed(grid: tune.ResultGrid) -> bool:
    trials = grid._experiment_analysis.trials
    return any(trial.config["a"] != trial.evaluated_params["a"] for trial in trials)


def all_grew(grid: tune.ResultGrid) -> bool:
    trials = grid._experiment_analysis.trials
    return all(t.placement_group_factory.required_resources == {"CPU": 2} for t in trials)


SIX_STEPS = {"stop": {"training_iteration": 6}}
NUMBERS = {
    "a": tune.uniform(0.0, 1.0),
    "b": tune.loguniform(1e-4, 1.0),
    "nested": {"c": tune.randint(0, 10)},
}
PBT = partial(
    PopulationBasedTraining,
    time_attr="training_iteration",
    perturbation_interval=2,
    quantile_fraction=0.5,
    hyperparam_mutations={"a": tune.uniform(0, 1)},
)

CASES = {
    # Trainables and how they end.
    "one report": Case(sweeps.one_report, samples=8),
    "one trial": Case(sweeps.one_report, samples=1),
    "three reports": Case(sweeps.three_reports, samples=8),
    "fresh actors": Case(sweeps.one_report, {"reuse_actors": False}, samples=2),
    "some fail": Case(sweeps.fails_sometimes, space=with_c(0, 1, 2, 4), samples=1),
    "fail, then succeed": Case(
        sweeps.fails_first_time,
        run_config={"failure_config": tune.FailureConfig(max_failures=1)},
        space=with_c(1, 0, 3),
        samples=1,
        # Ray moves what it tries again to the end of its list: of two at once either may be first.
        concurrent=1,
    ),
    "actors die": Case(sweeps.dies, space=with_c(1, 3, 2), samples=1),
    "never report": Case(sweeps.never_reports, {"metric": None, "mode": None}, concurrent=1),
    "checkpoints": Case(
        sweeps.with_checkpoints,
        run_config={
            "checkpoint_config": tune.CheckpointConfig(
                num_to_keep=2, checkpoint_score_attribute="score"
            )
        },
    ),
    "class": Case(sweeps.Stepwise, run_config={"stop": {"training_iteration": 3}}, concurrent=1),
    "class with checkpoints": Case(
        sweeps.Stepwise,
        run_config={
            "stop": {"training_iteration": 4},
            "checkpoint_config": tune.CheckpointConfig(
                num_to_keep=2, checkpoint_frequency=1, checkpoint_at_end=True
            ),
        },
        samples=3,
        concurrent=1,
    ),
    "parameters": Case(
        tune.with_parameters(sweeps.with_data, data={"offset": 100.0}), samples=3, concurrent=1
    ),
    "resources": Case(takes_all(sweeps.one_report), samples=3),
    "lambda names": Case(
        sweeps.one_report,
        {
            "trial_name_creator": lambda trial: f"trial-{trial.trial_id}",
            "trial_dirname_creator": lambda trial: f"dir-{trial.trial_id}",
        },
        concurrent=1,
    ),
    "callback changes results": Case(
        sweeps.one_report, run_config={"callbacks": partial(list, [MarksResults()])}, concurrent=1
    ),
    # Schedulers. The default one is FIFO.
    "asha": Case(
        sweeps.three_reports,
        {"scheduler": partial(AsyncHyperBandScheduler, max_t=3, grace_period=1)},
        samples=8,
        concurrent=1,
        shows=some_stopped_early,
    ),
    "hyperband": Case(
        takes_all(sweeps.Stepwise),
        {"scheduler": partial(HyperBandScheduler, max_t=4)},
        {"stop": {"training_iteration": 4}},
        samples=5,
        shows=some_stopped_early,
    ),
    "hyperband for bohb, own searcher": Case(
        takes_all(sweeps.Stepwise),
        {
            "scheduler": partial(HyperBandForBOHB, max_t=4),
            "search_alg": partial(Dealt),
        },
        {"stop": {"training_iteration": 4}},
        space={},
        samples=5,
        shows=some_stopped_early,
    ),
    "hyperband for bohb, bohb": Case(
        takes_all(sweeps.Stepwise),
        {"scheduler": partial(HyperBandForBOHB, max_t=4), "search_alg": partial(bohb_search)},
        {"stop": {"training_iteration": 4}},
        space=NUMBERS,
        samples=5,
        # There is no wheel of it, so it is not among what `make` installs.
        needs="hpbandster",
        shows=some_stopped_early,
    ),
    "median stopping": Case(
        sweeps.three_reports,
        {
            "scheduler": partial(
                MedianStoppingRule,
                time_attr="training_iteration",
                grace_period=1,
                min_samples_required=2,
            )
        },
        samples=6,
        concurrent=1,
        shows=some_stopped_early,
    ),
    "pbt": Case(
        takes_all(sweeps.Stepwise),
        {"scheduler": PBT},
        SIX_STEPS,
        samples=3,
        shows=some_were_perturbed,
    ),
    "pbt in step": Case(
        takes_all(sweeps.Stepwise),
        {"scheduler": partial(PBT, synch=True)},
        SIX_STEPS,
        samples=3,
        shows=some_were_perturbed,
    ),
    "pb2": Case(
        takes_all(sweeps.Stepwise),
        {"scheduler": partial(pb2)},
        SIX_STEPS,
        samples=3,
        needs="sklearn",
        shows=some_were_perturbed,
    ),
    "resources change": Case(
        sweeps.Stepwise,
        {
            "scheduler": partial(
                ResourceChangingScheduler, resources_allocation_function=two_cpus_later
            ),
            "reuse_actors": False,
        },
        {"stop": {"training_iteration": 3}},
        samples=1,
        concurrent=1,
        shows=all_grew,
    ),
    "own scheduler": Case(sweeps.one_report, {"scheduler": partial(OwnFifo)}, concurrent=1),
    # Searchers. The default one draws random samples.
    "grid": Case(
        sweeps.one_report,
        space={**sweeps.SPACE, "a": tune.grid_search([0.1, 0.2, 0.3])},
        samples=2,
        concurrent=1,
    ),
    "own searcher": Case(sweeps.one_report, {"search_alg": partial(Dealt)}, space={}, samples=6),
    "own searcher that learns": Case(
        sweeps.three_reports,
        {"search_alg": partial(lambda: ConcurrencyLimiter(Learns(), max_concurrent=1))},
        space={},
        samples=6,
    ),
    "limited searcher": Case(
        sweeps.one_report,
        {"search_alg": partial(lambda: ConcurrencyLimiter(Dealt(), max_concurrent=2))},
        space={},
        samples=6,
    ),
    "repeater": Case(
        sweeps.one_report,
        {"search_alg": partial(lambda: Repeater(Dealt(), repeat=2))},
        space={},
        samples=6,
    ),
    "optuna": Case(
        sweeps.one_report,
        {"search_alg": partial(optuna_search)},
        space=NUMBERS,
        samples=5,
        needs="optuna",
    ),
    "hyperopt": Case(
        sweeps.one_report,
        {"search_alg": partial(hyperopt_search)},
        space=NUMBERS,
        samples=5,
        needs="hyperopt",
    ),
}
#: Each takes as long as five others.
SLOW = {
    "pbt in step",
    "pb2",
    "resources change",
    "hyperband for bohb, own searcher",
    "median stopping",
    "hyperopt",
    "own searcher that learns",
    "limited searcher",
    "repeater",
}


def cases() -> list[Any]:
    return [
        pytest.param(
            name,
            id=name.replace(" ", "-"),
            marks=[pytest.mark.slow] if name in SLOW else [],
        )
        for name in CASES
    ]


@pytest.fixture(scope="module", params=cases())
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    with pytest.MonkeyPatch.context() as patch:
        # A trial that goes on after a pause gets its files from the storage, where they are those
        # of the last upload, whenever that was: Ray alone may lose lines by it.
        patch.setattr(LoggerCallback, "_restore_from_remote", lambda *_: None)
        return equality.run_both(CASES[request.param], tmp_path_factory)


@pytest.mark.parametrize("check", equality.CHECKS.values(), ids=equality.CHECKS)
def test_equal(both: Both, check: Callable[[Both], None]) -> None:
    check(both)


@pytest.mark.slow
def test_result_files_of_every_kind(tmp_path_factory: pytest.TempPathFactory) -> None:
    """DataFrames, last results and configs of an opened experiment, whatever its files are like."""
    both = equality.run_both(Case(sweeps.three_reports, samples=7), tmp_path_factory)
    answers = []
    for grid in both:
        paths = [Path(result.path) for result in grid]
        more = {**json.loads((paths[0] / "result.json").read_text().splitlines()[0]), "new": 2**70}
        with (paths[0] / "result.json").open("a") as file:
            file.write(json.dumps({**more, "score": math.inf, "": [2**70]}) + "\n")
        (paths[1] / "result.json").unlink()  # CSV only.
        for name in ("result.json", "progress.csv"):  # As without loggers.
            (paths[2] / name).unlink()
            (paths[3] / name).unlink()
        (paths[4] / "result.json").write_text("")
        (paths[5] / "result.json").write_text("not JSON\n")
        answers.append(frames_by_trial(ExperimentAnalysis(grid.experiment_path)))
    plain, guarded = answers
    assert plain.keys() == guarded.keys()
    for name, expected in plain.items():
        # Ray opens its own experiment in an order of chance, and the columns follow the rows.
        pd.testing.assert_frame_equal(guarded[name], expected, check_like=True, obj=name)


def frames_by_trial(analysis: ExperimentAnalysis) -> dict[str, pd.DataFrame]:
    """All DataFrames of an experiment, without what the clock decides."""
    found = {
        "last": analysis.dataframe().set_index("logdir"),
        "max": analysis.dataframe("score", "max").set_index("logdir"),
        "min": analysis.dataframe("info/loss", "min").set_index("logdir"),
        "results": analysis.results_df,
        "configs": pd.DataFrame(analysis.get_all_configs()).T,
        "flat configs": pd.DataFrame(analysis.get_all_configs(prefix=True)).T,
        **analysis.trial_dataframes,
    }
    return {name: sweeps.stable_frame(frame) for name, frame in found.items()}
