"""The types of Ray's private parts, as far as this package uses them.

Ray's own annotations leave some of these attributes out, and are wrong about others.
"""

from __future__ import annotations

from collections.abc import MutableSet
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ray.actor import ActorHandle
    from ray.air.execution._internal.tracked_actor import TrackedActor
    from ray.air.execution.resources import AcquiredResources, ResourceManager
    from ray.train._internal.storage import StorageContext
    from ray.tune import Callback, ResumeConfig
    from ray.tune.execution.tune_controller import TuneController
    from ray.tune.experiment import Trial
    from ray.tune.schedulers import TrialScheduler
    from ray.tune.search import SearchAlgorithm
    from ray.tune.utils.object_cache import _ObjectCache


class Events(Protocol):
    """Ray's event manager: the futures that it waits for."""

    _tracked_futures: dict[object, object]


class Actors(Protocol):
    """Ray's actor manager, or a stand-in for it."""

    _resource_manager: ResourceManager
    #: By tracked actor: the actor and its resources.
    _live_actors_to_ray_actors_resources: dict[
        TrackedActor, tuple[ActorHandle[object], AcquiredResources]
    ]
    _tracked_actors_to_task_futures: dict[object, set[object]]
    _actor_task_events: Events
    _pending_actors_to_enqueued_actor_tasks: dict[object, object]
    _pending_actors_to_attrs: dict[object, object]


class CallbackList(Protocol):
    """The callbacks of a run."""

    _callbacks: list[Callback]

    def can_restore(self, checkpoint_dir: str) -> bool: ...

    def restore_from_dir(self, checkpoint_dir: str) -> None: ...


class CheckpointManager(Protocol):
    """Decides when to write a checkpoint, and uploads it."""

    _storage: StorageContext

    def sync_down_experiment_state(self) -> None: ...


class Controller(Protocol):
    """The ``TuneController`` of a run."""

    _trials: list[Trial]
    _storage: StorageContext
    _session_str: str
    _resumed: bool
    _trial_to_actor: dict[Trial, TrackedActor]
    _actor_to_trial: dict[TrackedActor, Trial]
    #: By tracked actor: when it was asked to stop.
    _stopping_actors: dict[TrackedActor, float]
    _actor_cache: _ObjectCache
    _stop_queue: list[Trial]
    _callbacks: CallbackList
    _search_alg: SearchAlgorithm
    _scheduler_alg: TrialScheduler
    _checkpoint_manager: CheckpointManager
    _actor_manager: Actors
    _stopped_trials: MutableSet[Trial]
    _failed_trials: MutableSet[Trial]
    _live_trials: MutableSet[Trial]
    _trials_to_cache: MutableSet[Trial]
    #: By trial id: what the experiment state file has of a trial.
    _trial_metadata: dict[str, tuple[str, str]]

    @property
    def experiment_state_path(self) -> str: ...

    @property
    def experiment_state_file_name(self) -> str: ...

    #: Functions that put values into the configs of trials.
    _placeholder_resolvers: dict[tuple[object, ...], object] | None

    def save_to_dir(self) -> None: ...

    def add_trial(self, trial: Trial) -> None: ...

    def _restore_trials(self, experiment_state: dict[str, object]) -> list[Trial]: ...

    def _requeue_restored_trials(
        self, trials: list[Trial], resume_config: ResumeConfig
    ) -> None: ...

    def _wrapped(self) -> TuneController: ...

    def __setstate__(self, state: dict[str, object]) -> None: ...

    def pause_trial(self, trial: Trial, should_checkpoint: bool = True) -> None: ...

    def __getstate__(self) -> dict[str, object]: ...
