"""Counts finished trials as callbacks are told of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


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
