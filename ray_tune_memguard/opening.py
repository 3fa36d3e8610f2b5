"""Opens experiments of any size in little memory, also those that ran without MemGuard."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ray_tune_memguard.adapter import handle

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem
    from ray.tune import ResultGrid


def open_experiment(
    path: str | os.PathLike[str],
    *,
    metric: str | None = None,
    mode: str | None = None,
    storage_filesystem: FileSystem | None = None,
) -> ResultGrid:
    """Open an experiment, and read each of its results from disk on access.

    If the experiment ran without MemGuard, this function reads it once, with a progress bar, and
    builds a trial store in ``.memguard/`` in its directory, or a temporary one for this process if
    that directory cannot be written. Afterwards ``Tuner.restore(path, ...).get_results()``,
    ``ExperimentAnalysis(path)`` and this function open it without reading all trials, and
    ``Tuner.restore(path, ...).fit()`` resumes it without loading finished trials. Ray's own files
    do not change.

    Args:
        path: the experiment's directory, or its URI (``s3://…``).
        metric: the default metric of ``get_best_result()``.
        mode: the default mode of ``get_best_result()``, ``"min"`` or ``"max"``.
        storage_filesystem: the file system of ``path``, as for :meth:`ray.tune.Tuner.restore`.

    Returns:
        Ray's own ``ResultGrid``.

    Raises:
        ValueError: ``mode`` is not allowed, or there is no experiment at ``path``.

    Examples:
        >>> from ray_tune_memguard import open_experiment
        >>> grid = open_experiment(experiment, metric="loss", mode="min")
        >>> len(grid)
        0
    """
    if mode not in (None, "min", "max"):
        raise ValueError(f"mode is {mode!r}; it must be 'min', 'max' or None.")
    location = handle.location_of(path, storage_filesystem)
    return handle.open_experiment(location, metric, mode, storage_filesystem)


def install() -> None:
    """Let Ray open and resume experiments from their trial stores. Importing the package calls
    this.

    The function wraps a few functions of Ray Tune. The wrappers act only on experiments with a
    trial store and on runs whose trials are spilled. Call it to undo :func:`uninstall`.

    Examples:
        >>> import ray_tune_memguard
        >>> ray_tune_memguard.install()
    """
    handle.install_patches()


def uninstall() -> None:
    """Restore Ray's own functions for the rest of the process.

    Ray then opens and resumes every experiment from its experiment state file, and reads all
    results when a run ends. A run that is under way continues to spill.

    Examples:
        >>> import ray_tune_memguard
        >>> ray_tune_memguard.uninstall()
        >>> ray_tune_memguard.install()
    """
    handle.remove_patches()
