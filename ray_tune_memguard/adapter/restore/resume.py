"""Resumes an experiment: ``locate → verify (or rebuild) → plan → apply``.

The trial store also has the trials that finished after the last experiment checkpoint. They do not
run again; the searcher, which was saved with that checkpoint, receives their results. If no new
store can be written, all trials are resumed in memory.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from ray.tune import ResumeConfig

from ray_tune_memguard.adapter.claims import end_abandoned_runs
from ray_tune_memguard.adapter.contract import Capabilities, emptied_by_rollback
from ray_tune_memguard.adapter.installation import installation_of
from ray_tune_memguard.adapter.restore.apply import apply, apply_in_memory
from ray_tune_memguard.adapter.restore.locate import Experiment, locate
from ray_tune_memguard.adapter.restore.plan import plan
from ray_tune_memguard.adapter.restore.rebuild import verify_or_rebuild
from ray_tune_memguard.notices import Notices, logger, show_lines
from ray_tune_memguard.store.errors import StoreError


def resume(
    controller: Any,
    resume_config: ResumeConfig,
    spill_dir: Path | None,
    capabilities: Capabilities,
    notices: Notices,
) -> bool:
    """Do what ``TuneController.resume`` does, with finished trials left on disk.

    Args:
        controller: the new run's controller.
        resume_config: which trials are to run again.
        spill_dir: the user's directory for trial stores; None for the default.
        capabilities: what this Ray allows.
        notices: the log of the run's warnings.

    Returns:
        Whether the run is resumed. Otherwise Ray's own method is to be called, which also reports
        that there is nothing to resume.
    """
    try:
        experiment = Experiment.of(controller)
        end_abandoned_runs(experiment.path)
        found = verify_or_rebuild(locate(experiment, spill_dir))
        if found is None:
            return False
        restore_plan = plan(found, resume_config)
        # The callbacks, whose setup calls this as well, are set up only after a restore.
        show_lines()
        logger.info(
            "Restoring the run from the trial store %s: %s.", found.store.path, restore_plan
        )
        try:
            apply(restore_plan, found, controller, resume_config, spill_dir, capabilities, notices)
        except Exception as error:
            _roll_back(controller)
            logger.warning(
                "The run cannot be resumed with its finished trials on disk (%r). All trials are "
                "resumed in memory instead, and spilled as soon as that is possible.",
                error,
                exc_info=_is_unexpected(error),
            )
            apply_in_memory(restore_plan, found, controller, resume_config, capabilities)
        found.close()
    except Exception as error:
        # On an error here Ray would begin the experiment from scratch.
        _roll_back(controller)
        logger.warning(
            "This experiment cannot be resumed from its trial store (%r). Ray resumes it from the "
            "experiment state file: trials that finished after the last experiment checkpoint run "
            "again.",
            error,
            exc_info=_is_unexpected(error),
        )
        return False
    return True


def _is_unexpected(error: Exception) -> bool:
    return not isinstance(error, (OSError, sqlite3.Error, StoreError))


def _roll_back(controller: Any) -> None:
    """Remove the trials that the failed restore has added."""
    installation = installation_of(controller)
    if installation is not None:
        installation.discard()
    controller._trials = []
    for name in emptied_by_rollback():
        getattr(controller, name).clear()
