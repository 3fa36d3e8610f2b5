"""Where the history of a trial is read from: all results that it reported, in order.

:class:`Histories` is what readers need. :class:`FileHistories` reads the files of Ray's loggers,
:class:`StoredHistories` the file in which a run has kept all results instead. :func:`histories_of`
decides which one an experiment has.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Protocol

from pyarrow.fs import FileSystem, LocalFileSystem
from ray.air.constants import EXPR_PROGRESS_FILE, EXPR_RESULT_FILE

from ray_tune_memguard.adapter.histories import places, reading
from ray_tune_memguard.adapter.serialization.trial_pickle import TrialStateCodec
from ray_tune_memguard.lazy.interfaces import TrialT
from ray_tune_memguard.lazy.trial_list import SpilledTrials


class Histories(Protocol):
    """Reads the histories of an experiment's trials."""

    def lines(self, trial_id: str, directory: str) -> bytes | None:
        """All results of a trial, one JSON object a line, as in Ray's ``result.json``.

        Args:
            trial_id: Ray's id of the trial.
            directory: the name of its directory in the experiment.

        Returns:
            The lines, empty if the trial reported nothing; None if they are not here.

        Raises:
            OSError, sqlite3.Error: they cannot be read now.
        """

    def csv(self, directory: str) -> bytes | None:
        """All results of a trial as in Ray's ``progress.csv``; None if it has none."""


class FileHistories:
    """Reads the files that Ray's loggers write into each trial's directory.

    Args:
        filesystem: the experiment's file system.
        experiment: the path of the experiment in it.
        staging: the driver's staging directory, from which Ray uploads these files; it may have
            later results of trials that are running, or were when their driver was killed.
    """

    def __init__(
        self, filesystem: FileSystem, experiment: str, staging: Path | None = None
    ) -> None:
        self._filesystem = filesystem
        self._experiment = experiment.rstrip("/")
        self._staging = staging

    def lines(self, trial_id: str, directory: str) -> bytes | None:
        return self._latest(directory, EXPR_RESULT_FILE)

    def csv(self, directory: str) -> bytes | None:
        return self._latest(directory, EXPR_PROGRESS_FILE)

    def _latest(self, directory: str, name: str) -> bytes | None:
        stored = reading.content_of(self._filesystem, f"{self._experiment}/{directory}/{name}")
        if self._staging is not None:
            with suppress(OSError):
                path = os.path.join(self._staging, directory, name)
                # Results are only appended.
                if stored is None or os.stat(path).st_size > len(stored):
                    staged = reading.content_of(LocalFileSystem(), path)
                    return stored if staged is None else staged
        return stored

    def directories(self) -> list[str]:
        """The names of all directories in which trials may have written files, sorted."""
        from pyarrow.fs import FileSelector, FileType

        found: set[str] = set()
        if isinstance(self._filesystem, LocalFileSystem):
            found.update(_directories_in(self._experiment))
        else:
            selector = FileSelector(self._experiment, allow_not_found=True)
            found.update(
                posixpath.basename(entry.path)
                for entry in self._filesystem.get_file_info(selector)
                if entry.type == FileType.Directory
            )
        if self._staging is not None:
            found.update(_directories_in(self._staging))
        return sorted(name for name in found if not name.startswith("."))


class StoredHistories:
    """Reads the histories that a run has kept in one file, see ``adapter/histories``.

    It looks the file up each time, because a run of this process may resume the experiment.

    Args:
        filesystem: the experiment's file system.
        experiment: the path of the experiment in it.
        files: reads the files that Ray's or a user's own loggers may have written as well.
    """

    def __init__(self, filesystem: FileSystem, experiment: str, files: FileHistories) -> None:
        self._place = filesystem, experiment.rstrip("/")
        self._files = files

    def lines(self, trial_id: str, directory: str) -> bytes | None:
        in_file = self._files.lines(trial_id, directory) if self._may_have_files else None
        store = places.find(*self._place)
        return in_file if store is None else reading.lines(store, trial_id, in_file)

    def csv(self, directory: str) -> bytes | None:
        return self._files.csv(directory) if self._may_have_files else None

    @cached_property
    def _may_have_files(self) -> bool:
        store = places.find(*self._place)
        return store is None or places.may_have_files(places.Experiment(*self._place), store)

    def knows(self, trial_id: str) -> bool:
        """Whether the trial has reported."""
        store = places.find(*self._place)
        return store is not None and store.count(trial_id) > 0

    def other_trials(self, is_known: Callable[[str], bool]) -> Iterator[str]:
        """The ids of trials that have reported, and are not known otherwise."""
        store = places.find(*self._place)
        return iter(()) if store is None else (i for i in store.trial_ids() if not is_known(i))


def histories_at(
    filesystem: FileSystem, experiment: str, staging: Path | None = None
) -> FileHistories | StoredHistories:
    """What the histories of an experiment are read from; see :class:`FileHistories`."""
    files = FileHistories(filesystem, experiment, staging)
    if places.find(filesystem, experiment.rstrip("/")) is None:
        return files
    return StoredHistories(filesystem, experiment, files)


def histories_of(trials: SpilledTrials[TrialT]) -> Histories | None:
    """What the histories of an experiment's trials are read from; None if Ray alone knows."""
    codec = trials.cache.codec
    if not isinstance(codec, TrialStateCodec):
        return None
    return histories_at(codec.filesystem, codec.experiment_path)


def _directories_in(path: str | Path) -> list[str]:
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(path) as entries:
        return [entry.name for entry in entries if entry.is_dir()]
    return []
