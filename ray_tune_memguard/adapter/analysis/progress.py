"""Console reports of Ray's on a list of spilled trials: each reads the few trials that it needs.

Each function here is called in place of one of Ray's, which it is given first (``patches``).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any

from ray_tune_memguard.lazy.progress import ProgressView
from ray_tune_memguard.lazy.trial_list import SpilledTrials
from ray_tune_memguard.notices import logger

Original = Callable[..., Any]


def trials_by_state(original: Original, trials: Any) -> Any:
    return trials.by_status() if isinstance(trials, ProgressView) else original(trials)


def trials_with_error(original: Original, trials: Any) -> Any:
    if isinstance(trials, SpilledTrials):
        return _report_on(trials, original, None, errors=True)
    return original(trials)


def heartbeat(original: Original, reporter: Any, trials: Any, *args: Any, **kwargs: Any) -> Any:
    def report(some: Any) -> Any:
        return original(reporter, some, *args, **kwargs)

    if isinstance(trials, SpilledTrials):
        # The module is Ray's own to use: nobody else's reporter is called with the groups.
        return _report_on(trials, report, reporter._metric, only_reads=True)
    return report(trials)


def old_report(original: Original, reporter: Any, trials: Any, *args: Any, **kwargs: Any) -> Any:
    # A table sorted by metric needs the metric of every trial, so it gets them all.
    def report(some: Any) -> Any:
        return original(reporter, some, *args, **kwargs)

    if isinstance(trials, SpilledTrials) and not reporter._sort_by_metric:
        inferred = list(reporter._inferred_metrics)
        only = inferred[0] if len(inferred) == 1 else None
        return _report_on(trials, report, reporter._metric or only, errors=True)
    return report(trials)


def _report_on(
    trials: SpilledTrials,
    report: Callable[[Any], Any],
    metric: str | None,
    errors: bool = False,
    only_reads: bool = False,
) -> Any:
    """Report on a digest; if the store cannot be read, on what is in memory."""
    try:
        return report(ProgressView(trials, metric, errors, only_reads))
    except sqlite3.Error as error:
        logger.warning("Progress is shown without finished trials: %s", error)
        return report(trials.resident())
