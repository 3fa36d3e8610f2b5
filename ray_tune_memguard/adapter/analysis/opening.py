"""Opens and resumes experiments that have a trial store.

Each function here replaces one of Ray's, which is its first argument (``patches``).
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, cast

from pyarrow.fs import FileSystem, LocalFileSystem
from ray.tune import ResumeConfig
from ray.tune.analysis.experiment_analysis import ExperimentAnalysis
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.impl.tuner_internal import TunerInternal

from ray_tune_memguard.adapter import contract, paths
from ray_tune_memguard.adapter.installation import installation_of
from ray_tune_memguard.adapter.location import Experiment
from ray_tune_memguard.adapter.restore import resume as restoring
from ray_tune_memguard.adapter.restore.locate import locate
from ray_tune_memguard.adapter.restore.new_run import NewRun
from ray_tune_memguard.adapter.restore.opened import open_trials
from ray_tune_memguard.adapter.restore.parts import uploaded_parts
from ray_tune_memguard.adapter.restore.rebuild import rebuild
from ray_tune_memguard.adapter.restore.verify import VerifiedStore, verify
from ray_tune_memguard.lazy.trial_list import SpilledTrials
from ray_tune_memguard.notices import logger
from ray_tune_memguard.store.errors import is_locked
from ray_tune_memguard.store.snapshot import Snapshot
from ray_tune_memguard.store.trial_store import TrialStore

if TYPE_CHECKING:
    from ray_tune_memguard.adapter.seam import Controller


def load_trials(
    original: Callable[[ExperimentAnalysis], list[Trial]], analysis: ExperimentAnalysis
) -> list[Trial]:
    experiment = Experiment(analysis._fs, str(analysis._experiment_fs_path))
    try:
        # Otherwise the caller wants the file of an earlier run.
        if analysis._experiment_json_fs_path == experiment.newest_state_file():
            ref = locate(experiment)
            found = verify(ref)
            if found is None and ref.state_file:
                parts = uploaded_parts(experiment, ref.state_file)
                found = rebuild(ref, ref.state_file, parts=parts) if parts else None
            if found is not None:
                return open_trials(found)
    except Exception as error:
        if isinstance(error, sqlite3.Error) and is_locked(error):
            logger.debug("The run is not over, so Ray alone opens the experiment: %s", error)
            return original(analysis)
        logger.warning(
            "The trial store of %s cannot be read (%s). The experiment is opened as Ray does it, "
            "from the experiment state file.",
            analysis._experiment_fs_path,
            error,
        )
    return original(analysis)


def newest_state_file(
    original: Callable[[str, FileSystem | None], str | None],
    experiment_path: str,
    fs: FileSystem | None = None,
) -> str | None:
    if fs is None:
        return original(experiment_path, fs)
    found = [paths.newest_state_file(fs, experiment_path)]
    if isinstance(fs, LocalFileSystem):
        found.append(paths.state_file_of_staging(experiment_path))
    return max(filter(None, found), key=os.path.basename, default=None)


def resume(
    original: Callable[[TuneController, ResumeConfig], None],
    controller: TuneController,
    resume_config: ResumeConfig,
) -> None:
    pruners = [getattr(callback, "prunes", None) for callback in controller._callbacks._callbacks]
    pruner = next((pruner for pruner in pruners if pruner is not None), None)
    capabilities = contract.probe(controller)
    if pruner is None or contract.RESUME not in capabilities:
        original(controller, resume_config)
        return
    typed = cast("Controller", controller)
    run = NewRun.of(typed, resume_config, pruner.spill_dir, capabilities)
    if not restoring.resume(run, typed):
        original(controller, resume_config)
        return
    installation = installation_of(typed)
    tuner = paths.calling(TunerInternal)
    if installation is not None and tuner is not None:
        _release_loaded_trials(tuner, installation.replaces)


def _release_loaded_trials(tuner: TunerInternal, store: Path | None) -> None:
    """Free the trials that ``Tuner.restore`` loaded before this package was imported.

    With ``RAY_TUNE_CALLBACKS`` the import comes later, and the tuner keeps these trials until its
    ``fit()`` returns.
    """
    analysis = tuner._experiment_analysis
    if analysis is None or isinstance(analysis.trials, SpilledTrials) or store is None:
        return
    try:
        experiment = Experiment(analysis._fs, str(analysis._experiment_fs_path))
        opened = TrialStore.open(store)
        analysis.trials = open_trials(VerifiedStore(experiment, opened, Snapshot.load(opened)))
        analysis._trial_dataframes = analysis._fetch_trial_dataframes()
        del analysis._configs
        analysis._configs = analysis.get_all_configs()
    except Exception as error:
        logger.debug("The tuner keeps the trials that it has loaded: %r", error)
