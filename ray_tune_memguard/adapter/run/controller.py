"""Methods of a running ``TuneController`` that are overridden while its trials are spilled.

Only this controller's class is replaced, by a subclass that overrides the few methods that walk
over all trials or write them. No class of Ray's is changed.
"""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Protocol, cast

from ray_tune_memguard.adapter import boundary, contract
from ray_tune_memguard.adapter.boundary import Policy, RaysOwn
from ray_tune_memguard.adapter.contract import Capabilities

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

    from ray_tune_memguard.adapter.run.checkpoint import CheckpointWriter
    from ray_tune_memguard.adapter.run.uploads import IncrementalSyncer
    from ray_tune_memguard.adapter.seam import Controller
    from ray_tune_memguard.adapter.serialization.trial_pickle import TrialStateCodec
    from ray_tune_memguard.lazy.trial_list import SpilledTrials
    from ray_tune_memguard.notices import Notices

_RUN = "_memguard_run"
_LAYER = "_memguard_layer"
_OF_EACH_CLASS = ("__dict__", "__weakref__")
_RAYS_SCHEDULERS = "ray.tune.schedulers."


class SpillingRun(Protocol):
    """The parts of a run that the overridden methods use. It does not hold the controller."""

    trials: SpilledTrials[Trial]
    codec: TrialStateCodec
    writer: CheckpointWriter
    syncer: IncrementalSyncer | None
    capabilities: Capabilities
    notices: Notices
    before_checkpoint: Callable[[], object]

    @property
    def is_in_place(self) -> bool:
        """Whether trials are spilled; False once the run continues with Ray alone."""

    def take_out(self, controller: Controller) -> None:
        """Let the run continue with Ray alone."""


def override_methods(controller: Controller, run: SpillingRun) -> Callable[[object], None]:
    """Override the methods of this one controller.

    Returns:
        A function that restores the controller's own class.
    """
    plain = type(controller)
    state_file_name = cast(property, plain.experiment_state_file_name).fget
    assert state_file_name is not None
    namespace: dict[str, object] = {
        # On the class, because Ray writes the attributes of the instance to the experiment state.
        _RUN: run,
        "experiment_state_file_name": property(_state_file_name.in_place_of(state_file_name)),
    }
    for name, entry in _METHODS.items():
        if name == "get_trials" and contract.CHOOSE_TRIAL not in run.capabilities:
            continue
        namespace[name] = entry.in_place_of(getattr(plain, name))
    return add_methods(controller, namespace)


def add_methods(owner: object, namespace: dict[str, object]) -> Callable[[object], None]:
    """Give this one object, a controller for example, a class of its own, derived from its class.

    Args:
        owner: the object.
        namespace: the attributes of the new class.

    Returns:
        A function that takes this class away from the object. Classes that were derived from it
        in the meantime stay.
    """
    plain = type(owner)
    key = object()
    own = {"__module__": plain.__module__, **namespace, _LAYER: key}
    owner.__class__ = type(plain.__name__, (plain,), own)

    def take_away(overridden: object) -> None:
        overridden.__class__ = _without(key, type(overridden))

    return take_away


def _without(key: object, kind: type) -> type:
    """The class ``kind`` without the layer of this key, which may be a base of it."""
    own = dict(vars(kind))
    if _LAYER not in own:
        return kind
    base = kind.__bases__[0]
    if own[_LAYER] is key:
        return base
    below = _without(key, base)
    if below is base:
        return kind
    copied = {name: value for name, value in own.items() if name not in _OF_EACH_CLASS}
    return type(kind.__name__, (below,), copied)


def run_of(controller: Controller) -> SpillingRun | None:
    """The run that spills the controller's trials; None if none does."""
    found: SpillingRun | None = getattr(type(controller), _RUN, None)
    return found


def _this_run(controller: Controller) -> SpillingRun:
    found = run_of(controller)
    assert found is not None
    return found


def _take_out(controller: Controller, _error: Exception) -> None:
    run = run_of(controller)
    if run is not None:
        run.take_out(controller)


