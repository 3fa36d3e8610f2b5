"""The facade of the adapter: a handle on a run, opening experiments, and patching Ray.

Importing this module uses no private name of Ray's. It imports the other modules of ``adapter``
only after the contract has found the names that they use.
"""

from __future__ import annotations

import os
import sqlite3
import time
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, cast

from ray_tune_memguard.adapter import claims, contract
from ray_tune_memguard.adapter.contract import Capabilities
from ray_tune_memguard.cluster import core_names
from ray_tune_memguard.notices import Notices

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem
    from ray.actor import ActorHandle
    from ray.tune import ResultGrid
    from ray.tune.experiment import Trial

    from ray_tune_memguard.adapter.histories.logger import HistoryLogger
    from ray_tune_memguard.adapter.restore.offline import Examination, Import
    from ray_tune_memguard.adapter.run.failures import FailureObserver
    from ray_tune_memguard.adapter.run.launches import Launches
    from ray_tune_memguard.adapter.run.spiller import Spiller
    from ray_tune_memguard.adapter.run.stops import StopObserver
    from ray_tune_memguard.adapter.seam import Controller
    from ray_tune_memguard.cluster.node_readings import ClusterMemory
    from ray_tune_memguard.cluster.probe import NodeProbes
    from ray_tune_memguard.cluster.trial_memory import TrialMemories
    from ray_tune_memguard.gate.interfaces import TrialMemory
    from ray_tune_memguard.system.node_memory import MonitorSettings

# By controller: what the callbacks of its run share.
_probes: weakref.WeakKeyDictionary[Controller, NodeProbes] = weakref.WeakKeyDictionary()
_memories: weakref.WeakKeyDictionary[Controller, TrialMemories] = weakref.WeakKeyDictionary()


