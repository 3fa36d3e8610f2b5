"""Brings files of earlier runs to the staging directory of the run that continues them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from ray_tune_memguard.adapter import paths
from ray_tune_memguard.adapter.location import Experiment
from ray_tune_memguard.adapter.restore.plan import RestorePlan
from ray_tune_memguard.adapter.restore.verify import VerifiedStore
from ray_tune_memguard.adapter.run.local_copy import copy_directory, copy_file
from ray_tune_memguard.notices import logger


def fetch_saved_states(experiment: Experiment, staging: Path) -> None:
    """Copy the states of searchers and callbacks from an experiment on a local disk.

    Ray's ``sync_down_experiment_state`` copies experiment state files as well, to upload them again
    at the next experiment checkpoint: 700 MB for 100,000 trials. Nothing that it restores reads
    them there.

    Raises:
        OSError: a file cannot be copied.
    """
    for name in os.listdir(experiment.path):
        if not paths.is_saved_state(name):
            continue
        staging.mkdir(parents=True, exist_ok=True)
        source, target = Path(experiment.path, name), staging / name
        if source.is_dir():
            copy_directory(str(source), str(target))
        else:
            copy_file(str(source), str(target))


def fetch_trial_files(plan: RestorePlan, found: VerifiedStore, staging: Path) -> tuple[str, ...]:
    """Copy files of finished trials that were not uploaded into this run's staging directory.

    A killed driver leaves such files in its own staging directory; Ray uploads them from this
    run's. On another machine, or if temporary files were deleted, they are missing: these trials
    then have their last result and no history.

    Returns:
        The directories still to be uploaded.
    """
    staged = Path(found.store.get_metadata("staging") or "")
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
    return tuple(fetched)
