"""Serializes and deserializes Ray's ``Trial``.

A trial has two serialized forms:

- :meth:`TrialStateCodec.dump`: everything that the object holds, for this process only. Tuples stay
  tuples, and the parts that all trials of a run share (file system, syncer) stay shared. What a
  report on all trials reads is a pickle of its own before the rest, which refers to it.
- :meth:`TrialStateCodec.json_state`: its state record, in the format of Ray's experiment state file
  (``trial_json``), for any process. Ray's own restore and ours read trials from it.
"""

from __future__ import annotations

import copy
import json
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Protocol, TypeVar

import ray
from pyarrow.fs import FileSystem
from ray.train._internal.storage import StorageContext
from ray.train._internal.syncer import Syncer
from ray.tune.execution.placement_groups import PlacementGroupFactory
from ray.tune.experiment import Trial
from ray.tune.experiment.trial import _Location, _TemporaryTrialState

from ray_tune_memguard.adapter.serialization import unpickling
from ray_tune_memguard.adapter.serialization.json_text import for_ray
from ray_tune_memguard.adapter.serialization.metric_queues import (
    QUEUES,
    pickled_queues,
    unpickle_queues,
)
from ray_tune_memguard.adapter.serialization.plain_pickle import pickle_as_ray, pickle_plainly
from ray_tune_memguard.adapter.serialization.state_record import (
    REPORTED,
    reported_of_record,
    state_record,
)
from ray_tune_memguard.adapter.serialization.templates import ValueTemplate
from ray_tune_memguard.adapter.serialization.trial_json import StateWriter
from ray_tune_memguard.lazy.interfaces import FINISHED
from ray_tune_memguard.store.trial_store import TrialRow

# Parts of a trial's StorageContext that are one and the same object in all trials of a run.
_SHARED_BY_STORAGE = ("storage_filesystem", "syncer")
# Functions that a user gave once for all trials; often lambdas, which pickle slowly.
_SHARED_BY_TRIALS = ("trial_name_creator", "trial_dirname_creator")
# Equal in most trials; unpickling it takes a third of a trial's time.
_LIKE_OTHERS = {"placement_group_factory": PlacementGroupFactory}
_REPORTED = (*REPORTED, "config")
_DEFAULT_RESULT = _REPORTED.index("_default_result_or_future")
_NO_PROCESS = _TemporaryTrialState()

MetadataT = TypeVar("MetadataT")


class StorageParts(Protocol):
    """The location of an experiment, and the objects that its trials share."""

    @property
    def storage_filesystem(self) -> FileSystem: ...
    @property
    def storage_fs_path(self) -> str: ...
    @property
    def experiment_dir_name(self) -> str: ...
    @property
    def syncer(self) -> Syncer | None: ...


@dataclass
class _ReportedMetadata:
    """Stands for the metadata of a trial in a report."""

    last_result: dict[str, object]


