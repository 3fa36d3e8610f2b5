"""Tells a callback of each failure of a trial, with the error: hooks get the trial only.

The error comes to the controller's ``_process_trial_failure``, which is overridden for one run. The
callback is asked before Ray handles the failure, and told afterwards, when Ray has decided whether
the trial runs again.
The error names the actor if it has died; then the trial does not know it any more.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from ray.exceptions import RayActorError

from ray_tune_memguard.adapter import boundary
from ray_tune_memguard.adapter.boundary import Policy, RaysOwn
from ray_tune_memguard.adapter.run.controller import add_methods
from ray_tune_memguard.cluster import gcs

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

    from ray_tune_memguard.adapter.seam import Controller

#: So many trials are looked up in Ray's control service for one death, 0.3 ms each.
MAX_LOOK_UPS = 40

_OBSERVER = "_memguard_failures"


class FailureObserver(Protocol):
    """Who is told. Its methods may raise; the run continues then."""

    def before_failure(
        self, trial: Trial, exception: Exception, actor_id: str | None
    ) -> str | None:
        """The trial has failed, and Ray does not know it yet.

        Args:
            trial: the trial.
            exception: what Ray got.
            actor_id: the trial's actor, dead or alive; None if it is not known.

        Returns:
            A text that is added to the error, and so to the trial's ``Result.error``, to its error
            file and to the console; None for no text.
        """

    def after_failure(self, trial: Trial, is_retried: bool) -> None:
        """Ray has handled the failure."""


def observe_failures(controller: Controller, observer: FailureObserver) -> Callable[[object], None]:
    """Tell ``observer`` of each failure of a trial.

    Returns:
        A function that ends this for the controller that it gets.
    """
    rays = type(controller)._process_trial_failure  # type: ignore[attr-defined]
    method = _process_trial_failure.in_place_of(rays)
    # On the class, because Ray writes the attributes of the instance to the experiment state.
    return add_methods(controller, {_OBSERVER: observer, "_process_trial_failure": method})


@boundary.entry("TuneController._process_trial_failure", Policy.CALL_RAY)
def _process_trial_failure(
    rays: RaysOwn, controller: Controller, trial: Trial, exception: Exception
) -> None:
    observer: FailureObserver = getattr(type(controller), _OBSERVER)
    actor = trial.temporary_state.ray_actor
    actor_id = getattr(exception, "actor_id", None) or gcs.actor_id_or_none(actor)
    text = observer.before_failure(trial, exception, actor_id)
    if text and isinstance(exception, RayActorError):
        exception.error_msg = f"{exception.error_msg.rstrip()}\n\n{text}"
    rays(controller, trial, exception)
    observer.after_failure(trial, trial.status != "ERROR")


def trials_by_pid(
    controller: Controller, node_id: str | None, asks_ray: bool
) -> dict[int, tuple[str, str]]:
    """Id and name of the trials that have an actor on a node, by the actor's process.

    Args:
        controller: the run's controller.
        node_id: the node; None for all nodes.
        asks_ray: whether the control service can be asked. Otherwise, and for more than 40 trials,
            the process is the one in the trial's last result.
    """
    found = {}
    for number, trial in enumerate(controller._trial_to_actor):
        # Not `last_result`: of a trial that has not reported it waits for the trial's process.
        pid = trial.run_metadata.last_result.get("pid")
        actor = trial.temporary_state.ray_actor
        actor_id = gcs.actor_id_or_none(actor) if asks_ray and number < MAX_LOOK_UPS else None
        with contextlib.suppress(gcs.ClusterStateError):
            info = gcs.actor_info(actor_id) if actor_id else None
            if info is not None:
                pid = info.pid if node_id in (None, "", info.node_id) else None
        if pid:
            found[int(pid)] = (trial.trial_id, str(trial))
    return found
