"""What to do about something that grows, and the figure that says so."""

from __future__ import annotations

from dataclasses import dataclass

from ray_tune_memguard.report.text import size, slope

#: Of a native slope, what a fresh actor for each trial explains (docs/architecture.md).
_NATIVE_OF_FRESH_ACTORS = 5_000


@dataclass(frozen=True)
class Circumstances:
    """What of the sweep bears on the advice."""

    reuse_actors: bool | None = None
    is_pruned: bool = False
    #: What slopes are per.
    unit: str = "trial"


def of_holder(name: str, role: str, is_users: bool, grows_by: float, sweep: Circumstances) -> str:
    """Advice about a holder that grows by so much."""
    figure = f"{slope(grows_by, None)} per {sweep.unit}"
    if name == "threading._active":
        return f"Threads are started and do not end ({figure}, stacks included): join them."
    if role == "searcher" and "optuna" in name.lower():
        return (
            f"Optuna's study keeps every trial in memory ({figure}), by design: give OptunaSearch "
            "a database, storage=optuna.storages.RDBStorage(...)."
        )
    if role in ("searcher", "scheduler") and not is_users:
        return f"A {role} keeps what it learned ({figure}), by design."
    if is_users:
        kind = "callback" if role == "callback" else role
        return (
            f"Your {kind} keeps {figure}: keep an id or a number instead of the object, write it "
            "to disk, or clear it when a trial ends."
        )
    if role == "module":
        return f"A global that is never cleared ({figure})."
    if sweep.is_pruned:
        return f"Ray or a library keeps {figure} here, and MemGuard does not know it: report it."
    return f"Ray keeps {figure} of finished trials here: add MemGuard() or TrialPruner()."


def of_cycles(grows_by: float, unit: str, is_collecting: bool) -> str:
    """Advice about objects that only the garbage collector knows of."""
    figure = f"{slope(grows_by, None)} per {unit}"
    if not is_collecting:
        return f"Cycles of references that are not collected ({figure}): gc is disabled."
    return (
        f"No container of Python's has them ({figure}): they are in cycles that wait for the "
        "garbage collector, in a function that runs, or held by native code (atexit, say)."
    )


def of_part(part: str, grows_by: float, sweep: Circumstances) -> str:
    """Advice about a part of RSS that grows and that no holder accounts for."""
    figure = f"{slope(grows_by, None)} per {sweep.unit}"
    if part == "slack":
        return (
            f"Freed memory that the C allocator keeps ({figure}): TrialPruner gives it back "
            "(trim_slack_mib)."
        )
    if part == "native":
        if sweep.reuse_actors is False and grows_by > _NATIVE_OF_FRESH_ACTORS:
            return (
                f"Native memory grows by {figure} with a fresh actor for each trial: set "
                "reuse_actors=True in TuneConfig."
            )
        return f"Native memory ({figure}) of no Python object: an extension's, or ctypes'."
    if part == "shared":
        return f"Files or shared memory that stay mapped ({figure})."
    return f"Python objects ({figure}) that no known holder keeps; see the types."


def of_process(name: str, bytes_now: float, grows_by: float, unit: str) -> str:
    """Advice about another process of Ray's that grows."""
    if name != "gcs_server":
        return ""
    return (
        f"It has {size(bytes_now)} and keeps records of finished tasks and actors "
        f"({slope(grows_by, None)} per {unit}). RAY_task_events_max_num_task_in_gcs and "
        "RAY_maximum_gcs_destroyed_actor_cached_count, set where Ray is started, limit them."
    )
