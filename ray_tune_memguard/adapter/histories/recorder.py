"""Records the results of one run in the histories of its experiment.

It takes the place of Ray's JSON logger, and continues or begins a trial's history when that logger
would continue or begin the trial's ``result.json``. In contrast to it, a trial that resumes from a
checkpoint keeps all results that were committed, and not only those that were uploaded.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from contextlib import suppress
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from pyarrow.fs import LocalFileSystem
from ray.air._internal.json import SafeFallbackEncoder
from ray.air.constants import EXPR_RESULT_FILE

from ray_tune_memguard.adapter.histories import joining, places
from ray_tune_memguard.adapter.histories.directories import TrialDirectories
from ray_tune_memguard.adapter.histories.reading import content_of, results_in
from ray_tune_memguard.notices import Notices
from ray_tune_memguard.store.histories import History, HistoryStore
from ray_tune_memguard.store.result_values import ResultEncoder, decode

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

    from ray_tune_memguard.adapter.seam import Controller

#: Results wait no longer than this for others to be committed with. A step of Ray's takes up to
#: 0.1 s, so a result is committed less than 0.2 s after it was reported.
COMMIT_EVERY_S = 0.08
_SYNC_EVERY_S = 10.0
_FIRST_RETRY_S = 1.0
_MAX_RETRY_S = 30.0


class HistoryRecorder:
    """Collects results, and commits them to the store.

    Args:
        store: the histories of the experiment, locked for this run.
        controller: the run's controller; it is not kept.
        notices: the log of the run's warnings.
        directories_stay: whether trials keep their directories, even with nothing in them.
    """

    def __init__(
        self,
        store: HistoryStore,
        controller: Controller,
        notices: Notices,
        directories_stay: bool = False,
    ) -> None:
        self.store = store
        self.experiment = places.Experiment.of_run(controller)
        self._notices = notices
        staging = str(controller._storage.experiment_driver_staging_path)
        last_staging = store.get_metadata(places.STAGING)
        self._continues_staging = last_staging == staging
        experiment = self.experiment
        if not experiment.is_local and (
            (last_staging is None and experiment.newest_state_file() is not None)
            or places.may_have_files(experiment, store)
        ):
            # This run's state files will not tell that a run before it has written files.
            places.note_files(store)
        store.set_metadata(**{places.STAGING: staging})
        self._directories = TrialDirectories.of_run(controller, directories_stay)
        self._encoder = ResultEncoder(replace=SafeFallbackEncoder().default)
        # Whether that is still to be noted.
        self._has_files = False
        # Trials that have begun in this run and not ended.
        self._begun: set[str] = set()
        # Those of them that began from scratch, and have reported nothing.
        self._silent: set[str] = set()
        # Not committed yet. Trials that begin anew, and how many of the results of a trial that
        # goes on are of an earlier run.
        self._cleared: set[str] = set()
        self._starts: dict[str, int] = {}
        self._results: dict[str, list[bytes]] = {}
        self._ended: dict[str, Trial] = {}
        self._empty: dict[str, float] = {}
        self._commit_at = self._sync_at = 0.0
        self._retry_after = _FIRST_RETRY_S

    # Called by the logger.

    def begin(self, trial: Trial) -> None:
        """Record that a trial begins, or continues after a pause or a failure."""
        if trial.trial_id in self._begun:
            return
        self._begun.add(trial.trial_id)
        waiting = self._results.get(trial.trial_id, [])
        if not waiting and not self.store.count(trial.trial_id):
            self._take_over_file(trial)
        elif trial.checkpoint or self._continues_staging:
            self._starts.setdefault(trial.trial_id, len(waiting))
        else:
            self._starts.pop(trial.trial_id, None)
            self._results.pop(trial.trial_id, None)
            self._cleared.add(trial.trial_id)
            # Of a run of Ray alone in this session.
            self._take_over_file(trial)

    def add(self, trial: Trial, result: dict[str, object]) -> None:
        """Record a result."""
        if trial.trial_id not in self._begun:
            self.begin(trial)
        self._silent.discard(trial.trial_id)
        self._results.setdefault(trial.trial_id, []).append(self._encoded(result))

    def end(self, trial: Trial) -> None:
        """Record that a trial has ended."""
        self._begun.discard(trial.trial_id)
        self._ended[trial.trial_id] = trial
        if trial.trial_id in self._silent:
            self._silent.discard(trial.trial_id)
            # Only these few, as each look takes its time on remote storage.
            if self._has_replaced_file(trial):
                self._empty[trial.trial_id] = time.time()

    def _encoded(self, result: dict[str, object]) -> bytes:
        try:
            return self._encoder.encode(result)
        except (ValueError, TypeError, OverflowError):
            return self._encoder.encode(json.loads(json.dumps(result, cls=SafeFallbackEncoder)))

    def _take_over_file(self, trial: Trial) -> None:
        """Begin the history with the results that Ray's logger wrote in an earlier run."""
        try:
            earlier = _earlier_file(trial)
        except OSError as error:
            self._notices.warn(
                "earlier",
                f"The results that trial {trial.trial_id} reported in an earlier run cannot be "
                f"taken over now ({error}). They stay in its files, and are read from there. "
                "Further trials are not logged.",
            )
            self._has_files = True
            self._starts[trial.trial_id] = 0
            return
        rows = [self._encoder.encode(result) for result in results_in(earlier)]
        if rows:
            self._results[trial.trial_id] = rows
        # Without a mark, what its files have is of an attempt that this one replaces.
        if rows or trial.checkpoint:
            self._starts[trial.trial_id] = len(rows)
        else:
            self._silent.add(trial.trial_id)

    def _has_replaced_file(self, trial: Trial) -> bool:
        """Whether results of an earlier attempt may be in the storage, where Ray replaces them."""
        storage = trial.storage
        if storage is None or not trial.relative_logdir:
            return False
        if not self.experiment.is_local and not self.store.get_metadata(joining.HAS_FILES):
            return False
        path = str(PurePosixPath(storage.trial_fs_path, EXPR_RESULT_FILE))
        with suppress(OSError):
            return bool(content_of(storage.storage_filesystem, path))
        return True

    # Called after each step.

    def commit_if_due(self, now: bool) -> bool:
        """Commit the results if it is time to.

        Args:
            now: whether results that wait for others are to be committed as well.

        Returns:
            Whether all results are in the store.
        """
        if not (self._results or self._ended or self._starts or self._cleared):
            return True
        time_now = time.monotonic()
        if time_now < self._commit_at and not (now and self._retry_after == _FIRST_RETRY_S):
            return False
        try:
            self.commit()
        except (sqlite3.Error, OSError) as error:
            self._warn_of(error)
            self._commit_at = time_now + self._retry_after
            self._retry_after = min(2 * self._retry_after, _MAX_RETRY_S)
            return False
        self._retry_after = _FIRST_RETRY_S
        self._commit_at = time.monotonic() + COMMIT_EVERY_S
        if time_now >= self._sync_at:
            self._sync_at = time_now + _SYNC_EVERY_S
            try:
                self.store.sync()
            except (sqlite3.Error, OSError) as error:
                # SQLite writes commits over older ones of its log, also when the file cannot grow.
                self._warn_of(error)
                return True
            self._notices.again("histories")
        return True

    def _warn_of(self, error: Exception) -> None:
        self._notices.warn(
            "histories",
            f"Results cannot be written to {self.store.path} ({error}). They stay in memory; "
            "writing is retried until it succeeds.",
        )

    def commit(self) -> None:
        """Commit all results.

        Raises:
            sqlite3.Error: none was committed; they stay in memory.
        """
        if self._has_files:
            places.note_files(self.store)
            self._has_files = False
        # Before the results: if it fails, both are tried again.
        for trial_id, since in self._empty.items():
            self.store.note_empty(trial_id, since)
        self.store.append(self._results, self._ended, cleared=self._cleared, starts=self._starts)
        self._empty.clear()
        ended, self._ended, self._results = self._ended, {}, {}
        self._starts, self._cleared = {}, set()
        for trial in ended.values():
            self._directories.leave(trial)

    def history(self, trial_id: str) -> History:
        """The results of a trial, also those that are not committed.

        Raises:
            sqlite3.Error: the store cannot be read now.
        """
        is_new = trial_id in self._cleared
        stored = History([]) if is_new else self.store.history(trial_id)
        results = stored.results + decode(b"".join(self._results.get(trial_id, ())))
        starts, has_earlier = stored.starts, stored.has_earlier
        if trial_id in self._starts:
            start = len(stored.results) + self._starts[trial_id]
            starts += (start,) if start else ()
            has_earlier = has_earlier or not start
        return History(results, starts, stored.missing, has_earlier)

    def uncommitted(self) -> list[Trial]:
        """Trials that have ended, whose results are not all committed."""
        return list(self._ended.values())

    def close(self) -> None:
        """Commit all results, and :meth:`finish`.

        Raises:
            OSError, sqlite3.Error: for example, the disk is full. What was committed stays readable
                for the next run.
        """
        try:
            self.commit()
        finally:
            self.finish()

    def finish(self) -> None:
        """Let other processes read the histories, and publish them.

        Raises:
            OSError, sqlite3.Error: as :meth:`close`.
        """
        self._directories.remove_spare()
        try:
            self.store.finalize()
        finally:
            places.forget_live(self.experiment)
        places.publish(self.experiment, self.store.path)


def _earlier_file(trial: Trial) -> bytes | None:
    """The ``result.json`` that Ray's logger would append to; None if it would begin one."""
    storage = trial.storage
    if storage is None or not trial.relative_logdir:
        return None
    if trial.checkpoint:
        path = PurePosixPath(storage.trial_fs_path, EXPR_RESULT_FILE)
        return content_of(storage.storage_filesystem, str(path))
    return content_of(LocalFileSystem(), os.path.join(str(trial.local_path), EXPR_RESULT_FILE))
