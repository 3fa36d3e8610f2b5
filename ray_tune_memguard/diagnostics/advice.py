"""Gives advice about growing memory, with the figures."""

from __future__ import annotations

from dataclasses import dataclass

from ray_tune_memguard.adapter import contract
from ray_tune_memguard.diagnostics.text import size, slope

#: Native bytes per trial that a fresh actor for each trial explains: 5 to 15 KB were measured.
_NATIVE_OF_FRESH_ACTORS = (5_000, 25_000)


@dataclass(frozen=True)
class Circumstances:
    """Facts about the run that the advice depends on."""

    reuse_actors: bool | None = None
    is_pruned: bool = False
    #: Slopes are per ``trial`` or per ``result``.
    unit: str = "trial"


def of_site(name: str, role: str, owner: str, grows_by: float, circumstances: Circumstances) -> str:
    """Advice about a retention site that grows by ``grows_by`` bytes per unit.

    ``owner``: ``user``, ``ray`` or ``library``.
    """
    figure = f"{slope(grows_by, None)} per {circumstances.unit}"
    if name == "threading._active":
        return f"Threads are started and do not end ({figure}, stacks included): join them."
    if name.endswith(f".{contract.STUDY_OF_OPTUNA}"):
        return (
            f"Optuna's study keeps every trial in memory ({figure}), by design, unless it has a "
            "database: give OptunaSearch a storage=optuna.storages.RDBStorage(...)."
        )
    if owner == "user":
        kind = "callback" if role == "callback" else role
        return (
            f"Your {kind} keeps {figure}: keep an id or a number instead of the object, write it "
            "to disk, or clear it when a trial ends."
        )
    if role in ("searcher", "scheduler"):
        return f"A {role} keeps what it learned ({figure}), by design."
    if role == "module":
        return f"A global that is never cleared ({figure})."
    if owner == "library":
        return (
            f"A {role} of a library keeps {figure} here: see whether an option of it limits that."
        )
    if circumstances.is_pruned:
        return f"Ray keeps {figure} here, which MemGuard does not release: please report it."
    if name.endswith(f".{contract.RESULTS_READ}"):
        return f"Ray keeps {figure}, results that were read: add MemGuard() or TrialPruner()."
    if circumstances.unit == "result":
        return f"Ray keeps {figure} here while trials run."
    return f"Ray keeps {figure} of finished trials here: add MemGuard() or TrialPruner()."


def of_cycles(grows_by: float, unit: str, is_collecting: bool) -> str:
    """Advice about objects that only the garbage collector knows."""
    figure = f"{slope(grows_by, None)} per {unit}"
    if not is_collecting:
        return f"Cycles of references that are not collected ({figure}): gc is disabled."
    return (
        f"No container that the garbage collector tracks has them ({figure}): they are in cycles "
        "not yet collected, in a running function, or held by native code (atexit, an array)."
    )


def of_category(category: str, grows_by: float, circumstances: Circumstances) -> str:
    """Advice about growth in a category of RSS that no retention site accounts for."""
    figure = f"{slope(grows_by, None)} per {circumstances.unit}"
    if category == "slack":
        return (
            f"Freed memory that the C allocator keeps ({figure}): TrialPruner returns it to the "
            "system when it exceeds trim_slack_mib."
        )
    if category == "native":
        least, most = _NATIVE_OF_FRESH_ACTORS
        fits = circumstances.unit == "trial" and least < grows_by < most
        if circumstances.reuse_actors is False and fits:
            return (
                f"Native memory grows by {figure} with a fresh actor for each trial: set "
                "reuse_actors=True in TuneConfig."
            )
        return (
            f"Native memory ({figure}) that no retention site accounts for: it belongs to an "
            "extension or ctypes, or to large Python objects that other objects refer to."
        )
    if category == "shared":
        return f"Files or shared memory that stay mapped ({figure})."
    return f"Python objects ({figure}) that no retention site accounts for; see the types."


def of_process(name: str, bytes_now: float, grows_by: float, unit: str) -> str:
    """Advice about another process of Ray's that grows."""
    if name != "gcs_server":
        return ""
    return (
        f"It has {size(bytes_now)} and keeps records of finished tasks and actors "
        f"({slope(grows_by, None)} per {unit}). RAY_task_events_max_num_task_in_gcs and "
        "RAY_maximum_gcs_destroyed_actor_cached_count, set where Ray is started, limit them."
    )
