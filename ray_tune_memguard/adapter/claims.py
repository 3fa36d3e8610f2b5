"""Records which callback does which job in a run, so that no second one does it as well."""

from __future__ import annotations

import sys
import weakref
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray_tune_memguard.adapter.seam import Controller

#: The job of the callback that spills trials.
SPILLING = "spilling"
#: The job of the callback that keeps the results of all trials.
HISTORIES = "histories"
#: The job of the callback that samples who holds memory.
GROWTH = "growth"
# By controller and job; weakly, because a callback refers to the controller.
_jobs: weakref.WeakKeyDictionary[Controller, dict[str, weakref.ref[object]]] = (
    weakref.WeakKeyDictionary()
)


def claim(controller: Controller, job: str, owner: object) -> bool:
    """Claim a job for a callback. The first claim of a job in a run counts.

    Args:
        controller: the run's controller.
        job: the name of the job.
        owner: the callback.

    Returns:
        Whether ``owner`` has the job.
    """
    jobs = _jobs.setdefault(controller, {})
    if job not in jobs or jobs[job]() is None:
        jobs[job] = weakref.ref(owner)
    return jobs[job]() is owner


def owner_of(controller: Controller, job: str) -> object | None:
    """The callback that has a job in a run; None if there is none."""
    owner = _jobs.get(controller, {}).get(job)
    return None if owner is None else owner()


def end_abandoned_runs(experiment_path: str) -> None:
    """End the runs of an experiment that were left without their last hook.

    A ``KeyboardInterrupt``, for example from a second Ctrl+C, can leave such a run in a process
    that continues, such as a notebook. Its stores stay locked, and no restore can read them.

    Args:
        experiment_path: the experiment's path in its file system.
    """
    for controller, jobs in list(_jobs.items()):
        storage = controller._storage
        if (
            storage is None
            or str(storage.experiment_fs_path) != experiment_path
            or is_being_run(controller)
        ):
            continue
        for job in (HISTORIES, SPILLING):
            owner = jobs[job]() if job in jobs else None
            end = getattr(owner, "on_experiment_end", None)
            if callable(end):
                end(trials=controller._trials)


def is_being_run(controller: object) -> bool:
    """Whether a thread is in one of the controller's methods, or in Ray's loop that calls them."""
    for frame in sys._current_frames().values():
        caller: FrameType | None = frame
        while caller is not None:
            # `tune.run` calls it "runner".
            if any(caller.f_locals.get(name) is controller for name in ("self", "runner")):
                return True
            caller = caller.f_back
    return False
