"""Builds DataFrames, configs and last results of all trials without loading the trials.

Ray's own code reads a trial only if its files are unusual or the trial was changed. Each public
function here replaces one of Ray's, which is its first argument (``patches``).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TypeGuard

import pandas
from ray.tune.analysis import experiment_analysis
from ray.tune.analysis.experiment_analysis import ExperimentAnalysis
from ray.tune.experiment import Trial
from ray.tune.result import CONFIG_PREFIX
from ray.tune.utils import flatten_dict

from ray_tune_memguard.adapter.analysis.result_rows import Record, frame_of, row_of
from ray_tune_memguard.adapter.analysis.row_table import RowTable
from ray_tune_memguard.adapter.analysis.trial_reader import TrialReader
from ray_tune_memguard.lazy.best import MODES
from ray_tune_memguard.lazy.containers import LazyTrialDict
from ray_tune_memguard.lazy.trial_list import SpilledTrials
from ray_tune_memguard.system.progress_bar import progress_bar


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
        and is_spilled(trials)
        and isinstance(frames, LazyTrialDict)
        and not frames.is_changed()
        and isinstance(frames.make, FrameReader)
    ):
        return original(analysis, metric, mode)
    rows = _RowReader(TrialReader(trials), frames.make.reader, frames, metric, mode)
    table = RowTable()
    for trial in _with_progress(trials):
        row = rows.read(trial)
        if row is not None:
            table.add(row)
    return table.frame()


def results_df(
    original: Callable[[ExperimentAnalysis], pandas.DataFrame], analysis: ExperimentAnalysis
) -> pandas.DataFrame:
    trials = analysis.trials
    if not (is_spilled(trials) and trials):
        return original(analysis)
    reader, table = TrialReader(trials), RowTable()
    delimiter = analysis._delimiter()
    for trial in _with_progress(trials):
        table.add(flatten_dict(reader.last_result(trial), delimiter=delimiter))
    return table.frame(index="trial_id")


def configs(trials: SpilledTrials[Trial], prefix: bool) -> dict[str, Record]:
    """The configs of all trials by trial id, flattened with a prefix if that is asked for."""
    reader = TrialReader(trials)
    return {
        trial.trial_id: flat_config(config) if prefix else config
        for trial in _with_progress(trials)
        for config in (reader.config(trial),)
    }


def flat_config(config: Record) -> Record:
    """The config as Ray flattens it for a DataFrame."""
    if any(isinstance(value, dict) for value in config.values()):
        flat: Record = flatten_dict({CONFIG_PREFIX: config})
        return flat
    return {f"{CONFIG_PREFIX}/{key}": value for key, value in config.items()}


class FrameReader:
    """Reads a trial's DataFrame, in half of Ray's time.

    Ray's own code reads it if its files are unusual.

    It logs only the first trial whose DataFrame cannot be read: Ray logs all of them in one line,
    and without a logger that writes results none can be read.

    Attributes:
        reader: reads the trials as they were when this was created.
    """

    def __init__(self, trials: SpilledTrials[Trial]) -> None:
        self._cache = trials.cache
        self._version = trials.cache.freeze()
        self.reader = TrialReader(trials, self._version)
        self._has_warned = False
        self._analysis: ExperimentAnalysis = ExperimentAnalysis.__new__(ExperimentAnalysis)

    def __call__(self, trial: Trial) -> pandas.DataFrame:
        with suppress(OSError, ValueError, sqlite3.Error, KeyError):
            lines = self.reader.lines(trial)
            if lines is not None:
                return frame_of(lines)
        try:
            return self._analysis._fetch_trial_dataframe(self._cache.as_of(trial, self._version))
        except Exception as error:
            if not self._has_warned:
                self._has_warned = True
                experiment_analysis.logger.warning(
                    "Failed to fetch metrics for a trial: %r. Trials that are read later may lack "
                    "theirs as well.",
                    error,
                )
            return pandas.DataFrame()


class _RowReader:
    """Reads the row of one trial at a time: its config of now, and its results of then.

    Ray reads results when ``fit()`` ends, and configs when a DataFrame is asked for.
    """

    def __init__(
        self,
        now: TrialReader,
        then: TrialReader,
        frames: dict[str, pandas.DataFrame],
        metric: str | None,
        mode: str | None,
    ) -> None:
        self._now = now
        self._then = then
        self._frames = frames
        self._asked = metric, mode
        self._has_read_without_history = False

    def read(self, trial: Trial) -> Record | None:
        try:
            lines = self._then.lines(trial)
            row = self._rays_row(trial) if lines is None else row_of(lines, *self._asked)
        except (OSError, ValueError, sqlite3.Error, KeyError):
            # An unusual file: Ray's own code reads it, or reports what is wrong.
            row = self._rays_row(trial)
        if row is not None:
            row.update(flat_config(self._now.config(trial)))
            # Ray has the trial's id there.
            row["logdir"] = trial.trial_id
        return row

    def _rays_row(self, trial: Trial) -> Record | None:
        if not self._then.has_history(trial):
            # Ray's own code says so in the log, of the first such trial.
            if self._has_read_without_history:
                return None
            self._has_read_without_history = True
        trial_id = trial.trial_id
        of_one: ExperimentAnalysis = ExperimentAnalysis.__new__(ExperimentAnalysis)
        of_one._trial_dataframes = {trial_id: self._frames[trial_id]}
        rows: dict[str, Record] = of_one._retrieve_rows(*self._asked)
        return rows.get(trial_id)


def _with_progress(trials: SpilledTrials[Trial]) -> Iterable[Trial]:
    return progress_bar(trials, "Reading results")


def is_spilled(trials: object) -> TypeGuard[SpilledTrials[Trial]]:
    return isinstance(trials, SpilledTrials)
