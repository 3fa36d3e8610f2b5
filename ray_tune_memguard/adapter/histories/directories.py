"""Takes away the empty directories of finished trials, and gives them to new trials.

Ray makes a directory for each trial in its staging directory, and with the results in a store
nothing comes into it. Removing it makes the next ones dear: after 80,000 of them, ext4 takes 1 ms
for a new directory, and 0.02 ms at first. So an empty one is put aside and becomes a new trial's.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from pyarrow.fs import LocalFileSystem

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

    from ray_tune_memguard.adapter.seam import Controller

# Results are committed every 0.1 s, with the trials that have ended since.
_MOST = 64
# Beside the staging directory, which is uploaded.
_SUFFIX = "-spare"
# By the path of the experiment's staging directory.
_of_runs: weakref.WeakValueDictionary[str, TrialDirectories] = weakref.WeakValueDictionary()


class TrialDirectories:
    """The directories of one run's trials in its staging directory.

    Args:
        root: the path of the staging directory, as Ray gives it.
        stay: whether each directory stays, because others may want it after the trial has ended.
    """

    def __init__(self, root: str, stay: bool) -> None:
        self._root = root
        self.stay = stay
        self._spare: list[str] = []
        _of_runs[root] = self

    @classmethod
    def of_run(cls, controller: Controller, stay: bool) -> TrialDirectories:
        return cls(str(controller._storage.experiment_driver_staging_path), stay)

    def leave(self, trial: Trial) -> None:
        """Take away the directories of a trial that has ended, if nothing is in them.

        Ray takes a name for free if the directory in its staging directory is missing, so that one
        stays as long as the trial has anything in the storage, and if another trial may get its
        name.
        """
        storage = trial.storage
        if self.stay or storage is None or trial.checkpoint:
            return
        # Only a trial that never started has no directory: then Ray raises for its path.
        if trial.trial_id not in (trial.relative_logdir or ""):
            return
        if isinstance(storage.storage_filesystem, LocalFileSystem):
            try:
                os.rmdir(storage.trial_fs_path)
            except FileNotFoundError:
                pass
            except OSError:
                return
        elif storage.sync_config.sync_artifacts:
            return
        self._take(str(trial.local_path))

    def _take(self, directory: str) -> None:
        spare = os.path.join(f"{self._root}{_SUFFIX}", str(len(self._spare)))
        with suppress(OSError):
            if len(self._spare) >= _MOST or os.path.dirname(directory) != self._root:
                os.rmdir(directory)
            elif not os.listdir(directory):
                if not self._spare:
                    os.makedirs(os.path.dirname(spare), exist_ok=True)
                os.rename(directory, spare)
                if os.listdir(spare):  # Something came into it in this moment.
                    os.rename(spare, directory)
                else:
                    self._spare.append(spare)

    def give(self, name: str) -> None:
        """Give an empty directory to a new trial; if there is none, Ray makes one.

        Args:
            name: of the new trial's directory, which is not there.
        """
        if self._spare:
            with suppress(OSError):
                os.rename(self._spare.pop(), os.path.join(self._root, name))

    def remove_spare(self) -> None:
        """Remove what no trial has got."""
        while self._spare:
            with suppress(OSError):
                os.rmdir(self._spare.pop())
        with suppress(OSError):
            os.rmdir(f"{self._root}{_SUFFIX}")


def is_taken_away(root: str, name: str) -> bool:
    """Whether a directory in a staging directory is empty, and will not be there in the end."""
    directories = _of_runs.get(root)
    if directories is None or directories.stay:
        return False
    try:
        return not os.listdir(os.path.join(root, name))
    except OSError:  # It is a file, or not there any more.
        return False


def unique_name(original: Callable[[str, str], str], root: str, relative_logdir: str) -> str:
    """Stands in for Ray's function that names a new trial's directory, which Ray then makes."""
    name = original(root, relative_logdir)
    directories = _of_runs.get(root)
    if directories is not None:
        directories.give(name)
    return name
