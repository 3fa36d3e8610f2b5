"""What helps when memory is already short: pausing a running trial, and ending the run in time."""

from __future__ import annotations

import sys
import threading
from collections.abc import Collection
from types import FrameType
from typing import TYPE_CHECKING

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, PopulationBasedTraining

if TYPE_CHECKING:
    from ray_tune_memguard.adapter.seam import Controller

# The local variable of `tune.run` that an interrupt sets, after which it saves the experiment state
# and returns.
_INTERRUPTED = "experiment_interrupted_event"


def can_pause(controller: Controller) -> bool:
    """Whether the run's scheduler takes up a trial that it has not paused itself.

    HyperBand and synchronous PBT do not: they wait for a paused trial, and it for them.
    """
    scheduler = controller._scheduler_alg
    if isinstance(scheduler, PopulationBasedTraining):
        return not scheduler._synch
    chooses = type(scheduler).choose_trial_to_run
    return bool(chooses is FIFOScheduler.choose_trial_to_run)


def pause_newest(controller: Controller, trial_ids: Collection[str]) -> str | None:
    """Pause the trial that was started last, of those with a checkpoint.

    Its process ends at once. The scheduler takes it up again like any paused trial, and it goes on
    from its latest checkpoint.

    Args:
        controller: the run's controller.
        trial_ids: the trials to choose from.

    Returns:
        The trial's id; None if none of them has a checkpoint.
    """
    for trial in reversed(list(controller._trial_to_actor)):
        if (
            trial.trial_id in trial_ids
            and trial.status == Trial.RUNNING
            and trial.has_checkpoint()
            and not trial.is_saving
        ):
            controller.pause_trial(trial, should_checkpoint=False)
            return str(trial.trial_id)
    return None


def end_run_resumably() -> bool:
    """End the run that is calling a hook, as an interrupt by the user does.

    Ray then writes the experiment state once more and returns from ``fit()``. Trials that have not
    finished stay unfinished, and ``Tuner.restore`` continues them.

    Returns:
        Whether the run will end.
    """
    caller: FrameType | None = sys._getframe(1)
    while caller is not None:
        if caller.f_code.co_name == "run" and caller.f_globals.get("__name__") == "ray.tune.tune":
            event = caller.f_locals.get(_INTERRUPTED)
            if isinstance(event, threading.Event):
                event.set()
                return True
        caller = caller.f_back
    return False
