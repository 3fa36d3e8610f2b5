"""Opening an experiment of any size in little memory, with or without MemGuard in its runs."""

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
    """Open an experiment; each of its results is read from disk when it is asked for.

    An experiment that ran without MemGuard is read once, with a progress bar, and gets a trial
    store (``.memguard/`` in its directory; where that cannot be written, a temporary one for this
    process). From then on ``Tuner.restore(path, ...).get_results()``, ``ExperimentAnalysis(path)``
    and this function open it at once, and ``Tuner.restore(path, ...).fit()`` goes on from it
    without loading what is finished. Nothing of Ray's own files is changed.

    Args:
        path: The experiment's directory, or its URI (``s3://…``).
        metric: The metric that ``get_best_result()`` uses unless it is given one.
        mode: ``"min"`` or ``"max"``, which ``get_best_result()`` uses likewise.
        storage_filesystem: As for :meth:`ray.tune.Tuner.restore`.

    Returns:
        Ray's own ``ResultGrid``.

    Raises:
        ValueError: ``mode`` is neither of these, or there is no experiment at ``path``.
    """
    if mode not in (None, "min", "max"):
        raise ValueError(f"mode is {mode!r}; it must be 'min', 'max' or None.")
    location = os.fspath(path)
    if storage_filesystem is None and "://" not in location:
        location = os.path.abspath(os.path.expanduser(location))
    return handle.open_experiment(location, metric, mode, storage_filesystem)


def install() -> None:
    """Let Ray open and resume experiments from their trial stores. Importing the package does so.

    A few functions of Ray Tune are wrapped; they act differently only on an experiment with a trial
    store, and on a run whose trials are spilled. Call it to undo :func:`uninstall`.
    """
    handle.install_patches()


def uninstall() -> None:
    """Put Ray's own functions back, for the rest of the process.

    Ray then opens and resumes every experiment from its experiment state file, and reads all
    results when a run ends. A run that is under way goes on spilling.

    Example:
        >>> import ray_tune_memguard
        >>> ray_tune_memguard.uninstall()
        >>> ray_tune_memguard.install()
    """
    handle.remove_patches()
