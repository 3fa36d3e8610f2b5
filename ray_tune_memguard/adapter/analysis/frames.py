"""Builds the DataFrame of all trials in a twentieth of Ray's time, see ``result_rows``.

Ray's own code reads a trial only if its files are unusual or the trial was changed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePosixPath

import pandas
import tqdm
from pyarrow.fs import FileSystem, LocalFileSystem
from ray.air.constants import EXPR_RESULT_FILE
from ray.tune.analysis.experiment_analysis import ExperimentAnalysis
from ray.tune.experiment import Trial
from ray.tune.result import CONFIG_PREFIX
from ray.tune.utils import flatten_dict

from ray_tune_memguard.adapter.analysis.result_rows import Record, row_of
from ray_tune_memguard.adapter.serialization.trial_pickle import TrialStateCodec
from ray_tune_memguard.lazy.best import MODES
from ray_tune_memguard.lazy.containers import LazyTrialDict
from ray_tune_memguard.lazy.trial_list import SpilledTrials

_SHOW_PROGRESS_AFTER_S = 1.0


def dataframe(
    original: Callable[[ExperimentAnalysis, str | None, str | None], pandas.DataFrame],
    analysis: ExperimentAnalysis,
    metric: str | None = None,
    mode: str | None = None,
) -> pandas.DataFrame:
    trials, frames = analysis.trials, analysis._trial_dataframes
    is_valid = mode is None or (mode in MODES and metric)
    if not (
        is_valid
        and isinstance(trials, SpilledTrials)
        and isinstance(frames, LazyTrialDict)
        and not frames.has_own_values()
    ):
        return original(analysis, metric, mode)
    reader = _RowReader(trials, frames, metric, mode)
    rows = []
    for trial in tqdm.tqdm(
        trials, desc="Reading results", unit="trial", delay=_SHOW_PROGRESS_AFTER_S, leave=False
    ):
        row, config = reader.read(trial)
        if row is not None:
            row.update(flatten_dict({CONFIG_PREFIX: config}))
            # Ray has the trial's id there.
            row["logdir"] = trial.trial_id
            rows.append(row)
    return pandas.DataFrame(rows)


class _RowReader:
    """Reads the row and the config of one trial at a time."""

    def __init__(
        self,
        trials: SpilledTrials[Trial],
        frames: dict[str, pandas.DataFrame],
        metric: str | None,
        mode: str | None,
    ) -> None:
        self._cache = trials.cache
        self._frames = frames
        self._asked = metric, mode

    def read(self, trial: Trial) -> tuple[Record | None, dict[str, object]]:
        record, codec = self._cache.state_record(trial), self._cache.codec
        if record is not None and isinstance(codec, TrialStateCodec):
            found = codec.config_and_directory(record)
            if found is not None:
                config, directory = found
                return self._row(trial, codec.filesystem, directory), config
        whole = self._cache.peek(trial)
        storage = whole.storage
        assert storage is not None
        row = self._row(trial, storage.storage_filesystem, storage.trial_fs_path)
        return row, whole.config

    def _row(self, trial: Trial, filesystem: FileSystem, directory: str) -> Record | None:
        path = str(PurePosixPath(directory, EXPR_RESULT_FILE))
        try:
            return row_of(_content(filesystem, path), *self._asked)
        except (OSError, ValueError):
            # A missing or unusual file: Ray's own code reads it, or reports what is wrong.
            trial_id = trial.trial_id
            of_one: ExperimentAnalysis = ExperimentAnalysis.__new__(ExperimentAnalysis)
            of_one._trial_dataframes = {trial_id: self._frames[trial_id]}
            rows: dict[str, Record] = of_one._retrieve_rows(*self._asked)
            return rows.get(trial_id)


def _content(filesystem: FileSystem, path: str) -> bytes:
    if isinstance(filesystem, LocalFileSystem):
        with open(path, "rb") as file:
            return file.read()
    with filesystem.open_input_stream(path) as stream:
        content: bytes = stream.readall()
        return content
