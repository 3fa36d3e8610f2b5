"""Writes an experiment checkpoint: the state that Ray writes, joined to the spilled trials.

Ray writes the state of the trials in memory, and its own, to a partial file beside the experiment
state file. This text is then saved twice: in the trial store, as its snapshot, and in the
experiment state file, behind the finished trials that the file already has.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ray_tune_memguard.adapter import paths
from ray_tune_memguard.store.snapshot import Snapshot
from ray_tune_memguard.store.state_file import HEAD, ExperimentStateFile
from ray_tune_memguard.store.trial_store import TrialStore

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

    from ray_tune_memguard.adapter.run.last_checkpoint import LastCheckpoint
    from ray_tune_memguard.adapter.run.uploads import IncrementalSyncer
    from ray_tune_memguard.adapter.seam import Controller
    from ray_tune_memguard.lazy.trial_list import SpilledTrials

#: The key in the state file whose value is the path of the trial store.
POINTER_KEY = "memguard"


class UnknownLayoutError(Exception):
    """Ray's experiment state has an unknown layout, which cannot be joined to spilled trials."""


class CheckpointWriter:
    """Writes the checkpoints of one run to its trial store and its experiment state file."""

    def __init__(
        self,
        store: TrialStore,
        state_file: ExperimentStateFile,
        trials: SpilledTrials[Trial],
        staging: paths.StagingListing,
        syncer: IncrementalSyncer | None,
        last: LastCheckpoint,
    ) -> None:
        self._store = store
        self._state_file = state_file
        self._trials = trials
        self._staging = staging
        self._syncer = syncer
        self._last = last
        # The partial file that Ray writes to during a checkpoint.
        self._partial: Path | None = None
        #: Whether a checkpoint of the whole run was written. Until then no trial is released.
        self.has_written = False

    def redirected_name(self, controller: Controller) -> str | None:
        """The path, relative to the staging directory, that Ray writes to; None for its own."""
        if self._partial is None:
            return None
        return os.path.relpath(self._partial, controller._storage.experiment_driver_staging_path)

    def write(self, controller: Controller, save: Callable[[], object]) -> None:
        """Write one checkpoint.

        Args:
            controller: the run's controller.
            save: Ray's own ``save_to_dir``.

        Raises:
            OSError, sqlite3.Error: a file cannot be written; the last checkpoint stays.
            UnknownLayoutError: Ray's state cannot be joined to spilled trials.
        """
        staged = Path(controller.experiment_state_path)
        partial = paths.work_directory(self._staging.directory) / f"{staged.name}.partial"
        partial.parent.mkdir(parents=True, exist_ok=True)
        self._partial = partial
        try:
            save()
        finally:
            self._partial = None
        text = partial.read_text()
        if not text.startswith(HEAD):
            raise UnknownLayoutError(f"{partial} does not begin with {HEAD!r}")
        self._last.number += 1
        self._last.end = None
        # First the store, which restores read; the file is for Ray alone.
        try:
            self._save_snapshot(controller, text)
        finally:
            self._publish(controller, text, staged)
        partial.unlink()
        self.has_written = True
        self._last.end = self._state_file.mark()

    def _save_snapshot(self, controller: Controller, state: str) -> None:
        found = (self._trials.position_of(trial_id) for trial_id in controller._trial_metadata)
        Snapshot(
            state=state,
            # A trial that was removed has no position any more.
            positions=[-1 if position is None else position for position in found],
            creation_count=self._trials.creation_count,
            summaries=self._trials.summaries.dump(),
            files=self._staging.session_files(),
            unsent=[] if self._syncer is None else self._syncer.unsent(),
        ).save(self._store)

    def _publish(self, controller: Controller, text: str, staged: Path) -> None:
        is_uploaded = self._state_file.path == staged
        self._state_file.publish(
            with_pointer(
                text[len(HEAD) :],
                self._store.path,
                self._staging.directory,
                self._last.number,
                _keeps_histories(controller),
            ),
            keep_old=is_uploaded and self._is_uploading(),
        )
        if not is_uploaded:
            # Ray wrote it before spilling began, and would upload it over the current one.
            staged.unlink(missing_ok=True)

    def _is_uploading(self) -> bool:
        # Without our syncer it is unknown whether Ray is uploading.
        return self._syncer is None or self._syncer.copying_state > 0


def _keeps_histories(controller: Controller) -> bool:
    """Whether a run keeps all results in a store of histories."""
    callbacks = controller._callbacks._callbacks
    return any(getattr(callback, "keeps_histories", False) for callback in callbacks)


def with_pointer(
    tail: str,
    store: Path,
    staging: Path | None = None,
    number: int = 0,
    keeps_histories: bool = False,
) -> str:
    """Append a key to ``tail``, which Ray ignores.

    Args:
        tail: the end of the state file.
        store: the path of the trial store.
        staging: the path of the staging directory.
        number: the number of the checkpoint in its run.
        keeps_histories: whether the run keeps all results in a store of histories.
    """
    values: dict[str, object] = {"store": str(store), "staging": str(staging or "")}
    pointer = json.dumps({**values, "number": number, "histories": keeps_histories})
    return f'{tail.rstrip().removesuffix("}")}, "{POINTER_KEY}": {pointer}}}'
