"""Keeps all results of an experiment in one file, in the place of several files for each trial."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

from ray_tune_memguard import options as opt
from ray_tune_memguard.adapter import claims
from ray_tune_memguard.adapter.handle import disk_errors
from ray_tune_memguard.callbacks.base import GuardCallback, guarded
from ray_tune_memguard.store.errors import StoreError

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

    from ray_tune_memguard.adapter.histories.logger import HistoryLogger

#: As Ray does it: its CSV, JSON and TensorBoard loggers write files for each trial.
FILES = "files"
#: All results go into one file of the experiment, and Ray's automatic loggers are left out.
STORE = "store"


class ResultHistories(GuardCallback):
    """Decides where the results of all trials are kept.

    With ``"store"`` they go into one compressed file, ``.memguard/histories.sqlite`` in the
    experiment's directory, and Ray does not add its CSV, JSON and TensorBoard loggers. Loggers that
    are among the user's callbacks run as ever. Results, DataFrames and resumed runs are the same;
    ``docs/results-at-scale.md`` describes what is different. A run that resumes such an experiment
    goes on in the same way, whatever is asked for.

    Args:
        histories: ``"files"`` for Ray's own way, the default, or ``"store"``. Or
            ``TUNE_MEMGUARD_HISTORIES``.

    Raises:
        ValueError, TypeError: an argument, or its environment variable, is not allowed.

    Examples:
        >>> from ray import tune
        >>> from ray_tune_memguard import MemGuard
        >>> config = tune.RunConfig(callbacks=[MemGuard(histories="store")])
        >>> MemGuard(histories="database")
        Traceback (most recent call last):
        ValueError: histories must be 'files' or 'store'; got 'database'
    """

    def __init__(self, histories: str | opt.Unset = opt.UNSET) -> None:
        self.histories = opt.resolve("histories", histories, FILES, opt.one_of(FILES, STORE))
        self.options = {"histories": self.histories}

    def begin(self) -> None:
        self._logger: HistoryLogger | None = None
        try:
            is_wanted = self.histories == STORE or self.run.continues_histories()
            if not is_wanted or not self.run.claim(claims.HISTORIES, self):
                self.active = False
                return
            if self.histories != STORE:
                self.notices.remark(
                    "continues",
                    "The results of this experiment are in a store, and the resumed run adds its "
                    "own to them, as with histories='store'.",
                )
            self._logger = self.run.record_histories(self.notices)
        except (OSError, sqlite3.Error, StoreError) as error:
            self.notices.warn(
                "histories",
                f"Results cannot be kept in a store ({error}). Ray's loggers write them to files "
                "in this run.",
            )
        self.active = self._logger is not None

    def commit(self, now: bool) -> bool:
        """Commit the results that wait, if it is time to.

        Args:
            now: whether it is time in any case.

        Returns:
            Whether no result waits.
        """
        return not self.active or self._logger is None or self._logger.commit(now)

    @guarded
    def on_step_end(self, iteration: int, trials: list[Trial], **info: object) -> None:
        self.commit(now=False)

    @guarded
    def on_experiment_end(self, trials: list[Trial], **info: object) -> None:
        self.active = False
        if self._logger is None:
            return
        try:
            self._logger.close()
        except disk_errors() as error:
            self.notices.warn(
                "end",
                f"The histories could not be finished ({error}). What was committed is read by the "
                "next run of the experiment.",
            )

    def disable(self, error: Exception) -> None:
        super().disable(error)
        self.give_back()

    def give_back(self) -> None:
        """Let Ray's loggers write the results from now on."""
        made = getattr(self, "_logger", None)
        if made is not None:
            made.give_back()
