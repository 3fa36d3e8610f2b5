"""The sweep that every benchmark runs: three sampled parameters, one scalar, both deterministic.

The score depends on nothing but the configuration and the step, so two runs with the same seed must
give the same results, whoever keeps the books.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from ray import tune

METRIC = "score"
MODE = "max"


def search_space() -> dict[str, Any]:
    """Return the three sampled parameters of the reproduction."""
    return {
        "x": tune.uniform(-1.0, 1.0),
        "lr": tune.loguniform(1e-5, 1e-1),
        "layers": tune.choice([1, 2, 4, 8]),
    }


def score(config: dict[str, Any], step: int) -> float:
    """Return the metric of one step, a pure function of its arguments."""
    fit = (config["x"] - 0.3) ** 2 + (math.log10(config["lr"]) + 3.0) ** 2 / 10.0
    return config["layers"] / 100.0 - fit - 1.0 / step


def make_trainable(
    results_per_trial: int, payload_kb: int, carried_mb: int = 0
) -> Callable[[dict[str, Any]], None]:
    """Return a function trainable that reports ``results_per_trial`` times, then returns.

    ``payload_kb`` adds that many kilobytes (1,000 bytes each) to every report. From 100 KB on, Ray
    puts a result in the object store instead of in the driver's memory. ``carried_mb``: megabytes
    of data in the function's closure, as of a data set that was read beforehand.
    """
    carried = np.random.default_rng(0).bytes(carried_mb * 1_000_000)

    def trainable(config: dict[str, Any]) -> None:
        assert len(carried) == carried_mb * 1_000_000
        payload = {"payload": bytes(payload_kb * 1000)} if payload_kb else {}
        for step in range(1, results_per_trial + 1):
            tune.report({METRIC: score(config, step), **payload})

    return trainable
