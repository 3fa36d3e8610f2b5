"""Measures the processes of the head node, and says what to do about one that grows."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import ray

from ray_tune_memguard.cluster.session import session_directory
from ray_tune_memguard.cluster.settings import TASKS_PER_TRIAL, effective
from ray_tune_memguard.report.sizes import size
from ray_tune_memguard.system.ray_processes import RayProcesses

_HEAD_RESOURCE = "node:__internal_head__"
#: Bytes per trial of `gcs_server` that task events explain; more is dead actors and workers.
_MAX_BY_TASK_EVENTS = 25_000
_REPORTS = "task_events_report_interval_ms"
_TASKS = "task_events_max_num_task_in_gcs"
_ACTORS = "maximum_gcs_destroyed_actor_cached_count"

#: What to do about processes of which nothing more is known.
_ADVICE = {
    "dashboard": "It keeps tables of tasks, actors and events: start Ray with "
    "include_dashboard=False, or with RAY_DASHBOARD_MAX_EVENTS_TO_CACHE=1000.",
    "log monitor": "It follows a file for each worker: start the head with "
    "`ray start --include-log-monitor=false`",
    "raylet": "It keeps what runs on the head: start the head with num_cpus=0 if there are other "
    "nodes",
    "dashboard agent": "It cannot be turned off: plan for 0.2 GiB a node.",
    "runtime env agent": "It keeps a record for each runtime environment: pass the same one to all "
    "trials.",
    "autoscaler monitor": "It is idle without an autoscaler: plan for 0.1 GiB.",
}
#: What else helps with two of them.
_REUSE = {"log monitor": ", or", "raylet": ", and"}


def head_node_id() -> str | None:
    """The id of the head's node; None if it is not alive. A client may ask as well."""
    for node in ray.nodes():
        if node["Alive"] and _HEAD_RESOURCE in node["Resources"]:
            return str(node["NodeID"])
    return None


def memory_by_process(node: str) -> dict[str, tuple[int, int]]:
    """RSS and anonymous memory in bytes of Ray's own processes on this machine, by name.

    Args:
        node: the id of the node that this process runs on.
    """
    memory = _processes(node).memory()
    return {name: (found.rss, found.anonymous) for name, found in memory.items()}


@functools.lru_cache(maxsize=4)
def _processes(node: str) -> RayProcesses:
    """The processes of a node, which are searched once."""
    directory = session_directory()
    return RayProcesses(None if directory is None else directory.name, node)


def advice(
    name: str,
    per_trial: float,
    settings: Mapping[str, object],
    reuses_actors: bool = False,
    trials: int = 0,
) -> str:
    """What to do about a process of the head that grows.

    Args:
        name: the process.
        per_trial: by how many bytes it grows for each trial; 0 if not known.
        settings: settings of Ray that are known to be other than by default.
        reuses_actors: whether the run is known to reuse actors.
        trials: number of finished trials.

    Examples:
        >>> advice("gcs_server", 16_000, {})[:68]
        'It keeps the events of every task of the last 20,000 trials (15.6 K'
    """
    if name in _REUSE:
        reuse = "" if reuses_actors else f"{_REUSE[name]} set reuse_actors=True in TuneConfig"
        return f"{_ADVICE[name]}{reuse}."
    if name != "gcs_server":
        return _ADVICE.get(name, "")
    keeps = f"{size(per_trial)} a trial" if per_trial else "15 to 17 KB a trial"
    actors = (
        " Dead actors take a part: set reuse_actors=True in TuneConfig, or "
        f"RAY_{_ACTORS}=10000 where the head starts."
    )
    if settings.get(_REPORTS) == 0:
        return f"It grows by {keeps} without task events.{'' if reuses_actors else actors}"
    kept = settings.get(_TASKS)
    if isinstance(kept, int) and 0 <= kept <= TASKS_PER_TRIAL * trials:
        also = f"although it keeps the events of no more than {kept:,} tasks."
        return f"It grows by {keeps} {also}{'' if reuses_actors else actors}"
    limit = int(effective(_TASKS, dict(settings), {}))
    of_last = f" of the last {limit // TASKS_PER_TRIAL:,} trials" if limit >= 0 else ""
    text = (
        f"It keeps the events of every task{of_last} ({keeps}, mostly by these). Set "
        f"RAY_{_REPORTS}=0 in the environment before Ray starts, or RAY_{_TASKS}=10000 where "
        "the head starts, which keeps the last 2,000 trials."
    )
    return f"{text}{actors}" if per_trial > _MAX_BY_TASK_EVENTS and not reuses_actors else text
