"""Lets Ray's console reports read only the few spilled trials that they need.

Each function here replaces one of Ray's, which is its first argument (``patches``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from ray.tune.experiment import Trial
from ray.tune.experimental.output import TuneReporterBase
from ray.tune.progress_reporter import TuneReporterBase as OldReporterBase

from ray_tune_memguard.adapter import boundary
from ray_tune_memguard.lazy.progress import ProgressView
from ray_tune_memguard.lazy.trial_list import SpilledTrials
from ray_tune_memguard.notices import logger

Trials = list[Trial]
ReportT = TypeVar("ReportT")
ReportT_co = TypeVar("ReportT_co", covariant=True)
ReporterT_contra = TypeVar("ReporterT_contra", contravariant=True)


class _ReportMethod(Protocol[ReporterT_contra, ReportT_co]):
    def __call__(
        self, reporter: ReporterT_contra, trials: Trials, /, *args: object, **kwargs: object
    ) -> ReportT_co: ...


def trials_by_state(
    original: Callable[[Trials], dict[str, Trials]], trials: Trials
) -> dict[str, Trials]:
    return trials.by_status() if isinstance(trials, ProgressView) else original(trials)


def trials_with_error(original: Callable[[Trials], Trials], trials: Trials) -> Trials:
    if isinstance(trials, SpilledTrials):
        return _report_on(trials, original, None, errors=True)
    return original(trials)


def heartbeat(
    original: _ReportMethod[TuneReporterBase, ReportT],
    reporter: TuneReporterBase,
    trials: Trials,
    *args: object,
    **kwargs: object,
) -> ReportT:
    def report(some: Trials) -> ReportT:
        return original(reporter, some, *args, **kwargs)

    if isinstance(trials, SpilledTrials):
        # This reporter class is private to Ray, so no user's code keeps trials of the groups.
        return _report_on(trials, report, reporter._metric, only_reads=True)
    return report(trials)


def old_report(
    original: _ReportMethod[OldReporterBase, ReportT],
    reporter: OldReporterBase,
    trials: Trials,
    *args: object,
    **kwargs: object,
) -> ReportT:
    # A table sorted by metric needs the metric of every trial.
    def report(some: Trials) -> ReportT:
        return original(reporter, some, *args, **kwargs)

    if isinstance(trials, SpilledTrials) and not reporter._sort_by_metric:
        inferred = list(reporter._inferred_metrics)
        only = inferred[0] if len(inferred) == 1 else None
        return _report_on(trials, report, reporter._metric or only, errors=True)
    return report(trials)


def _report_on(
    trials: SpilledTrials[Trial],
    report: Callable[[Trials], ReportT],
    metric: str | None,
    errors: bool = False,
    only_reads: bool = False,
) -> ReportT:
    """Report on a view of all trials or, if a trial cannot be read back, on those in memory.

    What the report itself raises, it raises again.
    """
    try:
        try:
            return report(ProgressView(trials, metric, errors, only_reads))
        except AttributeError:
            if not only_reads:
                raise
            # Another Ray's report reads more of a trial than these have.
            return report(ProgressView(trials, metric, errors))
    except Exception as error:
        boundary.raise_if_of_signal(error)
        found = report(trials.resident())
        logger.warning("Progress is shown without finished trials: %r", error)
        return found
