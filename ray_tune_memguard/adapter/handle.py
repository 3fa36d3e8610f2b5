"""The door to Ray's private parts: all that the callbacks use of this room.

Importing it needs nothing private of Ray's; the rest of the room is imported once the probe has
said that this Ray is known.
"""

from __future__ import annotations

import sqlite3
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ray_tune_memguard.adapter import contract as probe
from ray_tune_memguard.notices import Notices

if TYPE_CHECKING:
    from ray.tune import ResultGrid

    from ray_tune_memguard.adapter.run.spiller import Sweep

# By controller: which callback of ours does which part. So two guards do not both act. Weakly, as
# a callback refers to the controller.
_claims: weakref.WeakKeyDictionary[Any, dict[str, weakref.ref[Any]]] = weakref.WeakKeyDictionary()


def controller() -> Any | None:
    """The controller of the sweep whose hook is being called; None on a Ray we do not know."""
    try:
        from ray_tune_memguard.adapter.paths import calling_controller
    except ImportError:
        return None
    return calling_controller()


def claim(part: str, owner: object) -> bool:
    """Whether ``owner`` is the one that does ``part`` for the calling sweep; the first is."""
    sweep = controller()
    if sweep is None:
        return True
    return _claims.setdefault(sweep, {}).setdefault(part, weakref.ref(owner))() is owner


def unknown_ray() -> str | None:
    """Why this Ray's sweeps are left alone; None if it is one that we know."""
    sweep = controller()
    if sweep is None:
        missing = ["a TuneController that calls Callback.setup"]
    else:
        missing = probe.missing_names(sweep)
    if not missing:
        return None
    return (
        f"Ray {probe.ray_version()} is not one that this version knows; it lacks "
        f"{', '.join(missing)}. Finished trials are not spilled and memory grows as it does "
        "without MemGuard; RSS is still reported."
    )


def install_patches() -> None:
    """Let Ray open and resume experiments that have a trial store; on a Ray we know."""
    if not probe.missing_module_names():
        from ray_tune_memguard.adapter.analysis import patches

        patches.install()


def open_experiment(path: str, metric: str | None, mode: str | None, filesystem: Any) -> ResultGrid:
    """See :func:`ray_tune_memguard.opening.open_experiment`."""
    from ray.tune import ExperimentAnalysis, ResultGrid

    if probe.missing_module_names():
        trials = None
    else:
        from ray_tune_memguard.adapter.restore import experiments

        trials = experiments.trials_of(path, filesystem)
    analysis = ExperimentAnalysis(
        path,
        storage_filesystem=filesystem,
        trials=trials,
        default_metric=metric,
        default_mode=mode,
    )
    return ResultGrid(analysis)


def ray_session() -> str | None:
    """The name of this driver's Ray session, which is in the command lines of its processes."""
    try:
        from ray._private import worker

        node: Any = worker._global_node
        return Path(node.get_session_dir_path()).name
    except (AttributeError, ImportError):
        return None


def is_pruned(sweep_controller: Any | None) -> bool:
    """Whether finished trials of the sweep are spilled."""
    if sweep_controller is None or probe.missing_module_names():
        return False
    from ray_tune_memguard.adapter.run.controller import adoption_of

    return adoption_of(sweep_controller) is not None


def store_directory(sweep_controller: Any) -> Path:
    from ray_tune_memguard.adapter import paths

    return paths.store_directory(sweep_controller)


def open_sweep(sweep_controller: Any, directory: Path, notices: Notices) -> Sweep:
    """Adopt the sweep. Raises one of :func:`disk_errors` if its store cannot be made."""
    from ray_tune_memguard.adapter.run.spiller import Sweep

    resumed = Sweep.of(sweep_controller)
    if resumed is not None:
        resumed.report_to(notices)
        return resumed
    return Sweep.begin(sweep_controller, directory, notices)


def disk_errors() -> tuple[type[Exception], ...]:
    """What a disk that is full, gone or read-only raises, here or inside SQLite."""
    return (OSError, sqlite3.OperationalError)


def holders() -> ModuleType | None:
    """The room's knowledge of who can hold memory; None on a Ray we do not know."""
    if unknown_ray() is not None:
        return None
    from ray_tune_memguard.adapter import retention_sites as known

    return known


def is_users_type(full_name: str) -> bool:
    """Whether a type of this name is neither Ray's nor a library's; False if that is not known."""
    known = holders()
    return known is not None and bool(known.is_users_module(full_name.rpartition(".")[0]))


def report_path(trials: Sequence[Any], kind: str, suffix: str) -> Path | None:
    """Where a report on the calling sweep goes; None where this Ray does not tell.

    ``trials``: those of the sweep. On a Ray we do not know their public path is all there is.
    ``kind`` and ``suffix``: how the file's name begins and ends.
    """
    try:
        from ray_tune_memguard.adapter import paths

        sweep = controller()
        return paths.report_directory(sweep) / f"{kind}-{paths.session_name(sweep)}{suffix}"
    except (ImportError, AttributeError):
        experiment = getattr(trials[0], "local_experiment_path", None) if trials else None
        name = time.strftime(f"{kind}-%Y-%m-%d_%H-%M-%S{suffix}")
        return Path(experiment, "memguard", name) if experiment else None
