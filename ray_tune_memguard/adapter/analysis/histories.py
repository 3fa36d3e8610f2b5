"""Where the history of a trial is read from: all results that it reported, in order.

:class:`Histories` is what readers need. :class:`FileHistories` reads the files of Ray's loggers.
:func:`histories_of` decides which one an experiment has.
"""

from __future__ import annotations

import os
import posixpath
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from pyarrow.fs import FileSystem, LocalFileSystem
from ray.air.constants import EXPR_PROGRESS_FILE, EXPR_RESULT_FILE

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
        self._filesystem = None if isinstance(filesystem, LocalFileSystem) else filesystem
        self._experiment = experiment.rstrip("/")
        self._staging = staging

    def lines(self, trial_id: str, directory: str) -> bytes | None:
        return self._latest(directory, EXPR_RESULT_FILE)

    def csv(self, directory: str) -> bytes | None:
        return self._latest(directory, EXPR_PROGRESS_FILE)

    def _latest(self, directory: str, name: str) -> bytes | None:
        stored = self._stored(f"{self._experiment}/{directory}/{name}")
        if self._staging is not None:
            with suppress(OSError):
                staged = _content(os.path.join(self._staging, directory, name))
                # Results are only appended.
                if stored is None or len(staged) > len(stored):
                    return staged
        return stored

    def _stored(self, path: str) -> bytes | None:
        try:
            if self._filesystem is None:
                return _content(path)
            with self._filesystem.open_input_stream(path) as stream:
                content: bytes = stream.readall()
                return content
        except (FileNotFoundError, NotADirectoryError):
            return None

    def directories(self) -> list[str]:
        """The names of all directories in which trials may have written files, sorted."""
        from pyarrow.fs import FileSelector, FileType

        found: set[str] = set()
        if self._filesystem is None:
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


def histories_of(trials: SpilledTrials[TrialT], staging: Path | None = None) -> Histories | None:
    """What the histories of these trials are read from; None if only Ray's own code knows.

    Args:
        trials: the trials of one experiment.
        staging: see :class:`FileHistories`.
    """
    codec = trials.cache.codec
    if not isinstance(codec, TrialStateCodec):
        return None
    return FileHistories(codec.filesystem, codec.experiment_path, staging)


def _content(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.readall()


def _directories_in(path: str | Path) -> list[str]:
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(path) as entries:
        return [entry.name for entry in entries if entry.is_dir()]
    return []
