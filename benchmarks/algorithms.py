"""Searchers and schedulers for the sweeps, each with a seed."""

from __future__ import annotations

from typing import Any

from ray.tune.schedulers import ASHAScheduler, PopulationBasedTraining
from ray.tune.search import BasicVariantGenerator, ConcurrencyLimiter

from benchmarks.problem import METRIC, MODE, search_space

ALGORITHMS = ("random", "optuna", "asha", "pbt")
_CONCURRENT = 4


def make_algorithm(name: str, seed: int) -> dict[str, Any]:
    """Return the arguments of ``TuneConfig`` that choose it."""
    if name == "optuna":
        from ray.tune.search.optuna import OptunaSearch

        search = OptunaSearch(search_space(), metric=METRIC, mode=MODE, seed=seed)
        # With more trials at the same time than can run, what it suggests depends on the clock.
        return {"search_alg": ConcurrencyLimiter(search, max_concurrent=_CONCURRENT)}
    arguments: dict[str, Any] = {"search_alg": BasicVariantGenerator(random_state=seed)}
    if name == "asha":
        arguments["scheduler"] = ASHAScheduler(max_t=8, grace_period=1, reduction_factor=2)
    elif name == "pbt":
        arguments["scheduler"] = PopulationBasedTraining(
            perturbation_interval=2, hyperparam_mutations={"lr": [1e-4, 1e-3, 1e-2]}
        )
    return arguments
