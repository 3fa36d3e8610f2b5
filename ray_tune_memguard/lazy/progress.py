"""The few trials that a progress report needs, so that it need not read all of them.

A report shows counts, the best trial, the first trials of each status, those that failed, and the
columns that any trial has a value for. :class:`ProgressView` is a list that has the length of the
whole sweep but walks only over trials that can decide one of these. Which these are, the summaries
(``summaries``) has noted while trials were spilled.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from ray_tune_memguard.lazy.trial_list import SpilledTrials

#: Finished statuses, the only ones that spilled trials have.
FINISHED = ("TERMINATED", "ERROR")
# Reports treat sweeps of at most twenty trials in their own way: those are given whole.
_SMALL_SWEEP = 20


class ProgressView(list[Any]):
    """Stands for all trials in a progress report, but walks only over those that decide it.

    :meth:`by_status` gives the whole sweep. ``errors``: walk over every trial that ever failed.
    ``only_reads``: who reports neither keeps nor changes a trial of these groups, which is cheaper.
    """

    def __init__(
        self, trials: SpilledTrials, metric: str | None, errors: bool, only_reads: bool = False
    ) -> None:
        self._trials = trials
        self._only_reads = only_reads
        super().__init__(_deciding(trials, metric, errors))

    def __len__(self) -> int:
        return len(self._trials)

    def __bool__(self) -> bool:
        return len(self._trials) > 0

    def by_status(self) -> dict[str, list[Any]]:
        """All trials grouped by status, statuses in order of their first trial."""
        first: dict[str, Any] = {}
        for trial in self:
            first.setdefault(trial.status, trial)
        residents: dict[str, dict[int, Any]] = defaultdict(dict)
        for position, trial in self._trials.resident_by_position().items():
            residents[trial.status][position] = trial
        # A defaultdict, because that is what Ray's own grouping returns.
        groups: dict[str, list[Any]] = defaultdict(list)
        for status in first:
            groups[status] = StatusGroup(self._trials, status, residents[status], self._only_reads)
        return groups


class StatusGroup(list[Any]):
    """The trials of one status, in order, read from the store as they are walked over."""

    def __init__(
        self, trials: SpilledTrials, status: str, residents: dict[int, Any], only_reads: bool
    ) -> None:
        super().__init__()
        cache = trials.cache
        self._spilled = cache.view if only_reads else cache.ghost
        self._trials = trials
        self._status = status
        self._residents = residents

    def __len__(self) -> int:
        return len(self._residents) + self._trials.cache.store.count(self._status)

    def __bool__(self) -> bool:
        return len(self) > 0

    def __iter__(self) -> Iterator[Any]:
        residents = sorted(self._residents.items())
        place = 0
        after = -1
        while rows := self._trials.cache.store.with_status(self._status, after, 512):
            for row in rows:
                while place < len(residents) and residents[place][0] < row.position:
                    yield residents[place][1]
                    place += 1
                yield self._spilled(row)
            after = rows[-1].position
        for _, trial in residents[place:]:
            yield trial

    def __getitem__(self, index: Any) -> Any:
        return list(self)[index]


def _deciding(trials: SpilledTrials, metric: str | None, errors: bool) -> list[Any]:
    if len(trials) <= _SMALL_SWEEP:
        return list(trials)
    store, summaries = trials.cache.store, trials.summaries
    if metric and not summaries.follows(metric):
        summaries.follow(metric, ((trials.place(trial), trial) for trial in trials.spilled()))
    rows = [row for status in FINISHED for row in store.with_status(status, after=-1, limit=1)]
    if errors:
        rows += store.with_error()
    rows += [row for trial_id in summaries.trial_ids(metric) if (row := store.row(trial_id))]
    by_seq = trials.ghosts(rows) | trials.resident_by_position()
    return [by_seq[position] for position in sorted(by_seq)]
