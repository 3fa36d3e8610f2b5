"""Where an experiment is, and where a run puts its files.

Both are values: :meth:`RunLocation.of` takes them of the run's controller once, and what writes or
reads files needs no controller.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from pyarrow.fs import FileSystem, LocalFileSystem

from ray_tune_memguard.adapter import paths
from ray_tune_memguard.store.state_file import can_take_turns, remove_spares

if TYPE_CHECKING:
    from ray.train._internal.storage import StorageContext

    from ray_tune_memguard.adapter.seam import Controller


@dataclass(frozen=True)
class Experiment:
    """The location of an experiment: ``path`` is its directory in ``filesystem``."""

    filesystem: FileSystem
    path: str

    @classmethod
    def at(cls, path: str, filesystem: FileSystem | None) -> Experiment:
        """The experiment at a path, or at a URI if no file system is given."""
        # A Ray without this name loses what opens experiments, and runs still spill.
        from ray.train._internal.storage import get_fs_and_path

        filesystem, inner = get_fs_and_path(path, filesystem)
        return cls(filesystem, inner.rstrip("/"))

    # A trial's storage context gets these values, because the experiment may have been moved.
    @property
    def storage_filesystem(self) -> FileSystem:
        return self.filesystem

    @property
    def storage_fs_path(self) -> str:
        return str(PurePosixPath(self.path).parent)

    @property
    def experiment_dir_name(self) -> str:
        return PurePosixPath(self.path).name

    #: Trials that are only read upload nothing.
    syncer = None

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, LocalFileSystem)

    def newest_state_file(self) -> str | None:
        """The path of the newest run's complete experiment state file."""
        return paths.newest_state_file(self.filesystem, self.path)

    def is_at(self, path: str | None) -> bool:
        """Whether ``path`` is the path of this experiment, in any spelling."""
        if path is None or path == self.path:
            return path is not None
        # Through a symbolic link, or with a slash at the end.
        return self.is_local and os.path.realpath(path) == os.path.realpath(self.path)

    def store_directory(self) -> Path | None:
        """The default directory for new trial stores; None without a local disk."""
        return next(iter(self.store_directories()), None)

    def store_directories(self) -> list[Path]:
        """The directories that hold its trial stores by default, the current one first."""
        return paths.directories_in(self.path) if self.is_local else []


@dataclass(frozen=True)
class RunLocation:
    """Where the files of one run go.

    Attributes:
        experiment: the location of the run's experiment.
        session: Ray's name for the run: the time at which it began.
        state_file_name: the name of its experiment state file.
    """

    experiment: Experiment
    session: str
    state_file_name: str
    #: A copy of Ray's own, which finds the staging directory.
    _storage: StorageContext

    @classmethod
    def of(cls, controller: Controller) -> RunLocation:
        storage = controller._storage
        return cls(
            Experiment(storage.storage_filesystem, str(storage.experiment_fs_path)),
            str(controller._session_str),
            Path(controller.experiment_state_path).name,
            copy.copy(storage),
        )

    @property
    def staging(self) -> Path:
        """The directory in which Ray's driver collects files for the experiment's storage."""
        return Path(self._storage.experiment_driver_staging_path)

    @property
    def timestamp(self) -> str:
        """The part of the staging directory's path that a restored run has of the run before."""
        return str(self._storage._timestamp)

    @property
    def work_directory(self) -> Path:
        """The directory for files that only this process needs."""
        return paths.work_directory(self.staging)

    @property
    def report_directory(self) -> Path:
        """The directory for reports about the run; they end up in the experiment's storage."""
        # Ray uploads its staging directory to the storage at every experiment checkpoint.
        return self.experiment.store_directory() or self.staging / paths.DIRECTORY

    @property
    def store_directory(self) -> Path:
        """The directory for the trial store: in the experiment's if that is a local path.

        Otherwise beside Ray's staging directory. Not in it: Ray uploads that directory, and a copy
        made while a database is written is damaged.
        """
        return self.experiment.store_directory() or self.work_directory

    def staged_as(self, timestamp: str) -> RunLocation:
        """This location, with the staging directory of the run that began at ``timestamp``."""
        storage = copy.copy(self._storage)
        storage._timestamp = timestamp
        return replace(self, _storage=storage)

    def after_earlier_runs(self, state_file: str | None) -> RunLocation:
        """This location, with a later name of the run than every earlier run has.

        Ray names a run by the time at which it begins, and restores the run with the latest name.
        If the clock was set back in the meantime, that would be an earlier run.

        Args:
            state_file: the newest state file of the experiment; None if there is none.
        """
        names = [paths.run_of_store(path)[0] for path in paths.stores_in(self.store_directory)]
        if state_file is not None:
            names.append(paths.run_of_state_file(state_file))
        latest = paths.latest_run(names)
        later = paths.next_run(latest) if self.session < latest else None
        if later is None:
            return self
        name = self.state_file_name.replace(self.session, later)
        return replace(self, session=later, state_file_name=name)

    def state_file_and_work_directory(self) -> tuple[Path, Path]:
        """The path of the experiment state file, and the directory of its spare on the same disk.

        The run writes it directly to the experiment's directory if two files there can replace each
        other, which saves an upload of 700 MB at each experiment checkpoint of 100,000 trials.
        Otherwise the run writes it where Ray does, and Ray uploads it.
        """
        work = self.experiment.store_directory()
        if work is not None:
            work.mkdir(parents=True, exist_ok=True)
            if can_take_turns(work, Path(self.experiment.path)):
                for directory in self.experiment.store_directories():
                    remove_spares(directory)
                published = Path(self.experiment.path, self.state_file_name)
                paths.is_published_at(published, self.staging)
                return published, work
        return self.staging / self.state_file_name, self.work_directory

    def listing(
        self, known_directories: Callable[[Sequence[str]], set[str]]
    ) -> paths.StagingListing:
        """The listing of the staging directory, see :class:`~.paths.StagingListing`."""
        return paths.StagingListing(
            self.staging, self.session, self.state_file_name, known_directories
        )