class RunHandle:
    """One run of an experiment. A callback creates its handle in ``setup`` and keeps it.

    The handle refers to the run's controller weakly, because the controller refers to the callback.

    Args:
        controller: the run's controller; None if no controller called ``setup``.
        capabilities: what this Ray allows.

    Attributes:
        capabilities: what this Ray allows.

    Examples:
        >>> from ray_tune_memguard.adapter.handle import RunHandle
        >>> run = RunHandle.of_caller()  # No controller is calling.
        >>> run.controller is None, run.can_spill
        (True, False)
    """

    def __init__(self, controller: Controller | None, capabilities: Capabilities) -> None:
        self._controller = None if controller is None else weakref.ref(controller)
        self.capabilities = capabilities
        self._launches: Launches | None = None

    @classmethod
    def of_caller(cls) -> RunHandle:
        """The run whose controller is calling a hook; Ray passes its controller to no hook."""
        try:
            from ray_tune_memguard.adapter.paths import calling_controller
        except ImportError:  # A Ray without this controller.
            return cls(None, contract.probe())
        controller = cast("Controller | None", calling_controller())
        return cls(controller, contract.probe(controller))

    @property
    def controller(self) -> Controller | None:
        """The controller; None if no controller called the hook, or if it no longer exists."""
        return None if self._controller is None else self._controller()

    def is_left(self) -> bool:
        """Whether the run is over, also without its last hook, as after a second Ctrl+C."""
        if self._controller is None:
            return False
        controller = self.controller
        return controller is None or not claims.is_being_run(controller)

    @property
    def can_spill(self) -> bool:
        return self.controller is not None and contract.SPILL in self.capabilities

    def warning(self) -> str | None:
        """The warning about this Ray for the user; None if it has all names."""
        if self.controller is None and not self.capabilities.missing:
            return "No Ray Tune controller called this callback: finished trials stay in memory."
        return self.capabilities.warning()

    def claim(self, job: str, owner: object) -> bool:
        """Claim a job for a callback. The first claim of a job in a run counts.

        Args:
            job: the name of the job.
            owner: the callback.

        Returns:
            Whether ``owner`` has the job.
        """
        controller = self.controller
        return controller is None or claims.claim(controller, job, owner)

    def owner_of(self, job: str) -> object | None:
        """The callback that has claimed a job in this run; None if there is none."""
        controller = self.controller
        return None if controller is None else claims.owner_of(controller, job)

    def is_spilling(self) -> bool:
        """Whether finished trials of the run are spilled."""
        controller = self.controller
        if controller is None or contract.SPILL not in self.capabilities:
            return False
        from ray_tune_memguard.adapter.installation import installation_of

        installation = installation_of(controller)
        return installation is not None and installation.is_in_place

    def reuses_actors(self) -> bool | None:
        """Whether the run reuses actors; None if this Ray lacks the attribute."""
        return getattr(self.controller, "_reuse_actors", None)

    def store_directory(self) -> Path:
        """The default directory of the run's trial store."""
        from ray_tune_memguard.adapter.location import RunLocation

        assert self.controller is not None
        return RunLocation.of(self.controller).store_directory

    def open_spiller(self, directory: Path, notices: Notices) -> Spiller:
        """Begin to spill the run's finished trials.

        Args:
            directory: the directory for the trial store. A resumed run has a store already.
            notices: the log of the run's warnings.

        Returns:
            The run's spiller.

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

    def continues_histories(self) -> bool:
        """Whether the run resumes an experiment whose results are in a store."""
        controller = self.controller
        if controller is None or contract.HISTORIES not in self.capabilities:
            return False
        from ray_tune_memguard.adapter.histories import places

        return bool(controller._resumed) and places.has_histories(controller)

    def record_histories(self, notices: Notices) -> HistoryLogger | None:
        """Keep the run's results in a store, and leave out Ray's automatic loggers.

        Args:
            notices: the log of the run's warnings.

        Returns:
            What records them; None if this Ray does not allow it.

        Raises:
            OSError, sqlite3.Error, StoreError: the store cannot be opened.
        """
        controller = self.controller
        if controller is None or contract.HISTORIES not in self.capabilities:
            notices.warn("histories", f"Without a store, {contract.WITHOUT[contract.HISTORIES]}.")
            return None
        from ray_tune_memguard.adapter.histories.logger import install

        return install(controller, notices)

    def take_out(self) -> None:
        """Remove what is installed in the run, which then continues with Ray alone."""
        self.open_gate()
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

    def observe_failures(self, observer: FailureObserver) -> None:
        """Tell ``observer`` of each failure of a trial, with its error, if this Ray allows."""
        controller = self.controller
        if controller is not None and contract.TRIAL_DEATHS in self.capabilities:
            from ray_tune_memguard.adapter.run.failures import observe_failures

            observe_failures(controller, observer)

    def observe_stops(self, observer: StopObserver) -> None:
        """Tell ``observer`` before Ray asks a trial's actor to stop, if this Ray allows."""
        controller = self.controller
        if controller is not None and contract.TRIAL_PROFILES in self.capabilities:
            from ray_tune_memguard.adapter.run.stops import observe_stops

            observe_stops(controller, observer)

    def trials_by_pid(self, node_id: str | None) -> dict[int, tuple[str, str]]:
        """Id and name of the trials that run on a node, by their processes.

        Args:
            node_id: the node; None for all nodes.
        """
        controller = self.controller
        if controller is None or contract.TRIAL_DEATHS not in self.capabilities:
            return {}
        from ray_tune_memguard.adapter.run.failures import trials_by_pid

        return trials_by_pid(controller, node_id, core_names.CLUSTER_STATE in self.capabilities)

    def running_trials(self) -> int:
        """The number of trials that run; 0 if this Ray does not tell."""
        controller = self.controller
        if controller is None or contract.TRIAL_DEATHS not in self.capabilities:
            return 0
        # Trials that wait for their actor are there as well.
        return [trial.status for trial in controller._trial_to_actor].count("RUNNING")

    def node_probes(self, user: object) -> NodeProbes | None:
        """What asks the nodes of the cluster; the callbacks of a run share it.

        Args:
            user: the callback. It calls ``give_back(user)`` when the run ends.

        Returns:
            The probes; None if no controller called the hook.
        """
        controller = self.controller
        if controller is None:
            return None
        from ray_tune_memguard.cluster.probe import NodeProbes

        if controller not in _probes:
            _probes[controller] = NodeProbes(Notices())
        return _probes[controller].take(user)

    def trial_memory(self) -> TrialMemories:
        """What the trials of the run use; empty unless a ``TrialMemoryReporter`` measures it."""
        from ray_tune_memguard.cluster.trial_memory import TrialMemories

        controller = self.controller
        if controller is None:
            return TrialMemories()
        return _memories.setdefault(controller, TrialMemories())

    def actor_id(self, trial: Trial) -> str | None:
        """The id of the actor that runs a trial; None if there is none or Ray does not tell."""
        actor = trial.temporary_state.ray_actor
        if actor is None or contract.TRIAL_MEMORY not in self.capabilities:
            return None
        from ray_tune_memguard.cluster import gcs

        return gcs.actor_id_or_none(actor)

    def actor_of(self, trial: Trial) -> ActorHandle[object] | None:
        """The actor that runs a trial; None if there is none or Ray does not tell.

        Whoever keeps the handle keeps the actor's process alive.
        """
        if contract.TRIAL_PROFILES not in self.capabilities:
            return None
        return trial.temporary_state.ray_actor

    def directory_of(self, trial: Trial) -> tuple[FileSystem, str]:
        """The directory of a trial in the experiment's storage."""
        assert trial.storage is not None
        return trial.storage.storage_filesystem, str(trial.path)

    def memory_of_nodes(self, user: object) -> tuple[MonitorSettings, ClusterMemory] | None:
        """The settings of Ray's memory monitor, and the memory of all nodes.

        Args:
            user: the callback. It calls :meth:`release_nodes` when the run ends.

        Returns:
            None if no controller called the hook, or on a Ray that cannot tell.
        """
        if self.controller is None or core_names.CLUSTER_STATE not in self.capabilities:
            return None
        from ray_tune_memguard.cluster.monitor import monitor_settings
        from ray_tune_memguard.cluster.node_readings import ClusterMemory
        from ray_tune_memguard.system.node_memory import NodeMemoryReader
        from ray_tune_memguard.system.ray_processes import RayProcesses

        raylet = RayProcesses(self.ray_session()).raylet_pid()
        monitor = monitor_settings(raylet)
        reader = NodeMemoryReader(monitor, raylet)
        return monitor, ClusterMemory(reader, monitor, self.node_probes(user))

    def release_nodes(self, user: object) -> None:
        """The callback asks the nodes no more."""
        probes = _probes.get(self.controller) if self.controller is not None else None
        if probes is not None:
            probes.give_back(user)

    def watch_launches(self, nodes: Callable[[], Sequence[str]]) -> Launches | None:
        """Let a gate be asked before each start of an actor, if this Ray allows.

        Args:
            nodes: the ids of the nodes that are alive.
        """
        controller = self.controller
        if controller is None or contract.LAUNCH_GATE not in self.capabilities:
            return None
        from ray_tune_memguard.adapter.run.launches import watch_launches

        launches = watch_launches(controller, self.capabilities, nodes)
        self._launches = launches
        return launches

    def open_gate(self) -> None:
        """Start all trials without asking the gate."""
        if self._launches is not None:
            self._launches.gate = None

    def gate_memory(self, own_node: str) -> TrialMemory:
        """The memory of the run's trials, for the launch gate.

        Args:
            own_node: the id of the driver's node.
        """
        from ray_tune_memguard.adapter.run.trial_memory import RunTrialMemory

        assert self.controller is not None
        return RunTrialMemory(self.controller, own_node, self.trial_memory())

    def can_pause_trials(self) -> bool:
        """Whether a running trial can be paused from outside its scheduler."""
        controller = self.controller
        if controller is None or contract.SHED_TRIALS not in self.capabilities:
            return False
        from ray_tune_memguard.adapter.run.relief import can_pause

        return can_pause(controller)

    def pause_newest(self, trial_ids: Collection[str]) -> str | None:
        """Pause the newest of these trials that has a checkpoint; its id, or None."""
        from ray_tune_memguard.adapter.run.relief import pause_newest

        assert self.controller is not None
        return pause_newest(self.controller, trial_ids)

    def end_resumably(self) -> bool:
        """End the run, whose controller is calling a hook, so that it can be resumed.

        Returns:
            Whether it will end.
        """
        if contract.STOP_IN_TIME not in self.capabilities:
            return False
        from ray_tune_memguard.adapter.run.relief import end_run_resumably

        return end_run_resumably()

    def retention_sites(self) -> ModuleType | None:
        """The module that finds retention sites; None if this Ray lacks a name that it needs."""
        if self.controller is None or contract.RETENTION_SITES not in self.capabilities:
            return None
        from ray_tune_memguard.adapter import retention_sites

        return retention_sites

    def ray_session(self) -> str | None:
        """The name of this driver's Ray session; it is in the command lines of Ray's processes."""
        if core_names.RAY_PROCESSES not in self.capabilities:
            return None
        from ray_tune_memguard.cluster.session import session_directory

        directory = session_directory()
        return None if directory is None else directory.name

    def report_path(self, trials: Sequence[Trial], kind: str, suffix: str) -> Path | None:
        """The path of the file for a report about the run.

        Args:
            trials: the run's trials. They give the directory on a Ray that cannot spill.
            kind: the beginning of the file's name.
            suffix: the end of the file's name.

        Returns:
            The path; None on a Ray that cannot spill while the run has no trials.
        """
        controller = self.controller
        if controller is not None and contract.SPILL in self.capabilities:
            from ray_tune_memguard.adapter.location import RunLocation

            location = RunLocation.of(controller)
            return location.report_directory / f"{kind}-{location.session}{suffix}"
        experiment = getattr(trials[0], "local_experiment_path", None) if trials else None
        name = time.strftime(f"{kind}-%Y-%m-%d_%H-%M-%S{suffix}")
        return Path(experiment, ".memguard", name) if experiment else None


