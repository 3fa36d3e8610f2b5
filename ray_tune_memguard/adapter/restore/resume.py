"""Resumes an experiment: ``locate → verify (or rebuild) → plan → begin → apply``.

The trial store also has the trials that finished after the last experiment checkpoint. They do not
run again; the searcher, which was saved with that checkpoint, receives their results. If no new
store can be written, all trials are resumed in memory.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

from ray_tune_memguard.adapter import boundary
from ray_tune_memguard.adapter.claims import end_abandoned_runs
from ray_tune_memguard.adapter.restore.apply import apply, apply_in_memory
from ray_tune_memguard.adapter.restore.begin import begin
from ray_tune_memguard.adapter.restore.locate import locate
from ray_tune_memguard.adapter.restore.new_run import NewRun
from ray_tune_memguard.adapter.restore.plan import plan
from ray_tune_memguard.adapter.restore.rebuild import verify_or_rebuild
from ray_tune_memguard.adapter.restore.staged_files import fetch_trial_files
from ray_tune_memguard.notices import logger, show_lines
from ray_tune_memguard.store.errors import StoreError

if TYPE_CHECKING:
    from ray_tune_memguard.adapter.seam import Controller


def resume(run: NewRun, controller: Controller) -> bool:
    """Do what ``TuneController.resume`` does, with finished trials left on disk.

    Args:
        run: the new run.
        controller: its controller.

    Returns:
        Whether the run is resumed. Otherwise Ray's own method is to be called, which also reports
        that there is nothing to resume.
    """
    try:
        end_abandoned_runs(run.location.experiment.path)
        ref = locate(run.location.experiment, run.spill_dir)
        found = verify_or_rebuild(ref)
        if found is None:
            return False
        restore_plan = plan(found, run.resume_config)
        state_file = None if ref.state_file is None else ref.state_file.path
        run = run.continuing(restore_plan.first_record(found.store), state_file)
        # The callbacks, whose setup calls this as well, are set up only after a restore.
        show_lines()
        logger.info(
            "Restoring the run from the trial store %s: %s.", found.store.path, restore_plan
        )
        unsent = fetch_trial_files(restore_plan, found, run.location.staging)
        try:
            begun = begin(restore_plan, found, run, unsent)
            apply(restore_plan, found, begun, run, controller)
        except Exception as error:
            boundary.raise_if_of_signal(error)
            logger.warning(
                "The run cannot be resumed with its finished trials on disk (%r). All trials are "
                "resumed in memory instead, and spilled as soon as that is possible.",
                error,
                exc_info=_is_unexpected(error),
            )
            apply_in_memory(restore_plan, found, run, controller)
        found.close()
    except Exception as error:
        boundary.raise_if_of_signal(error)
        # On an error here Ray would begin the experiment from scratch.
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
