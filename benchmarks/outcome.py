"""What a sweep returned, in a form that two runs with the same seed can be compared by.

Times, process ids, dates and the random part of trial ids differ from run to run and stay out.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from ray.tune import ResultGrid

from benchmarks.problem import METRIC

SEEDED_COLUMNS = (METRIC, "training_iteration", "config/x", "config/lr", "config/layers")
RESULTS_READ_SINGLY = 100


def _digest(rows: list[Any]) -> str:
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


def _trial_number(trial_id: str) -> str:
    """Return the counter of a trial id such as ``ab12f_00017``; the rest is random.

    A searcher's trials have random ids without one.
    """
    return trial_id.rpartition("_")[2] if "_" in trial_id else ""


def _describe_best(grid: ResultGrid) -> dict[str, Any]:
    try:
        best = grid.get_best_result()
    except (RuntimeError, IndexError) as error:
        return {"error": str(error)}
    return {
        "trial": _trial_number(best.metrics["trial_id"]),
        "config": best.config,
        METRIC: best.metrics[METRIC],
        "metrics": sorted(best.metrics),
    }


def _describe_dataframe(grid: ResultGrid) -> dict[str, Any]:
    """Describe the rows in the order they come, and every column with its type."""
    frame = grid.get_dataframe()
    seeded = frame[[column for column in SEEDED_COLUMNS if column in frame]]
    rows = seeded.astype(object).values.tolist()
    if "trial_id" in frame:
        rows = [[_trial_number(i), *row] for i, row in zip(frame["trial_id"], rows, strict=True)]
    return {
        "rows": len(frame),
        "columns": {name: str(dtype) for name, dtype in frame.dtypes.items()},
        "sha256": _digest(rows),
        "sha256_in_any_order": _digest(sorted(rows, key=repr)),
    }


def _describe_singly(grid: ResultGrid) -> dict[str, Any]:
    """Describe some results, spread over the sweep, each taken from the grid by its index."""
    step = max(1, len(grid) // RESULTS_READ_SINGLY)
    rows = []
    histories = 0
    for index in range(0, len(grid), step):
        result = grid[index]
        history = result.metrics_dataframe
        reports = None if history is None else len(history)
        histories += bool(reports)
        rows.append([index, result.config, result.metrics[METRIC], reports, str(result.error)])
    return {"read": len(rows), "histories": histories, "sha256": _digest(rows)}


def describe(grid: ResultGrid) -> dict[str, Any]:
    """Return everything by which the results of two runs are compared."""
    return {
        "len": len(grid),
        "errors": grid.num_errors,
        "best": _describe_best(grid),
        "dataframe": _describe_dataframe(grid),
        "results": _describe_singly(grid),
    }
