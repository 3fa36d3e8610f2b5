"""A run as a callback sees it, and what needs no run: opening experiments, patching Ray.

Importing this module needs nothing private of Ray's. The rest of the package ``adapter`` is
imported once the contract has said that its names are there.
"""

from __future__ import annotations

import sqlite3
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, cast

from ray_tune_memguard.adapter import claims, contract
from ray_tune_memguard.adapter.contract import Capabilities
from ray_tune_memguard.notices import Notices

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem
    from ray.tune import ResultGrid
    from ray.tune.experiment import Trial

    from ray_tune_memguard.adapter.run.spiller import Spiller
    from ray_tune_memguard.adapter.seam import Controller


class RunHandle:
    """One run of an experiment. A callback makes its handle in ``setup`` and keeps it.

    The handle refers to the run's controller weakly: the controller refers to the callback.

    Attributes:
        capabilities: what this Ray allows.
    """

    def __init__(self, controller: Controller | None, capabilities: Capabilities) -> None:
        self._controller = None if controller is None else weakref.ref(controller)
        self.capabilities = capabilities

    @classmethod
    def of_caller(cls) -> RunHandle:
        """The run whose controller is calling a hook; Ray passes the controller to none."""
        try:
            from ray_tune_memguard.adapter.paths import calling_controller
        except ImportError:  # A Ray without this controller.
            return cls(None, contract.probe())
        controller = cast("Controller | None", calling_controller())
        return cls(controller, contract.probe(controller))

    @property
    def controller(self) -> Controller | None:
        """The controller; None if the hook was called by something else, or the run is gone."""
        return None if self._controller is None else self._controller()

    @property
    def can_spill(self) -> bool:
        return self.controller is not None and contract.SPILL in self.capabilities

    def warning(self) -> str | None:
        """What the user should know about this Ray; None if it has all that is needed."""
        if self.controller is None and not self.capabilities.missing:
            return (
                "No Ray Tune controller is calling this callback: finished trials stay in memory."
            )
        return self.capabilities.warning()

    def claim(self, job: str, owner: object) -> bool:
        """Whether ``owner`` is the one that does ``job`` in this run: the first to ask is."""
        controller = self.controller
        return controller is None or claims.claim(controller, job, owner)

    def is_spilling(self) -> bool:
        """Whether finished trials of the run are spilled."""
        controller = self.controller
        if controller is None or contract.SPILL not in self.capabilities:
            return False
        from ray_tune_memguard.adapter.installation import installation_of

        installation = installation_of(controller)
        return installation is not None and installation.is_in_place

    def reuses_actors(self) -> bool | None:
        """Whether the run reuses actors; None if this Ray does not say."""
        return getattr(self.controller, "_reuse_actors", None)

    def store_directory(self) -> Path:
        """Where the run's trial store goes unless the user wants it elsewhere."""
        from ray_tune_memguard.adapter import paths

        assert self.controller is not None
        return paths.store_directory(self.controller)

    def open_spiller(self, directory: Path, notices: Notices) -> Spiller:
        """Begin to spill the run's finished trials.

        Args:
            directory: where the trial store is created, unless the run was resumed with one.
            notices: where warnings go.

        Raises:
            OSError, sqlite3.OperationalError: the trial store cannot be created.
        """
        from ray_tune_memguard.adapter.installation import install, installation_of
        from ray_tune_memguard.adapter.run.spiller import Spiller

        controller = self.controller
        assert controller is not None
        installation = installation_of(controller)
        if installation is None:
            installation = install(controller, directory, self.capabilities, notices)
        return Spiller(controller, installation, notices)

    def take_out(self) -> None:
        """Take out what is in place in the run, so that it goes on as Ray alone."""
        controller = self.controller
        if controller is None or contract.SPILL not in self.capabilities:
            return
        from ray_tune_memguard.adapter.installation import installation_of

        installation = installation_of(controller)
        if installation is not None:
            installation.take_out(controller)

    def tolerate_out_of_memory(self) -> None:
        """Let a trial that Ray's memory monitor kills fail like any other, if this Ray allows."""
        controller = self.controller
        if controller is not None and contract.SURVIVE_OOM in self.capabilities:
            from ray_tune_memguard.adapter.run.actor_manager import tolerate_out_of_memory

            tolerate_out_of_memory(controller)

    def retention_sites(self) -> ModuleType | None:
        """The module that knows who can hold memory; None on a Ray that it does not know."""
        if self.controller is None or contract.RETENTION_SITES not in self.capabilities:
            return None
        from ray_tune_memguard.adapter import retention_sites

        return retention_sites

    def ray_session(self) -> str | None:
        """The name of this driver's Ray session, which its processes have in their commands."""
        if contract.RAY_PROCESSES not in self.capabilities:
            return None
        from ray._private import worker

        node = worker._global_node
        return None if node is None else Path(node.get_session_dir_path()).name

    def report_path(self, trials: Sequence[Trial], kind: str, suffix: str) -> Path | None:
        """Where a report about the run goes.

        Args:
            trials: those of the run. On a Ray whose names we do not know, their path is all there
                is.
            kind: how the file's name begins.
            suffix: how it ends.

        Returns:
            The path; None if the run has no trials yet and this Ray does not say more.
        """
        controller = self.controller
        if controller is not None and contract.SPILL in self.capabilities:
            from ray_tune_memguard.adapter import paths

            session = paths.session_name(controller)
            return paths.report_directory(controller) / f"{kind}-{session}{suffix}"
        experiment = getattr(trials[0], "local_experiment_path", None) if trials else None
        name = time.strftime(f"{kind}-%Y-%m-%d_%H-%M-%S{suffix}")
        return Path(experiment, ".memguard", name) if experiment else None


def disk_errors() -> tuple[type[Exception], ...]:
    """What a disk that is full, gone or read-only raises, here or inside SQLite."""
    return (OSError, sqlite3.OperationalError)


def is_users_type(full_name: str) -> bool:
    """Whether a type of this name is neither Ray's nor a library's."""
    from ray_tune_memguard.adapter.retention_sites import is_users_module

    return is_users_module(full_name.rpartition(".")[0])


def install_patches() -> None:
    """Let Ray open and resume experiments that have a trial store, as far as this Ray allows."""
    from ray_tune_memguard.adapter.analysis import patches

    patches.install(contract.probe())


def remove_patches() -> None:
    """Put Ray's own functions back."""
    from ray_tune_memguard.adapter.analysis import patches

    patches.uninstall()


def open_experiment(
    path: str, metric: str | None, mode: str | None, filesystem: FileSystem | None
) -> ResultGrid:
    """See :func:`ray_tune_memguard.opening.open_experiment`."""
    from ray.tune import ExperimentAnalysis, ResultGrid

    trials = None
    if contract.OPEN in contract.probe():
        from ray_tune_memguard.adapter.restore.opened import trials_of

        trials = trials_of(path, filesystem)
    analysis = ExperimentAnalysis(
        path,
        storage_filesystem=filesystem,
        trials=trials,
        default_metric=metric,
        default_mode=mode,
    )
    return ResultGrid(analysis)
