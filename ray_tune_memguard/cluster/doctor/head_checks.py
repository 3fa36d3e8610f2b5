"""Checks of the head: who else runs there, and what ``gcs_server`` will keep."""

from __future__ import annotations

from collections.abc import Iterator

from ray_tune_memguard.cluster.doctor.facts import Facts
from ray_tune_memguard.cluster.doctor.findings import Finding, Place, Remedy, Severity
from ray_tune_memguard.cluster.settings import BY_NAME, TASKS_PER_TRIAL
from ray_tune_memguard.report.sizes import size

_TASKS = "task_events_max_num_task_in_gcs"
_REPORTS = "task_events_report_interval_ms"
_ACTORS = "maximum_gcs_destroyed_actor_cached_count"
_WORKERS = "maximum_gcs_dead_worker_cached_count"

#: The events of a trial's tasks take 15 to 17 KB of `gcs_server` (measured).
BYTES_PER_TRIAL = 16_000
#: What is worth a note, and a warning.
_NOTED_BYTES = 100 * 2**20
_MAX_GCS_BYTES = 2**30
#: Enough for the last 2,000 trials.
_FEWER_TASKS = 10_000
_FEWER_RECORDS = 10_000
_MANY_TRIALS = 10_000


def runs_trials(facts: Facts) -> Iterator[Finding]:
    """Trials may run on the head of a cluster of several nodes."""
    heads = [node for node in facts.nodes if node.is_head and node.cpus > 0]
    if heads and len(facts.nodes) > 1:
        [head] = heads
        yield Finding(
            "head-runs-trials",
            Severity.WARNING,
            f"Ray may start trials on the head ({head.cpus:g} CPUs).",
            "If they fill its memory, gcs_server or the driver dies, and with it the whole "
            "cluster; a worker node that dies costs only its trials.",
            f"{len(facts.nodes)} nodes; the head offers {head.cpus:g} CPUs.",
            (Remedy("num-cpus", 0, is_start_argument=True, place=Place.HEAD),),
            where=head.name,
        )


def keeps_records(facts: Facts) -> Iterator[Finding]:
    """``gcs_server`` keeps, or will keep, much about tasks and actors that have ended."""
    cap, has_events = facts.head_setting(_TASKS), facts.head_setting(_REPORTS) != 0
    trials, rss = facts.plan.trials, facts.head.gcs_rss
    kept = expected = 0
    if trials is not None and has_events:
        kept = trials if cap < 0 else min(trials, int(cap / TASKS_PER_TRIAL))
        expected = kept * BYTES_PER_TRIAL
    is_large = rss is not None and rss >= _MAX_GCS_BYTES
    is_unlimited = cap < 0 and has_events
    if not (expected >= _NOTED_BYTES or is_large or is_unlimited):
        return
    evidence = [f"{_TASKS} is {cap:,}" if has_events else f"{_REPORTS} is 0"]
    if rss is not None:
        evidence.append(f"gcs_server has {size(rss)} now")
    if expected:
        evidence.append(
            f"those of {kept:,} trials at {BYTES_PER_TRIAL / 1000:.0f} KB are {size(expected)}"
        )
    if is_unlimited:
        what = "gcs_server keeps the events of every task, without a limit."
    elif has_events:
        what = f"gcs_server keeps the events of {cap:,.0f} tasks, and records of dead actors."
    else:
        what = "gcs_server keeps records of dead actors and workers."
    of_a_trial = f"a trial is {TASKS_PER_TRIAL} tasks, or {BYTES_PER_TRIAL / 1000:.0f} KB"
    remedies = tuple(_fewer(facts, has_events))
    yield Finding(
        "head-keeps-records",
        Severity.WARNING
        if is_large or is_unlimited or expected >= _MAX_GCS_BYTES
        else Severity.NOTE,
        what,
        "They serve the dashboard and `ray summary` only"
        + (f"; {of_a_trial}." if has_events else "."),
        "; ".join(evidence) + ".",
        remedies,
        advice=""
        if remedies
        else "The settings are low already: start the cluster anew between "
        "sweeps, which empties gcs_server.",
    )


def _fewer(facts: Facts, has_events: bool) -> Iterator[Remedy]:
    """The settings that let ``gcs_server`` keep less than now."""
    for name, value in (
        *([(_TASKS, _FEWER_TASKS)] if has_events else []),
        (_ACTORS, _FEWER_RECORDS),
        (_WORKERS, _FEWER_RECORDS),
    ):
        now = facts.head_setting(name)
        if BY_NAME[name].since <= facts.ray_version and (now < 0 or now > value):
            yield Remedy(name, value)


def dashboard_on(facts: Facts) -> Iterator[Finding]:
    """The dashboard runs beside a sweep of many trials."""
    trials = facts.plan.trials
    if facts.head.has_dashboard and trials is not None and trials >= _MANY_TRIALS:
        yield Finding(
            "dashboard-on",
            Severity.NOTE,
            "The dashboard runs on the head.",
            "It keeps tables of actors, tasks and events in memory, which grow with the trials.",
            f"{trials:,} trials are planned.",
            (Remedy("include-dashboard", False, is_start_argument=True, place=Place.HEAD),),
        )


CHECKS = (runs_trials, keeps_records, dashboard_on)