class TrialStateCodec:
    """The :class:`~ray_tune_memguard.lazy.interfaces.TrialCodec` of Ray's trials, for one run.

    Args:
        storage: the run's storage context, or the location of an opened experiment.
        prepare: a function that is called with each trial created from its state record.
        resolves_config: whether ``prepare`` may change a trial's config.
        stub: whether such trials are only read, so that their trainable may be unknown.
    """

    trial_class: type = Trial

    def __init__(
        self,
        storage: StorageParts,
        prepare: Callable[[Trial], None] | None = None,
        resolves_config: bool = False,
        stub: bool = False,
    ) -> None:
        self._storage = storage
        self._prepare = prepare
        self._resolves_config = resolves_config
        self._stub = stub
        self._storage_parts = {name: getattr(storage, name) for name in _SHARED_BY_STORAGE}
        self._trial_parts: dict[str, object] = {}
        self._typical = {name: ValueTemplate() for name in _LIKE_OTHERS}
        self._writer = StateWriter()
        # Types of which a pickle was read back.
        self._readable: weakref.WeakSet[type] = weakref.WeakSet()

    def has_error(self, trial: Trial) -> bool:
        return trial.run_metadata.error_filename is not None

    def dump(self, trial: Trial) -> bytes:
        """See :class:`TrialCodec`. Fetches the default result of a trial that reported nothing."""
        return self._dump(trial, pickled_queues(trial.run_metadata))[0]

    def _dump(self, trial: Trial, queues: bytes | None) -> tuple[bytes, bool]:
        """Both pickles, and whether ``json_text.encode`` may encode the trial as plain."""
        state = dict(trial.__dict__)
        state["_state_json"] = None  # A cache, which Ray fills again.
        temporary = state.pop("temporary_state")
        state["run_metadata"] = _bare(trial.run_metadata, queues)
        of_storage: tuple[str, ...] = ()
        state["storage"] = key = self._writer.storages.key_of(trial.storage)
        if key is None:
            state["storage"], of_storage = self._split_storage(trial.storage)
        of_trial = self._split_trial(state)
        state["_default_result_or_future"] = _default_result(trial)
        location = (temporary.location.hostname, temporary.location.pid)
        # What another Ray's trial lacks, its report does not read.
        reported = [state.get(name) for name in _REPORTED], trial.run_metadata.last_result
        if has_reported(trial):
            # Nothing reads the default result any more.
            reported[0][_DEFAULT_RESULT] = None
        parts = (state, of_storage, of_trial, location, temporary.num_restore_failures)
        try:
            pickled = pickle_plainly(reported, parts)
        except Exception:
            # For lambdas and for code of scripts and notebooks. It takes five times as long.
            pickled = pickle_as_ray(reported, parts)
        # Some classes can be pickled and not read back: exceptions with two arguments, proxies.
        unread = [kind for kind in pickled.kinds if kind not in self._readable]
        if unread:
            unpickling.load_second(pickled.raw)
            self._readable.update(unread)
        return pickled.raw, pickled.is_plain

    def load(self, raw: bytes) -> dict[str, object]:
        state, of_storage, of_trial, location, restore_failures = unpickling.load_second(raw)
        if isinstance(state["storage"], tuple):
            state["storage"] = self._writer.storages.at(state["storage"])
        for name in of_storage:
            setattr(state["storage"], name, self._storage_parts[name])
        for name in of_trial:
            typical = self._typical.get(name)
            state[name] = self._trial_parts[name] if typical is None else typical.another()
        unpickle_queues(state["run_metadata"])
        temporary = _TemporaryTrialState()
        temporary.location = _Location(*location)
        temporary.num_restore_failures = restore_failures
        state["temporary_state"] = temporary
        return state

    def load_for_report(self, raw: bytes) -> dict[str, object]:
        values, last_result = unpickling.loads(raw)
        return _as_reported(dict(zip(_REPORTED, values, strict=True)), last_result)

    def load_state_record(self, record: bytes) -> dict[str, object]:
        trial = self.trial_of(*json.loads(record))
        if self._prepare is not None:
            self._prepare(trial)
        return dict(trial.__dict__)

    def load_record_for_report(self, record: bytes) -> dict[str, object]:
        # Ray's own way makes the trial's directory and unpickles what no report shows, which takes
        # ten times as long.
        if self._resolves_config:
            return self.load_state_record(record)
        return _as_reported(*reported_of_record(record))

    @property
    def filesystem(self) -> FileSystem:
        """Where the files of trials are."""
        return self._storage.storage_filesystem

    @property
    def experiment_path(self) -> str:
        """The path of the experiment in :attr:`filesystem`."""
        storage = self._storage
        return str(PurePosixPath(storage.storage_fs_path, storage.experiment_dir_name))

    @property
    def reads_records_alone(self) -> bool:
        """Whether a trial is what its record says: nothing prepares it, which may change it."""
        return self._prepare is None

    def trial_of(self, state_json: str, metadata_json: str) -> Trial:
        """The trial that Ray creates from a state record, at the experiment's present location."""
        with for_ray(state_json) as state, for_ray(metadata_json) as metadata:
            trial = Trial.from_json_state(state, stub=self._stub)
            trial.restore_run_metadata(metadata)
        assert trial.storage is not None
        storage = copy.copy(trial.storage)
        for name in ("storage_filesystem", "storage_fs_path", "experiment_dir_name"):
            setattr(storage, name, getattr(self._storage, name))
        # This also corrects the paths of the trial's checkpoints.
        trial.set_storage(storage)
        return trial

    def _split_storage(
        self, storage: StorageContext | None
    ) -> tuple[StorageContext | None, tuple[str, ...]]:
        """A copy of the context without its shared attributes, and the names of these."""
        parts = self._storage_parts
        names = tuple(name for name in parts if getattr(storage, name) is parts[name])
        bare = copy.copy(storage)
        for name in names:
            setattr(bare, name, None)
        return bare, names

    def _split_trial(self, state: dict[str, object]) -> tuple[str, ...]:
        """Set the attributes in ``state`` that trials share to None; return their names."""
        names = []
        for name in _SHARED_BY_TRIALS:
            part = state.get(name)
            if part is not None and self._trial_parts.setdefault(name, part) is part:
                state[name] = None
                names.append(name)
        for name, typical in self._typical.items():
            if type(state.get(name)) is _LIKE_OTHERS[name] and _is_typical(typical, state[name]):
                state[name] = None
                names.append(name)
        return tuple(names)

    def row(self, trial: Trial, known: tuple[str, str] | None, creation_index: int) -> TrialRow:
        """The store's row for a finished trial.

        Args:
            trial: the trial.
            known: its state record, if that stays as it is; None to write a new one.
            creation_index: the number of trials that the run had created before it.
        """
        metadata = trial.run_metadata
        queues = pickled_queues(metadata)
        state, is_plain = self._dump(trial, queues)
        texts = self._writer.write(trial, queues, is_plain) if known is None else known
        return TrialRow(
            trial.trial_id,
            trial.status,
            self.has_error(trial),
            state_record(*texts),
            trial.relative_logdir,
            reported_at=metadata.last_result_time,
            creation_index=creation_index,
            resumes=known is not None and json.loads(known[0])["status"] not in FINISHED,
            state=state,
        )

    def json_state(self, trial: Trial) -> tuple[str, str]:
        """The trial's state record; it decodes to the same as ``Trial.get_json_state``."""
        return self._writer.write(trial, pickled_queues(trial.run_metadata))


