"""Applies a restore plan to a controller. Finished trials stay on disk.

Ray reads all trials of the experiment state file into memory and adds each to the controller. Here
only the trials that return to memory are added; the others are rows of the new run's store. Each
step of Ray's ``TuneController.resume`` is taken, in Ray's order and by Ray's own methods.

Both functions leave the controller without trials if they raise.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler

from ray_tune_memguard.adapter import paths
from ray_tune_memguard.adapter.contract import SEARCHER_CATCH_UP, emptied_by_rollback
from ray_tune_memguard.adapter.installation import Installation
from ray_tune_memguard.adapter.restore.begin import BegunRun
from ray_tune_memguard.adapter.restore.new_run import NewRun
from ray_tune_memguard.adapter.restore.plan import RestorePlan
from ray_tune_memguard.adapter.restore.searcher import catch_up
from ray_tune_memguard.adapter.restore.verify import VerifiedStore
from ray_tune_memguard.adapter.run.releasers import BLIND_TO_LIVE_TRIALS
from ray_tune_memguard.lazy.cache import TrialCache
from ray_tune_memguard.lazy.trial_list import SpilledTrials
from ray_tune_memguard.store.trial_store import SpilledRow

if TYPE_CHECKING:
    from ray_tune_memguard.adapter.seam import Controller


def apply(
    plan: RestorePlan, found: VerifiedStore, begun: BegunRun, run: NewRun, controller: Controller
) -> Installation:
    """Give the controller the trials of the plan, and install spilling in its run.

    Args:
        plan: what becomes of each trial.
        found: the trial store of the previous run.
        begun: the new run's files.
        run: the new run.
        controller: its controller, without any trials.

    Returns:
        What is installed in the new run.

    Raises:
        Exception: an error of Ray. The new run's files are removed.
    """
    with ExitStack() as undo:
        undo.callback(begun.files.discard)
        undo.callback(_remove_trials, controller)
        returning = _restore_trials(plan, run, controller, plan.returning())
        if not begun.has_saved_states:
            controller._checkpoint_manager.sync_down_experiment_state()
        _restore_algorithms(found, run, controller)
        cache = TrialCache(begun.files.store, run.codec)
        residents = _queue(plan, returning, run, controller, cache.ghost)
        trials = SpilledTrials.reopened(residents, cache, begun.summaries)
        installation = Installation(
            controller, begun.files, run.codec, trials, run.capabilities, run.notices
        )
        undo.callback(installation.discard)
        installation.replaces = begun.replaces
        for directory in begun.unsent:
            installation.mark_for_upload(directory)
        if SEARCHER_CATCH_UP in run.capabilities:
            catch_up(controller, plan.unsnapshotted, found.snapshot.creation_count)
        undo.pop_all()
    return installation


def apply_in_memory(
    plan: RestorePlan, found: VerifiedStore, run: NewRun, controller: Controller
) -> None:
    """Give the controller the trials of the plan, all of them in memory, as Ray does.

    This needs no new trial store. In contrast to Ray's own restore, the trials that finished after
    the last experiment checkpoint are among them.

    Args:
        plan, found, run, controller: see :func:`apply`.

    Raises:
        Exception: an error of Ray.
    """
    records = [
        entry.state_record or list(json.loads(found.store.state_record(entry.trial_id)))
        for entry in plan.entries
    ]
    with ExitStack() as undo:
        undo.callback(_remove_trials, controller)
        trials = _restore_trials(plan, run, controller, records)
        controller._checkpoint_manager.sync_down_experiment_state()
        _restore_algorithms(found, run, controller)
        controller._requeue_restored_trials(trials, run.resume_config)
        if SEARCHER_CATCH_UP in run.capabilities:
            catch_up(controller, plan.unsnapshotted, found.snapshot.creation_count)
        undo.pop_all()


def _remove_trials(controller: Controller) -> None:
    """Remove the trials that a failed restore has added, also from a scheduler that waits for them.

    Ghosts among them have finished, so that no scheduler waits.
    """
    for trial in controller._trials:
        with suppress(Exception):  # The scheduler need not know it.
            controller._scheduler_alg.on_trial_remove(controller._wrapped(), trial)
    controller._trials = []
    for name in emptied_by_rollback():
        getattr(controller, name).clear()


def _restore_trials(
    plan: RestorePlan, run: NewRun, controller: Controller, records: list[list[str]]
) -> list[Trial]:
    """Restore the controller's own state, and create the trials of these records.

    Returns:
        The trials, created by Ray's own method and not added to the controller.
    """
    controller.__setstate__(dict(plan.runner_data))  # Ray removes keys from it.
    controller._session_str = run.location.session
    # Ray's method fails without trials.
    trials = controller._restore_trials({"trial_data": records}) if records else []
    controller._storage._timestamp = run.location.timestamp
    return trials


def _restore_algorithms(found: VerifiedStore, run: NewRun, controller: Controller) -> None:
    """Restore the searcher and the callbacks to their states in the snapshot."""
    staging = run.location.staging
    files = found.snapshot.files
    if files is not None:
        # These files are as old as the snapshot; those in the storage may be older.
        staging.mkdir(parents=True, exist_ok=True)
        paths.forget_later_runs(staging, paths.run_of_store(found.store.path)[0])
        for name, content in files.items():
            (staging / name).write_bytes(content)
    if controller._search_alg.has_checkpoint(str(staging)):
        controller._search_alg.restore_from_dir(str(staging))
    if controller._callbacks.can_restore(str(staging)):
        controller._callbacks.restore_from_dir(str(staging))


def _queue(
    plan: RestorePlan,
    returning: list[Trial],
    run: NewRun,
    controller: Controller,
    ghost: Callable[[SpilledRow], Trial],
) -> dict[int, Trial]:
    """Add all trials to the controller as Ray does.

    Returns:
        The trials in memory, by their new positions.
    """
    scheduler = controller._scheduler_alg
    residents = {}
    waiting = iter(returning)
    # The default scheduler's method does nothing, so it needs no ghosts of finished trials.
    needs_trials = type(scheduler).on_trial_add is not FIFOScheduler.on_trial_add
    for position, entry in enumerate(plan.entries):
        if entry.state_record is not None:
            controller._requeue_restored_trials([next(waiting)], run.resume_config)
            residents[position] = controller._trials[-1]
        elif needs_trials:
            trial = ghost(SpilledRow(position, entry.trial_id, entry.status))
            if entry.status == Trial.ERROR and type(scheduler) not in BLIND_TO_LIVE_TRIALS:
                controller._live_trials.add(trial)
            scheduler.on_trial_add(controller._wrapped(), trial)
    return residents
