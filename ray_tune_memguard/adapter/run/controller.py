"""Makes a running ``TuneController`` work with spilled trials.

The controller keeps its class's code: its instance is given a subclass that overrides the few
methods that walk over all trials or write them out, and its list of trials is replaced by one that
spills. No Ray class is changed here.
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial

from ray_tune_memguard.adapter import paths
from ray_tune_memguard.adapter.run.uploads import IncrementalSyncer
from ray_tune_memguard.adapter.serialization.trial_pickle import TrialStateCodec
from ray_tune_memguard.lazy.trial_list import SpilledTrials
from ray_tune_memguard.notices import Notices
from ray_tune_memguard.store.state_file import HEAD, ExperimentStateFile

_adopted_classes: dict[type, type] = {}
_ADOPTION = "_memguard_adoption"
#: Under it the state file tells where its trial store is.
POINTER_KEY = "memguard"
_RAYS_SCHEDULERS = "ray.tune.schedulers."


class Adoption:
    """What an adopted controller carries: its trials, and the state file that it extends."""

    def __init__(
        self,
        trials: SpilledTrials[Trial],
        codec: TrialStateCodec,
        state_file: ExperimentStateFile,
        save_snapshot: Callable[[str], None],
        store_path: Path,
        notices: Notices,
    ) -> None:
        self.trials = trials
        self.codec = codec
        self.state_file = state_file
        self.save_snapshot = save_snapshot
        self.store_path = store_path
        self.notices = notices
        #: The sweep of a controller that was adopted before its callbacks were set up.
        self.resumed_as: Any = None
        # Where the part of the state file that Ray writes goes until it is joined.
        self.redirect_state_to: Path | None = None


def adopt(controller: TuneController, adoption: Adoption) -> None:
    """Swap the controller's class and its list of trials. The list must hold the same trials."""
    plain = type(controller)
    if plain not in _adopted_classes:
        _adopted_classes[plain] = type(
            plain.__name__, (_AdoptedController, plain), {"__module__": plain.__module__}
        )
    setattr(controller, _ADOPTION, adoption)
    controller._trials = adoption.trials
    controller.__class__ = _adopted_classes[plain]


def adoption_of(controller: TuneController) -> Adoption | None:
    found: Adoption | None = getattr(controller, _ADOPTION, None)
    return found


def give_back(controller: TuneController) -> None:
    """Undo :func:`adopt`, but for the list of trials."""
    if type(controller) in _adopted_classes.values():
        controller.__class__ = type(controller).__mro__[2]
        controller.__dict__.pop(_ADOPTION, None)


class _AdoptedController(TuneController):
    """Overrides of methods whose cost or memory grows with the number of finished trials."""

    _memguard_adoption: Adoption
    _storage: Any
    _trial_metadata: dict[str, Any]

    def is_finished(self) -> bool:
        # Spilled trials are finished; Ray would ask each of them whenever no trial is live.
        unspilled = self._memguard_adoption.trials.resident()
        return all(trial.is_finished() for trial in unspilled) and self._search_alg.is_finished()

    def get_trial(self, tid: str) -> Any | None:
        return self._memguard_adoption.trials.find(tid)

    def get_trials(self) -> Any:
        if _reads_unfinished_only(sys._getframe(1)):
            return self._memguard_adoption.trials.resident()
        return super().get_trials()

    def _get_trial_checkpoints(self) -> dict[str, Any]:
        adoption = self._memguard_adoption
        for trial in self._trials_to_cache:
            try:
                self._trial_metadata[trial.trial_id] = adoption.codec.json_state(trial)
            except Exception as error:
                # Ray alone would end the sweep here. What was written of it before stays.
                adoption.notices.warn(
                    "unwritten",
                    f"The state of trial {trial} cannot be serialised ({error!r}), so the "
                    "experiment state is saved without its latest changes. Others like it will "
                    "be treated so without a word.",
                )
        self._trials_to_cache.clear()
        return self._trial_metadata

    @property
    def experiment_state_file_name(self) -> str:
        redirected = self._memguard_adoption.redirect_state_to
        if redirected is not None:
            staging = self._storage.experiment_driver_staging_path
            return os.path.relpath(redirected, staging)
        return super().experiment_state_file_name

    def save_to_dir(self) -> None:
        notices = self._memguard_adoption.notices
        try:
            self._save_joined()
            notices.again("checkpoint")
        except (OSError, sqlite3.Error) as error:
            # Ray alone would end the sweep here, with all its trials.
            notices.warn(
                "checkpoint",
                f"MemGuard cannot write the experiment state ({error}). The sweep goes on; it is "
                "tried again at the next experiment checkpoint.",
            )

    def _save_joined(self) -> None:
        """Ray writes the state of what is in memory, beside; then it is joined to the rest."""
        adoption = self._memguard_adoption
        staged = Path(self.experiment_state_path)
        partial = paths.work_directory(self) / f"{staged.name}.partial"
        partial.parent.mkdir(parents=True, exist_ok=True)
        adoption.redirect_state_to = partial
        try:
            super().save_to_dir()
        finally:
            adoption.redirect_state_to = None
        text = partial.read_text()
        if not text.startswith(HEAD):
            raise RuntimeError(f"Ray's experiment state does not begin with {HEAD!r}: {partial}")
        # First the store, which restores go by; the file is for Ray alone, and for its results.
        try:
            adoption.save_snapshot(text)
        finally:
            tail = _with_pointer(text[len(HEAD) :], adoption.store_path)
            is_uploaded = adoption.state_file.path == staged
            adoption.state_file.publish(tail, keep_old=is_uploaded and self._is_uploading())
            if not is_uploaded:
                # Of before the sweep was adopted; it would be uploaded over the one that counts.
                staged.unlink(missing_ok=True)
        partial.unlink()

    def _is_uploading(self) -> bool:
        syncer: IncrementalSyncer = self._checkpoint_manager._storage.syncer
        return syncer.running > 0

    def checkpoint(self, force: bool = False, wait: bool = False) -> None:
        # The last one of a sweep is forced and waited for.
        self._checkpoint_manager._storage.syncer.thorough = force and wait
        super().checkpoint(force=force, wait=wait)

    def __getstate__(self) -> dict[str, Any]:
        # It goes into the experiment state, which must open without this package.
        state: dict[str, Any] = super().__getstate__()
        state.pop(_ADOPTION, None)
        return state


def _with_pointer(tail: str, store: Path) -> str:
    """``tail`` with a last key that says where the trial store is; Ray ignores it."""
    pointer = json.dumps({"store": str(store)})
    return f'{tail.rstrip().removesuffix("}")}, "{POINTER_KEY}": {pointer}}}'


def _reads_unfinished_only(caller: FrameType) -> bool:
    """Whether the calling code is Ray's own and passes over finished trials.

    Ray's schedulers look in all trials for one to run, on every step. It does not matter whether
    Ray or a user's scheduler called them; a user's own code gets all trials.
    """
    module = str(caller.f_globals.get("__name__"))
    return caller.f_code.co_name == "choose_trial_to_run" and module.startswith(_RAYS_SCHEDULERS)
