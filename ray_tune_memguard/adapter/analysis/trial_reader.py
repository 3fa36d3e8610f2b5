"""Reads a few facts about many trials, and not their whole states if something less has them."""

from __future__ import annotations

import posixpath
import sqlite3
from functools import cached_property

from ray.tune.experiment import Trial

from ray_tune_memguard.adapter.analysis.histories import StoredHistories, histories_of
from ray_tune_memguard.adapter.histories import last_results
from ray_tune_memguard.adapter.histories.merging import as_lines
from ray_tune_memguard.adapter.location import Experiment
from ray_tune_memguard.adapter.serialization.state_record import (
    config_of_record,
    last_result_of_record,
)
from ray_tune_memguard.adapter.serialization.trial_pickle import TrialStateCodec
from ray_tune_memguard.lazy.trial_list import SpilledTrials

_TRIAL_ID = "trial_id"
Values = dict[str, object]


class TrialReader:
    """Reads the trials of a list, as of a version or as they are now.

    What it returns of a spilled trial is a copy, except of active trials.

    Args:
        trials: the list.
        version: see :class:`~ray_tune_memguard.lazy.cache.TrialCache`; None for now.
    """

    def __init__(self, trials: SpilledTrials[Trial], version: int | None = None) -> None:
        self._cache = trials.cache
        self._version = version
        self._codec = trials.cache.codec
        self.histories = histories_of(trials)

    def config(self, trial: Trial) -> Values:
        record = self._record(trial)
        config: Values = self._whole(trial).config if record is None else config_of_record(record)
        return config

    def last_result(self, trial: Trial) -> Values:
        """What ``trial.last_result`` is."""
        record = self._record(trial)
        if record is not None:
            result = last_result_of_record(record)
            if result.keys() - {_TRIAL_ID}:
                result.setdefault(_TRIAL_ID, trial.trial_id)
                return result
        # A trial without results has what its actor said about itself.
        found: Values = self._whole(trial).last_result
        return found

    def lines(self, trial: Trial) -> bytes | None:
        """The trial's history, see :meth:`Histories.lines`; None if Ray alone may know it.

        If the store of histories lacks it, it is the trial's last result.
        """
        directory = self.directory(trial)
        if directory is None or self.histories is None:
            return None
        found = self.histories.lines(trial.trial_id, directory)
        if found or (found is None and self.histories.csv(directory) is not None):
            return found
        return self.last_line(trial) or found

    def last_line(self, trial: Trial) -> bytes | None:
        """The last result of a trial without a history, as a line in place of it.

        None if it has reported nothing, or its results are in files, of which Ray alone shows none.
        """
        last = self._reported(trial) if self._is_in_store else None
        if last is None:
            return None
        last_results.warn(self._experiment.path, trial.trial_id)
        return as_lines([last])

    def _reported(self, trial: Trial) -> Values | None:
        try:
            record = self._record(trial)
            if record is not None:
                return last_results.reported(last_result_of_record(record))
            return last_results.reported(self._whole(trial).run_metadata.last_result)
        except (ImportError, AttributeError):  # Of a class that this process does not have.
            return None

    @cached_property
    def _is_in_store(self) -> bool:
        if isinstance(self.histories, StoredHistories):
            return True
        return last_results.are_in_store(self._experiment)

    @property
    def _experiment(self) -> Experiment:
        assert isinstance(self._codec, TrialStateCodec)
        return Experiment(self._codec.filesystem, self._codec.experiment_path)

    def has_history(self, trial: Trial) -> bool:
        """Whether the trial has any history; True if that is unknown."""
        directory = self.directory(trial)
        if directory is None or self.histories is None:
            return True
        try:
            return (
                self.histories.lines(trial.trial_id, directory) is not None
                or self.histories.csv(directory) is not None
            )
        except (OSError, sqlite3.Error):
            return True

    def directory(self, trial: Trial) -> str | None:
        """The name of the trial's directory in the experiment; None if it is not there."""
        if self._cache.is_unchanged(trial, self._version):
            return self._cache.store.directory(trial.trial_id)
        storage, codec = self._whole(trial).storage, self._codec
        if storage is None or not isinstance(codec, TrialStateCodec) or not storage.trial_dir_name:
            return None
        parent, name = posixpath.split(str(storage.trial_fs_path))
        return name if parent == codec.experiment_path else None

    def _record(self, trial: Trial) -> bytes | None:
        if not isinstance(self._codec, TrialStateCodec) or not self._codec.reads_records_alone:
            return None
        return self._cache.state_record(trial, self._version)

    def _whole(self, trial: Trial) -> Trial:
        if self._version is None:
            return self._cache.peek(trial)
        return self._cache.as_of(trial, self._version)
