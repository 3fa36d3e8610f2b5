"""Applies a restore plan to a controller. Finished trials stay on disk.

Ray reads all trials of the experiment state file into memory and adds each to the controller. Here
only the trials that return to memory are added; the others become rows of the new run's store. Each
step of Ray's ``TuneController.resume`` is taken, in Ray's order and by Ray's own methods.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import ray
from ray.tune import ResumeConfig
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler

from ray_tune_memguard.adapter import paths
from ray_tune_memguard.adapter.contract import SEARCHER_CATCH_UP, Capabilities
from ray_tune_memguard.adapter.installation import Installation, RunFiles, new_summary_index
from ray_tune_memguard.adapter.restore.plan import RestorePlan
from ray_tune_memguard.adapter.restore.searcher import catch_up
from ray_tune_memguard.adapter.restore.verify import VerifiedStore
from ray_tune_memguard.adapter.run.releasers import BLIND_TO_LIVE_TRIALS
from ray_tune_memguard.adapter.serialization.state_record import reported_in_record
from ray_tune_memguard.adapter.serialization.trial_pickle import TrialStateCodec
from ray_tune_memguard.lazy.cache import TrialCache
from ray_tune_memguard.lazy.summaries import TrialSummaryIndex
from ray_tune_memguard.lazy.trial_list import SpilledTrials
from ray_tune_memguard.notices import Notices, logger
from ray_tune_memguard.store.snapshot import Snapshot
from ray_tune_memguard.store.state_file import ExperimentStateFile
from ray_tune_memguard.store.trial_store import SpilledRow, TrialStore

_RECORDS_AT_ONCE = 256


def apply(
    plan: RestorePlan,
    found: VerifiedStore,
    controller: Any,
    resume_config: ResumeConfig,
    spill_dir: Path | None,
    capabilities: Capabilities,
    notices: Notices,
) -> Installation:
    """Give the controller the trials of the plan, and create the new run's files.

    Args:
        plan: what becomes of each trial.
        found: the trial store of the previous run.
        controller: the new run's controller, without any trials.
        resume_config: which trials are to run again.
        spill_dir: the user's directory for trial stores; None for the default.
        capabilities: what this Ray allows.
        notices: the log of the run's warnings.

    Returns:
        What is installed in the new run.

    Raises:
        Exception: an error of Ray or of the disk. The new run's files are removed; the controller
            may have some of the trials.
    """
    codec = TrialStateCodec(
        controller._storage, prepare=_preparation(controller._placeholder_resolvers)
    )
    controller.__setstate__(dict(plan.runner_data))  # Ray removes keys from it.
    returning = _make_trials(plan, found, controller, codec)
    _restore_algorithms(found, controller)
    fetched = _fetch_trial_files(plan, found, controller)
    files = RunFiles.create(controller, spill_dir or paths.store_directory(controller))
    store = files.store
    try:
        with store.transaction():
            store.copy_rows(
                found.store, ((int(old.position), position) for position, old in plan.staying())
            )
        _begin_state_file(files.state_file, store)
        cache = TrialCache(store, codec)
        residents = _queue(plan, returning, controller, resume_config, cache)
        trials = SpilledTrials.reopened(residents, cache, _summaries(plan, found.snapshot))
        installation = Installation(controller, files, codec, trials, capabilities, notices)
    except BaseException:
        files.discard()
        raise
    for directory in fetched:
        installation.mark_for_upload(directory)
    if SEARCHER_CATCH_UP in capabilities:
        catch_up(controller, plan.unsnapshotted, found.snapshot.creation_count)
    if found.is_owned():
        installation.replaces = found.store.path
    return installation


def apply_in_memory(
    plan: RestorePlan,
    found: VerifiedStore,
    controller: Any,
    resume_config: ResumeConfig,
    capabilities: Capabilities,
) -> None:
    """Give the controller the trials of the plan, all of them in memory, as Ray does.

    This needs no new trial store. In contrast to Ray's own restore, the trials that finished after
    the last experiment checkpoint are among them.

    Args:
        plan, found, controller, resume_config, capabilities: see :func:`apply`.

    Raises:
        Exception: an error of Ray. The controller may have some of the trials.
    """
    controller.__setstate__(dict(plan.runner_data))  # Ray removes keys from it.
    records = [
        entry.state_record or list(json.loads(found.store.state_record(entry.trial_id)))
        for entry in plan.entries
    ]
    trials = controller._restore_trials({"trial_data": records})
    _restore_algorithms(found, controller)
    _fetch_trial_files(plan, found, controller)
    controller._requeue_restored_trials(trials, resume_config)
    if SEARCHER_CATCH_UP in capabilities:
        catch_up(controller, plan.unsnapshotted, found.snapshot.creation_count)


def _make_trials(
    plan: RestorePlan, found: VerifiedStore, controller: Any, codec: TrialStateCodec
) -> list[Trial]:
    """The trials that return to memory, created by Ray's own method."""
    records = plan.returning()
    if records:
        returning: list[Trial] = controller._restore_trials({"trial_data": records})
        return returning
    # Ray takes the name of the staging directory from the first of all trials.
    record = json.loads(found.store.state_record(plan.entries[0].trial_id))
    first = codec.trial_of(*record).storage
    assert first is not None
    controller._storage._timestamp = first._timestamp
    return []