def _as_reported(
    attributes: dict[str, object], last_result: dict[str, object]
) -> dict[str, object]:
    """The attributes of a trial that a report reads, with its last result."""
    attributes["run_metadata"] = _ReportedMetadata(last_result)
    # Read of a trial that has not reported.
    attributes["temporary_state"] = _NO_PROCESS
    return attributes


def _is_typical(typical: ValueTemplate, part: object) -> bool:
    try:
        return typical.is_typical(part)
    except Exception:  # It cannot be copied or compared; it may still be pickled.
        return False


def is_ready_to_spill(trial: Trial) -> bool:
    """Whether the trial can be serialized without waiting for a result."""
    pending = trial._default_result_or_future
    if has_reported(trial) or not isinstance(pending, ray.ObjectRef):
        return True
    ready, _ = ray.wait([pending], timeout=0)
    return bool(ready)


def has_reported(trial: Trial) -> bool:
    """Whether the trial has reported a result, by the rule of ``Trial.last_result``."""
    return any(key != "trial_id" for key in trial.run_metadata.last_result)


def _default_result(trial: Trial) -> object:
    """The default result of a trial that reported nothing, as a value instead of a reference.

    A reference pins its value and the actor's book-keeping. Once a trial has reported, nothing
    reads the default result again.
    """
    default = trial._default_result_or_future
    if not isinstance(default, ray.ObjectRef):
        return default
    if has_reported(trial):
        return None
    try:
        return ray.get(default, timeout=10)
    except Exception:  # The actor died before it returned one; Ray then has no default either.
        return None


def _bare(metadata: MetadataT, queues: bytes | None) -> MetadataT:
    """A copy without Ray's cache of its text, and with its queues as a pickle, if there is one."""
    bare = copy.copy(metadata)
    # The name must be there: Ray looks whether it is None.
    bare.__dict__["_cached_json"] = None
    if queues is not None:
        bare.__dict__[QUEUES] = queues
    return bare
