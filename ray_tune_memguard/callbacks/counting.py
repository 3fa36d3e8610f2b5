"""Counts finished trials as callbacks are told of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ray_tune_memguard.callbacks.base import GuardCallback, guarded


class FinishedTrials:
    """How many trials are over: ``completed`` and ``errored``, those before a resume included."""

    def __init__(self) -> None:
        self.completed = self.errored = 0
        self._ended: dict[str, bool] = {}

    @property
    def total(self) -> int:
        return self.completed + self.errored

    def complete(self, trial: Any) -> None:
        self._ended.setdefault(trial.trial_id, False)

    def fail(self, trial: Any) -> None:
        # A trial can fail while it is being completed; then it counts as failed, once.
        self._ended[trial.trial_id] = True

    def settle(self) -> None:
        """Count what the step that ends now was told."""
        if self._ended:
            failed = sum(self._ended.values())
            self.errored += failed
            self.completed += len(self._ended) - failed
            self._ended.clear()

    def recount(self, trials: Iterable[Any]) -> None:
        """Count anew, by status."""
        statuses = [trial.status for trial in trials]
        self.completed = statuses.count("TERMINATED")
        self.errored = statuses.count("ERROR")


class CountingCallback(GuardCallback):
    """A callback that knows how many trials are over; in ``on_step_end`` it settles the count."""

    def begin(self) -> None:
        self._finished = FinishedTrials()
        self._counted_before = False

    def on_first_step(self) -> None:
        """Trials that had finished before the sweep was resumed are counted now."""

    @guarded
    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if not self._counted_before:
            self._counted_before = True
            self._finished.recount(trials)
            self.on_first_step()

    @guarded
    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._finished.complete(trial)

    @guarded
    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._finished.fail(trial)
