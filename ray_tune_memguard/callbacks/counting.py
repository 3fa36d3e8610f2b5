"""Counts finished trials by the hooks that Ray calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from ray_tune_memguard.callbacks.base import GuardCallback, guarded
from ray_tune_memguard.lazy.interfaces import FINISHED
from ray_tune_memguard.lazy.trial_list import SpilledTrials

if TYPE_CHECKING:
    from ray.tune.experiment import Trial


class FinishedTrials:
    """Numbers of finished trials, ``completed`` and ``errored``, including earlier runs' trials."""

    def __init__(self) -> None:
        self.completed = self.errored = 0
        #: Whether the trials that had finished before the run were counted.
        self.is_begun = False
        self._failed_by_id: dict[str, bool] = {}

    @property
    def total(self) -> int:
        return self.completed + self.errored

    def complete(self, trial: Trial) -> None:
        self._failed_by_id.setdefault(trial.trial_id, False)

    def fail(self, trial: Trial) -> None:
        # A trial can fail while it is being completed; then it counts as failed, once.
        self._failed_by_id[trial.trial_id] = True

    def count_step(self) -> None:
        """Count the trials that ended in the step that ends now."""
        if self._failed_by_id:
            failed = sum(self._failed_by_id.values())
            self.errored += failed
            self.completed += len(self._failed_by_id) - failed
            self._failed_by_id.clear()

    def recount(self, trials: Iterable[Trial]) -> None:
        """Count all trials by their status."""
        self.is_begun = True
        if isinstance(trials, SpilledTrials):
            count: Callable[[str], int] = trials.count_status
        else:
            count = [trial.status for trial in trials].count
        self.completed, self.errored = (count(status) for status in FINISHED)


class CountingCallback(GuardCallback):
    """A callback that counts finished trials.

    Its ``on_step_end`` must call ``count_step``.
    """

    _finished: FinishedTrials

    def begin(self) -> None:
        self._finished = FinishedTrials()

    def on_first_step(self) -> None:
        """Called once, after the trials that had finished before the run were counted."""

    @guarded
    def on_step_begin(self, iteration: int, trials: list[Trial], **info: object) -> None:
        if not self._finished.is_begun:
            self._finished.recount(trials)
            self.on_first_step()

    def on_run_end(self, trials: list[Trial]) -> None:
        """Called once, after the trials that ended with the experiment were counted."""

    @guarded
    def on_experiment_end(self, trials: list[Trial], **info: object) -> None:
        has_begun = self._finished.is_begun
        # Ray calls no hooks for trials that end with the experiment.
        self._finished.recount(trials)
        if not has_begun:
            # Without a step no trial has finished in this run: it was resumed with nothing to do.
            self.on_first_step()
        self.on_run_end(trials)

    @guarded
    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: object
    ) -> None:
        self._finished.complete(trial)

    @guarded
    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: object
    ) -> None:
        self._finished.fail(trial)