@boundary.entry("TuneController.is_finished", Policy.CALL_RAY)
def _is_finished(rays: RaysOwn, controller: Controller) -> bool:
    # Spilled trials are finished; Ray would check each of them whenever no trial is live.
    unspilled = _this_run(controller).trials.resident()
    if not all(trial.is_finished() for trial in unspilled):
        return False
    return bool(rays.call(controller._search_alg.is_finished))


@boundary.entry("TuneController.get_trial", Policy.CALL_RAY)
def _get_trial(_rays: RaysOwn, controller: Controller, tid: str) -> Trial | None:
    found: Trial | None = _this_run(controller).trials.find(tid)
    return found


@boundary.entry("TuneController.get_trials", Policy.CALL_RAY)
def _get_trials(rays: RaysOwn, controller: Controller) -> list[Trial]:
    # Frame 0 is this function, frame 1 the boundary, frame 2 the caller of `get_trials`.
    if _reads_unfinished_only(sys._getframe(2)):
        return _this_run(controller).trials.resident()
    found: list[Trial] = rays(controller)
    return found


@boundary.entry("TuneController._get_trial_checkpoints", Policy.CALL_RAY)
def _get_trial_checkpoints(_rays: RaysOwn, controller: Controller) -> dict[str, tuple[str, str]]:
    run = _this_run(controller)
    for trial in list(controller._trials_to_cache):
        try:
            controller._trial_metadata[trial.trial_id] = run.codec.json_state(trial)
            controller._trials_to_cache.discard(trial)
        except Exception as error:
            boundary.raise_if_of_signal(error)
            # Ray alone would end the run here. The trial's last record stays, as one that is out
            # of date: a spill must not take it for the trial's.
            run.notices.warn(
                "unwritten",
                f"The state of trial {trial} cannot be serialized ({error!r}), so the experiment "
                "state is saved without its latest changes. Further occurrences are not logged.",
            )
    return controller._trial_metadata


@boundary.entry("TuneController.experiment_state_file_name", Policy.CALL_RAY)
def _state_file_name(rays: RaysOwn, controller: Controller) -> str:
    redirected = _this_run(controller).writer.redirected_name(controller)
    return str(rays(controller)) if redirected is None else redirected


@boundary.entry("TuneController.save_to_dir", Policy.TAKE_OUT, _take_out)
def _save_to_dir(rays: RaysOwn, controller: Controller) -> None:
    run = _this_run(controller)
    # A checkpoint takes time. A kill during it must not cost the trials that have finished before.
    run.before_checkpoint()
    if not run.is_in_place:
        rays(controller)
        return
    try:
        run.writer.write(controller, lambda: rays(controller))
        run.notices.again("checkpoint")
    except (OSError, sqlite3.Error) as error:
        boundary.raise_if_of_signal(error)
        # Ray alone would end the run here, with all its trials.
        run.notices.warn(
            "checkpoint",
            f"MemGuard cannot write the experiment state ({error}). The run continues, and the "
            "next experiment checkpoint tries again.",
        )


@boundary.entry("TuneController.checkpoint", Policy.CALL_RAY)
def _checkpoint(
    rays: RaysOwn, controller: Controller, force: bool = False, wait: bool = False
) -> None:
    syncer = _this_run(controller).syncer
    if syncer is not None:
        # The last checkpoint of a run is forced and waited for.
        syncer.thorough = force and wait
    rays(controller, force=force, wait=wait)


_METHODS = {
    "is_finished": _is_finished,
    "get_trial": _get_trial,
    "get_trials": _get_trials,
    "_get_trial_checkpoints": _get_trial_checkpoints,
    "save_to_dir": _save_to_dir,
    "checkpoint": _checkpoint,
}


def _reads_unfinished_only(caller: FrameType) -> bool:
    """Whether the caller is Ray's own code that skips finished trials.

    On every step Ray's schedulers search all trials for one to run. It does not matter whether Ray
    or a user's scheduler called them. A user's own code gets all trials.
    """
    module = str(caller.f_globals.get("__name__"))
    return caller.f_code.co_name == "choose_trial_to_run" and module.startswith(_RAYS_SCHEDULERS)
