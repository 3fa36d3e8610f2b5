"""Tells a callback before Ray asks a trial's actor to stop, whatever the reason.

Ray calls no hook when a trial pauses or ends with the experiment, and calls the one about an error
afterwards. An actor carries out one call after the other, and once Ray's own has been carried out
its process may be killed at any moment, with its placement group. So what is to be done in the
process comes first. All stops go through the controller's ``_schedule_trial_stop``, which is
overridden for one run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from ray_tune_memguard.adapter import boundary
from ray_tune_memguard.adapter.boundary import Policy, RaysOwn
from ray_tune_memguard.adapter.run.controller import add_methods

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

    from ray_tune_memguard.adapter.seam import Controller

_OBSERVER = "_memguard_stops"


class StopObserver(Protocol):
    """Who is told. Its method may raise; the run continues then."""

    def before_stop(self, trial: Trial, is_failure: bool) -> None:
        """Ray is about to ask the trial's actor, if it has one, to stop.

        Args:
            trial: the trial.
            is_failure: whether the trial has failed, also if Ray starts it again.
        """


def observe_stops(controller: Controller, observer: StopObserver) -> None:
    """Tell ``observer`` before each stop of a trial in this run."""
    rays = type(controller)._schedule_trial_stop  # type: ignore[attr-defined]
    method = _schedule_trial_stop.in_place_of(rays)
    # On the class, because Ray writes the attributes of the instance to the experiment state.
    add_methods(controller, {_OBSERVER: observer, "_schedule_trial_stop": method})


@boundary.entry("TuneController._schedule_trial_stop", Policy.CALL_RAY)
def _schedule_trial_stop(
    rays: RaysOwn, controller: Controller, trial: Trial, exception: Exception | None = None
) -> None:
    observer: StopObserver = getattr(type(controller), _OBSERVER)
    observer.before_stop(trial, exception is not None)
    rays(controller, trial, exception)
