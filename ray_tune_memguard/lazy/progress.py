"""Selects the few trials that a progress report needs, so that it need not read all of them.

A report shows counts, the best trial, the first trials of each status, those that failed, and the
columns for which any trial has a value. :class:`ProgressView` is a list with the length of the
whole run that iterates only over the trials that can decide one of these. The ``TrialSummaryIndex``
has noted these trials at their spill.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import SupportsIndex, overload

from ray_tune_memguard.lazy.interfaces import FINISHED, TrialT
from ray_tune_memguard.lazy.trial_list import SpilledTrials

# Reports show runs of at most 20 trials completely.
_SMALL_RUN = 20
_WINDOW = 512


class ProgressView(list[TrialT]):
    """Represents all trials in a progress report, but iterates only over those that decide it.

    :meth:`by_status` returns the whole run.

    Args:
        trials: the list of all trials.
        metric: the metric by which the report names the best trial.
        errors: whether to iterate over every trial that ever failed.
        only_reads: whether the report neither keeps nor changes trials, which saves time.
    """

    def __init__(
        self,
        trials: SpilledTrials[TrialT],
        metric: str | None,
        errors: bool,
        only_reads: bool = False,
    ) -> None:
        self._trials = trials
        self._only_reads = only_reads
        super().__init__(_deciding_trials(trials, metric, errors))

    def __len__(self) -> int:
        return len(self._trials)

    def __bool__(self) -> bool:
        return len(self._trials) > 0

    def by_status(self) -> dict[str, list[TrialT]]:
        """All trials grouped by status, statuses in order of their first trial."""
        first = dict.fromkeys(trial.status for trial in self)
        # A defaultdict, as Ray's own function returns.
        groups: dict[str, list[TrialT]] = defaultdict(list)
        for status in first:
            groups[status] = StatusGroup(self._trials, status, self._only_reads)
        return groups


class StatusGroup(list[TrialT]):
    """The trials of one status, in order, read from the store during iteration."""

    def __init__(self, trials: SpilledTrials[TrialT], status: str, only_reads: bool) -> None:
        super().__init__()
        cache = trials.cache
        self._read = cache.peek_for_report if only_reads else cache.ghosts
        self._store = cache.store
        self._status = status
        self._in_memory = sorted(trials.in_memory_with(status).items())
        self._uncounted = trials.uncounted(status)

    def __len__(self) -> int:
        return len(self._in_memory) + self._store.count(self._status) - len(self._uncounted)

    def __bool__(self) -> bool:
        return len(self) > 0

    def __iter__(self) -> Iterator[TrialT]:
        given = 0
        after = -1
        while rows := self._store.with_status(self._status, after, _WINDOW):
            spilled = [row for row in rows if row.position not in self._uncounted]
            for row, trial in zip(spilled, self._read(spilled), strict=True):
                while given < len(self._in_memory) and self._in_memory[given][0] < row.position:
                    yield self._in_memory[given][1]
                    given += 1
                yield trial
            after = rows[-1].position
        for _, trial in self._in_memory[given:]:
            yield trial

    @overload
    def __getitem__(self, index: SupportsIndex) -> TrialT: ...
    @overload
    def __getitem__(self, index: slice) -> list[TrialT]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> TrialT | list[TrialT]:
        return list(self)[index]


def _deciding_trials(
    trials: SpilledTrials[TrialT], metric: str | None, errors: bool
) -> list[TrialT]:
    if len(trials) <= _SMALL_RUN:
        return list(trials)
    store, summaries = trials.cache.store, trials.summaries
    if metric and not summaries.follows(metric):
        try:
            summaries.follow(metric, trials.spilled(trials.cache.peek_for_report))
        except AttributeError:
            # Another Ray's `last_result` reads more of a trial than these have.
            summaries.follow(metric, trials.spilled(trials.cache.ghosts))
    rows = [row for status in FINISHED for row in store.with_status(status, after=-1, limit=1)]
    if errors:
        rows += store.with_error()
    rows += [row for trial_id in summaries.trial_ids(metric) if (row := store.row(trial_id))]
    found = trials.by_position(rows)
    return [found[position] for position in sorted(found)]
