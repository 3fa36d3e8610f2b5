"""Resuming a run: ``locate → verify (or rebuild) → plan → apply``.

The trial store has what finished after the last experiment checkpoint as well. Such trials do not
run again; the searcher, whose state is that of the checkpoint, is told of them. If no new store can
be written, all trials are resumed in memory.
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
        controller: of the new run.
        resume_config: which trials are to run again.
        spill_dir: where trial stores go, if the user wants them elsewhere.
        capabilities: what this Ray allows.
        notices: where warnings go.

    Returns:
        Whether the run is resumed. Otherwise Ray's own method is to be called, which also says if
        there is nothing to resume.
    """
    try:
        experiment = Experiment.of(controller)
        end_abandoned_runs(experiment.path)
        found = verify_or_rebuild(locate(experiment, spill_dir))
        if found is None:
            return False
        restore_plan = plan(found, resume_config)
        # The callbacks that do so are set up only when the run is resumed.
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
        # Ray's own answer to an error here is to begin the experiment from scratch.
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
    """Remove the trials that were added so far."""
    installation = installation_of(controller)
    if installation is not None:
        installation.discard()
    controller._trials = []
    for name in emptied_by_rollback():
        getattr(controller, name).clear()