def disk_errors() -> tuple[type[Exception], ...]:
    """The exceptions that a full, missing or read-only disk raises, directly or through SQLite."""
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


def export_files(path: str, filesystem: FileSystem | None, destination: Path | None) -> None:
    """See :func:`ray_tune_memguard.exporting.export_results`."""
    _require(contract.OPEN, contract.HISTORIES, contract.EXPORT)
    from ray_tune_memguard.adapter.histories.export_experiment import export_files

    export_files(path, filesystem, destination)


def results_of(
    path: str, filesystem: FileSystem | None
) -> Iterator[tuple[str | None, dict[str, object]]]:
    """See :func:`ray_tune_memguard.reading.iter_results`."""
    _require(contract.OPEN)
    from ray_tune_memguard.adapter.analysis import result_stream

    return result_stream.results_of(path, filesystem)


def examine(path: str, filesystem: FileSystem | None, *, errored: str = "skip") -> Examination:
    """See :func:`ray_tune_memguard.adapter.restore.offline.examine`.

    Args:
        path: the experiment's directory, or its URI.
        filesystem: of ``path``; None for the one that ``path`` tells.
        errored: what becomes of failed trials: ``skip``, ``resume`` or ``restart``.

    Raises:
        RuntimeError: this Ray lacks a name that a restore needs.
    """
    _require(contract.OPEN, contract.RESUME)
    from ray.tune import ResumeConfig

    from ray_tune_memguard.adapter.restore import offline

    treatment = ResumeConfig.ResumeType[errored.upper()]
    resume_config = ResumeConfig(errored=treatment)  # type: ignore[arg-type]
    return offline.examine(path, filesystem, resume_config)


def import_experiment(path: str, filesystem: FileSystem | None) -> Import:
    """See :func:`ray_tune_memguard.adapter.restore.offline.import_experiment`."""
    _require(contract.OPEN)
    from ray_tune_memguard.adapter.restore import offline

    return offline.import_experiment(path, filesystem)


def location_of(path: str | os.PathLike[str], filesystem: FileSystem | None) -> str:
    """The path of an experiment that a user has given: absolute if it is a local one."""
    location = os.fspath(path)
    if filesystem is None and "://" not in location:
        return os.path.abspath(os.path.expanduser(location))
    return location


def _require(*needed: str) -> None:
    capabilities = contract.probe()
    if not capabilities.on.issuperset(needed):
        raise RuntimeError(capabilities.warning())
