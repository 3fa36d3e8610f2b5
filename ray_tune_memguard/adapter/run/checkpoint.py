"""Writes an experiment checkpoint: what Ray writes of the trials in memory, joined to the rest.

Ray writes the state of what is in memory to a file beside the experiment state file. From there it
goes into the trial store, as its snapshot, and into the experiment state file, behind the finished
trials that are there already.
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

    from ray_tune_memguard.adapter.run.uploads import IncrementalSyncer
    from ray_tune_memguard.adapter.seam import Controller
    from ray_tune_memguard.lazy.trial_list import SpilledTrials

#: Under it the state file tells where its trial store is.
POINTER_KEY = "memguard"


class UnknownLayoutError(Exception):
    """Ray's experiment state is written in another way than the one that can be joined."""


class CheckpointWriter:
    """Writes the checkpoints of one run to its trial store and its experiment state file."""

    def __init__(
        self,
        store: TrialStore,
        state_file: ExperimentStateFile,
        trials: SpilledTrials[Trial],
        staging: paths.StagingListing,
        syncer: IncrementalSyncer | None,
    ) -> None:
        self._store = store
        self._state_file = state_file
        self._trials = trials
        self._staging = staging
        self._syncer = syncer
        # Where Ray's part goes until it is joined.
        self._partial: Path | None = None
        #: Whether store and state file tell the whole run. Until then no trial is released.
        self.has_written = False

    def redirected(self, controller: Controller) -> str | None:
        """The name, from the staging directory, that Ray writes to just now; None: its own."""
        if self._partial is None:
            return None
        return os.path.relpath(self._partial, controller._storage.experiment_driver_staging_path)

    def write(self, controller: Controller, save: Callable[[], object]) -> None:
        """Write one checkpoint.

        Args:
            controller: of the run.
            save: Ray's own ``save_to_dir``.

        Raises:
            OSError, sqlite3.Error: the disk did not take it; what was published last is there.
            UnknownLayoutError: Ray's part cannot be joined.
        """
        staged = Path(controller.experiment_state_path)
        partial = paths.work_directory(controller) / f"{staged.name}.partial"
        partial.parent.mkdir(parents=True, exist_ok=True)
        self._partial = partial
        try:
            save()
        finally:
            self._partial = None
        text = partial.read_text()
        if not text.startswith(HEAD):
            raise UnknownLayoutError(f"{partial} does not begin with {HEAD!r}")
        # First the store, which restores go by; the file is for Ray alone, and for its results.
        try:
            self._save_snapshot(controller, text)
        finally:
            self._publish(controller, text, staged)
        partial.unlink()
        self.has_written = True

    def _save_snapshot(self, controller: Controller, state: str) -> None:
        places = (self._trials.position_of(trial_id) for trial_id in controller._trial_metadata)
        Snapshot(
            state=state,
            # A trial that was removed has no position any more.
            positions=[-1 if place is None else place for place in places],
            creation_count=self._trials.creation_count,
            summaries=self._trials.summaries.dump(),
            files=self._staging.session_files(),
            unsent=[] if self._syncer is None else self._syncer.unsent(),
        ).save(self._store)

    def _publish(self, controller: Controller, text: str, staged: Path) -> None:
        is_uploaded = self._state_file.path == staged
        self._state_file.publish(
            with_pointer(text[len(HEAD) :], self._store.path),
            keep_old=is_uploaded and self._is_uploading(),
        )
        if not is_uploaded:
            # From before the run was taken over; it would be uploaded over the one that counts.
            staged.unlink(missing_ok=True)

    def _is_uploading(self) -> bool:
        # Of Ray's own uploads it is not known.
        return self._syncer is None or self._syncer.running > 0


def with_pointer(tail: str, store: Path) -> str:
    """``tail`` with a last key that says where the trial store is; Ray ignores it."""
    pointer = json.dumps({"store": str(store)})
    return f'{tail.rstrip().removesuffix("}")}, "{POINTER_KEY}": {pointer}}}'
