"""The last result of a trial, in place of a history that is lost.

On remote storage, histories reach the experiment's storage at the end of a run, and so later than
the experiment state. If the driver's machine is lost before, the state has the last result of each
trial, and nothing has the earlier ones.
"""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import TYPE_CHECKING

from ray_tune_memguard.adapter.location import Experiment
from ray_tune_memguard.adapter.restore.locate import StateFile
from ray_tune_memguard.notices import Notices
from ray_tune_memguard.store.result_values import Result

if TYPE_CHECKING:
    from ray.tune.analysis.experiment_analysis import ExperimentAnalysis
    from ray.tune.experiment import Trial

_TRIAL_ID, _EXPERIMENT_TAG = "trial_id", "experiment_tag"
_notices = Notices()
#: Whether an analysis may lack results. Ray asks it for one trial after the other.
_asked: weakref.WeakKeyDictionary[ExperimentAnalysis, bool] = weakref.WeakKeyDictionary()


def reported(last_result: Result) -> Result | None:
    """The last result of a trial as loggers got it; None if it has reported nothing."""
    if not last_result.keys() - {_TRIAL_ID}:
        return None
    # Ray adds it after its loggers.
    return {key: value for key, value in last_result.items() if key != _EXPERIMENT_TAG}


def are_in_store(experiment: Experiment) -> bool:
    """Whether the newest run of an experiment has kept all results in its store of histories.

    Otherwise a trial without a history shows what Ray alone shows of it.
    """
    try:
        state_file = StateFile.newest_of(experiment)
    except OSError:
        return False
    return state_file is not None and state_file.keeps_histories()


def of_trial(trial: Trial) -> list[Result]:
    """The last result of a trial in place of its history; empty if it has reported nothing."""
    last = reported(trial.run_metadata.last_result)
    if last is None or trial.storage is None:
        return []
    warn(str(trial.storage.experiment_fs_path), trial.trial_id)
    return [last]


def without_files(analysis: ExperimentAnalysis, trial: Trial) -> list[Result]:
    """As :func:`of_trial`, for a trial that should have files and has none."""
    storage = trial.storage
    if storage is None:
        return []
    if analysis not in _asked:
        experiment = Experiment(storage.storage_filesystem, str(storage.experiment_fs_path))
        _asked[analysis] = are_in_store(experiment)
    return of_trial(trial) if _asked[analysis] else []


def warn(experiment: str | Path, trial_id: str) -> None:
    """Say once for each experiment that earlier results are missing."""
    _notices.warn(
        str(experiment),
        f"Of some trials of {experiment} only the last result is known, from the experiment state "
        f"file; the first of them is {trial_id}. Their earlier results are missing: they were lost "
        "with the driver's machine or its files, before they were copied to the experiment.",
    )