def _restore_algorithms(found: VerifiedStore, controller: Any) -> None:
    """Restore the searcher and the callbacks to their states in the snapshot."""
    files = found.snapshot.files
    staging = Path(controller._storage.experiment_driver_staging_path)
    controller._checkpoint_manager.sync_down_experiment_state()
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


def _fetch_trial_files(plan: RestorePlan, found: VerifiedStore, controller: Any) -> list[str]:
    """Copy files of finished trials that were not uploaded into this run's staging directory.

    A killed driver leaves such files in its own staging directory; Ray uploads them from this
    run's. On another machine, or if temporary files were deleted, they are missing: these trials
    then have their last result and no history.

    Returns:
        The directories still to be uploaded.
    """
    staged = Path(found.store.get_metadata("staging") or "")
    staging = Path(controller._storage.experiment_driver_staging_path)
    states = [trial.state_json for trial in plan.unsnapshotted] + plan.finished_in_memory()
    of_trials = {json.loads(state).get("relative_logdir") for state in states}
    fetched = []
    for directory in {*found.snapshot.unsent, *of_trials}:
        if not directory or not staged.is_absolute() or not (staged / directory).is_dir():
            continue
        try:
            if staged != staging:
                shutil.copytree(staged / directory, staging / directory, dirs_exist_ok=True)
        except OSError as error:
            logger.warning("Files in %s are missing: %s", staged / directory, error)
        else:
            fetched.append(directory)
    return fetched


def _begin_state_file(state_file: ExperimentStateFile, store: TrialStore) -> None:
    records = store.state_records()
    while batch := list(islice(records, _RECORDS_AT_ONCE)):
        state_file.add(batch)


def _queue(
    plan: RestorePlan,
    returning: list[Trial],
    controller: Any,
    resume_config: ResumeConfig,
    cache: TrialCache[Trial],
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
            controller._requeue_restored_trials([next(waiting)], resume_config)
            residents[position] = controller._trials[-1]
        elif needs_trials:
            trial = cache.ghost(SpilledRow(position, entry.trial_id, entry.status))
            if entry.status == Trial.ERROR and type(scheduler) not in BLIND_TO_LIVE_TRIALS:
                controller._live_trials.add(trial)
            scheduler.on_trial_add(controller._wrapped(), trial)
    return residents


def _summaries(plan: RestorePlan, snapshot: Snapshot) -> TrialSummaryIndex:
    summaries = new_summary_index()
    positions = {entry.trial_id: position for position, entry in plan.staying()}
    summaries.load(snapshot.summaries, positions)
    for trial in plan.unsnapshotted:
        if trial.trial_id in positions:  # Otherwise it runs again.
            reported = reported_in_record(trial.metadata_json)
            summaries.note(positions[trial.trial_id], trial.trial_id, *reported)
    return summaries


def _preparation(resolvers: Any) -> Callable[[Trial], None]:
    """A function that does what Ray does with each trial it resumes, also with finished ones."""

    def prepare(trial: Trial) -> None:
        if not ray.util.client.ray.is_connected():
            trial.init_local_path()
        if resolvers:
            trial.resolve_config_placeholders(resolvers)
        trial.create_placement_group_factory()

    return prepare
