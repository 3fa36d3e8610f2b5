"""What a restore needs to know of the run that continues an experiment.

It is taken of the run's controller once, before anything is read. Only
:mod:`~ray_tune_memguard.adapter.restore.apply` needs the controller itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import ray
from ray.tune import ResumeConfig
from ray.tune.experiment import Trial

from ray_tune_memguard.adapter.contract import Capabilities
from ray_tune_memguard.adapter.location import RunLocation
from ray_tune_memguard.adapter.serialization.trial_pickle import TrialStateCodec
from ray_tune_memguard.notices import Notices

if TYPE_CHECKING:
    from ray_tune_memguard.adapter.seam import Controller


@dataclass(frozen=True)
class NewRun:
    """The run that continues an experiment.

    Attributes:
        location: where its files go.
        codec: makes its trials of state records.
        resume_config: which trials are to run again.
        spill_dir: the user's directory for trial stores; None for the default.
        capabilities: what this Ray allows.
        notices: the log of the run's warnings.
    """

    location: RunLocation
    codec: TrialStateCodec
    resume_config: ResumeConfig
    spill_dir: Path | None
    capabilities: Capabilities
    notices: Notices = field(default_factory=Notices)

    @classmethod
    def of(
        cls,
        controller: Controller,
        resume_config: ResumeConfig,
        spill_dir: Path | None,
        capabilities: Capabilities,
    ) -> NewRun:
        """The run of a controller without trials."""
        resolvers = controller._placeholder_resolvers
        codec = TrialStateCodec(
            controller._storage,
            prepare=_preparation(resolvers),
            resolves_config=bool(resolvers),
        )
        location = RunLocation.of(controller)
        return cls(location, codec, resume_config, spill_dir, capabilities)

    @property
    def store_directory(self) -> Path:
        return self.spill_dir or self.location.store_directory

    def continuing(self, first: list[str], state_file: str | None) -> NewRun:
        """This run, as the next one after the earlier runs of its experiment.

        Args:
            first: the state record of the first trial that Ray restores. Ray takes the name of the
                staging directory from it.
            state_file: the newest state file of the experiment; None if there is none.
        """
        storage = self.codec.trial_of(*first).storage
        assert storage is not None
        location = self.location.staged_as(storage._timestamp).after_earlier_runs(state_file)
        return replace(self, location=location)


def _preparation(
    resolvers: dict[tuple[object, ...], object] | None,
) -> Callable[[Trial], None]:
    """A function that does what Ray does with each trial it resumes, also with finished ones."""

    def prepare(trial: Trial) -> None:
        if not ray.util.client.ray.is_connected():
            trial.init_local_path()
        if resolvers:
            trial.resolve_config_placeholders(resolvers)
        trial.create_placement_group_factory()

    return prepare
