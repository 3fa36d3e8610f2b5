"""Gives the empty directories of finished trials to new trials.

Ray makes a directory for each trial in its staging directory, and with the results in a store
nothing comes into it. Removing it makes the next ones dear: after 80,000 of them, ext4 takes 1 ms
for a new directory, and 0.02 ms at first. So an empty one is renamed for a new trial.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray_tune_memguard.adapter.seam import Controller

# Results are committed every 0.1 s, with the trials that have ended since.
_MOST = 64
# By the path of the experiment's staging directory.
_of_runs: weakref.WeakValueDictionary[str, SpareDirectories] = weakref.WeakValueDictionary()


class SpareDirectories:
    """The empty directories in the staging directory of one run.

    Args:
        root: the path of the staging directory, as Ray gives it.
    """

    def __init__(self, root: str) -> None:
        self._root = root
        self._spare: list[str] = []
        _of_runs[root] = self

    @classmethod
    def of_run(cls, controller: Controller) -> SpareDirectories:
        return cls(str(controller._storage.experiment_driver_staging_path))

    def take(self, directory: str) -> None:
        """Keep the directory of a trial that has ended for another one, if nothing is in it."""
        if len(self._spare) < _MOST and os.path.dirname(directory) == self._root:
            self._spare.append(directory)
        else:
            _remove(directory)

    def give(self, name: str) -> None:
        """Rename a spare directory; without one, nothing happens.

        Args:
            name: of the new trial's directory, which is not there.
        """
        while self._spare:
            spare = self._spare.pop()
            with suppress(OSError):
                # A callback may have put something into it after the trial had ended.
                if not os.listdir(spare):
                    os.rename(spare, os.path.join(self._root, name))
                    return

    def remove(self) -> None:
        """Remove those that nobody has put anything into."""
        spare, self._spare = self._spare, []
        for directory in spare:
            _remove(directory)


def _remove(directory: str) -> None:
    with suppress(OSError):
        os.rmdir(directory)


def unique_name(original: Callable[[str, str], str], root: str, relative_logdir: str) -> str:
    """Stands in for Ray's function that names a new trial's directory, which Ray then makes."""
    name = original(root, relative_logdir)
    spare = _of_runs.get(root)
    if spare is not None:
        spare.give(name)
    return name
