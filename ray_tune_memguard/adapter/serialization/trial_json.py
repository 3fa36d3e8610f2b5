"""What Ray's experiment state file holds of a trial, written and read.

The content is Ray's, to the last value; the text is shorter, and costs a fraction of the time that
``Trial.get_json_state`` takes.
"""

from __future__ import annotations

import copy
import json
import pickle
from collections import deque
from typing import Any

import numpy as np
from ray.tune.experiment import Trial

from ray_tune_memguard.adapter.serialization.json_text import (
    PICKLED,
    decode,
    encode,
    hex_pickle,
    pickle_by,
    pickled,
)
from ray_tune_memguard.store.trial_store import TrialRow

#: Of a trial's metadata: each metric's last numbers.
QUEUES = "metric_n_steps"
# Of these, as of Python's own, a plain pickle is what cloudpickle makes.
_NUMBERS = (np.float64, np.float32, np.int64, np.int32)
# And what their pickles refer to: a function, their kinds, and the kind of these.
_PLAIN = {
    *_NUMBERS,
    type(np.float64(0).__reduce__()[0]),
    *(type(np.dtype(number)) for number in _NUMBERS),
    type(np.dtype),
}
_MOST_TEXTS = 64


class _NotPlainError(Exception):
    """Something that Ray does not keep in its queues."""


class _Reducers(dict[type, Any]):
    """Asked for the type of each object that is no number or text of Python's own."""

    def __missing__(self, kind: type) -> Any:
        # A KeyError lets the object say how it is pickled.
        raise (KeyError if kind in _PLAIN else _NotPlainError)(kind)


# A queue's own way of being pickled looks for its slots each time, which takes two thirds of it.
_REDUCERS = _Reducers({deque: lambda queue: (deque, (tuple(queue), queue.maxlen))})


class StorageTemplate:
    """The storage context that a sweep's trials have, each with its own directory.

    Contexts that differ from the first one in more than their directory and the number of their
    checkpoint are not typical: for them there is None.
    """

    def __init__(self) -> None:
        self._first: Any = None
        # What is the same in all of them; and in their syncers, of which each has its own.
        self._shared: dict[str, Any] = {}
        self._of_syncer: dict[str, Any] = {}
        # By checkpoint number and length of the directory's name: what is around the name.
        self._texts: dict[tuple[int, int], tuple[str, str] | None] = {}

    def place_of(self, storage: Any) -> tuple[str, int] | None:
        """By which :meth:`at` makes an equal one."""
        shared = dict(storage.__dict__)
        place = shared.pop("trial_dir_name", None), shared.pop("current_checkpoint_index", None)
        syncer = shared.pop("syncer", None)
        if not (type(place[0]) is str and type(place[1]) is int and hasattr(syncer, "__dict__")):
            return None
        if self._first is None:
            self._first, self._shared = self._copy(storage), shared
            self._of_syncer = dict(syncer.__dict__)
        is_typical = (
            shared == self._shared
            and type(syncer) is type(self._first.syncer)
            and syncer.__dict__ == self._of_syncer
        )
        return place if is_typical else None

    @staticmethod
    def _copy(storage: Any) -> Any:
        like = copy.copy(storage)
        like.syncer = copy.copy(storage.syncer)
        return like

    def at(self, place: tuple[str, int]) -> Any:
        storage = self._copy(self._first)
        storage.trial_dir_name, storage.current_checkpoint_index = place
        return storage

    def text_of(self, storage: Any) -> str:
        """Its pickle in hexadecimal digits, as Ray writes it."""
        place = self.place_of(storage)
        try:
            name = b"" if place is None else place[0].encode()
        except UnicodeEncodeError:  # A path whose bytes are no text.
            name = b""
        if place is None or not name:
            return hex_pickle(storage)
        key = place[1], len(name)
        if key not in self._texts:
            if len(self._texts) >= _MOST_TEXTS:
                self._texts.clear()
            self._texts[key] = self._around_name(place)
        around = self._texts[key]
        return hex_pickle(storage) if around is None else name.hex().join(around)

    def _around_name(self, place: tuple[str, int]) -> tuple[str, str] | None:
        """What the pickles of all contexts with names of that length have in common."""
        size = len(place[0].encode())
        one, other = (hex_pickle(self.at((sign * size, place[1]))) for sign in "xy")
        start, *more = one.split((b"x" * size).hex())
        if len(more) != 1 or other != (b"y" * size).hex().join((start, more[0])):
            return None
        return start, more[0]


class ValueTemplate:
    """An object that, in most trials, consists of the same as in the first one."""

    def __init__(self) -> None:
        # It, what it consists of, and its text: set in one step, whoever else is just here.
        self._first: tuple[Any, Any, str] | None = None

    def is_typical(self, value: Any) -> bool:
        """Whether ``value``, not None, is what :meth:`another` makes.

        Raises whatever an object raises that does not say what it consists of, or that cannot be
        compared.
        """
        # What a pickle is made of, so that objects of which it is equal have the same text.
        consists_of = value.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
        if self._first is None:
            # Deep copies: the first one may change.
            self._first = copy.deepcopy(value), copy.deepcopy(consists_of), hex_pickle(value)
        return bool(consists_of == self._first[1])

    def another(self) -> Any:
        """One like them; the parts of which it consists are those of all others."""
        assert self._first is not None
        first = self._first[0]
        one = object.__new__(type(first))
        one.__dict__.update(first.__dict__)
        return one

    def text_of(self, value: Any) -> str:
        """Its pickle in hexadecimal digits, as Ray writes it."""
        if self.is_typical(value) and self._first is not None:
            return self._first[2]
        return hex_pickle(value)


class _WithoutPickles:
    """Has a trial's attributes, and none that ``Trial.__getstate__`` makes a pickle of."""

    _nonjson_fields = ()


class StateWriter:
    """Writes the trials of one sweep, of which most have much in common."""

    def __init__(self) -> None:
        self.storages = StorageTemplate()
        self._typical: dict[str, ValueTemplate] = {}

    def write(self, trial: Trial, queues: bytes | None, plain: bool = False) -> tuple[str, str]:
        """What ``Trial.get_json_state`` returns, without its blanks and its log-once keys.

        ``queues``: the :func:`pickled_queues` of its metadata. ``plain``: see :func:`encode`.

        As Ray does, the text of the metadata is kept until one of them is set; what changes inside
        one (a last result that becomes ``done``) is not written before that.
        """
        state = self._state_of(trial)
        metadata = state.pop("run_metadata")
        state["storage"] = pickled(self.storages.text_of(trial.storage))
        text: str | None = getattr(metadata, "_cached_json", None)
        if text is None:
            values = dict(metadata.__dict__)
            values.pop("_cached_json", None)
            if queues is not None:
                # Where Ray makes a pickle of each queue.
                values[QUEUES] = pickled(queues.hex())
            if "checkpoint_manager" in values:
                text = self._text_of("checkpoint_manager", values["checkpoint_manager"])
                values["checkpoint_manager"] = pickled(text)
            text = metadata._cached_json = encode(values, plain)
        return encode(state, plain), text

    def _state_of(self, trial: Trial) -> dict[str, Any]:
        """What ``Trial.__getstate__`` returns; that pickles the same few objects for each trial."""
        bare: Any = object.__new__(_WithoutPickles)
        bare.__dict__ = trial.__dict__
        try:
            state = Trial.__getstate__(bare)
        except AttributeError:  # A Ray that looks at more than the attributes.
            return trial.__getstate__()
        for name in trial._nonjson_fields:
            state[name] = self._text_of(name, state.get(name))
        return state

    def _text_of(self, name: str, value: Any) -> str:
        if value is None:
            return _NOTHING
        try:
            return self._typical.setdefault(name, ValueTemplate()).text_of(value)
        except Exception:  # An object that does not say what it consists of, or is not comparable.
            return hex_pickle(value)


def pickled_queues(metadata: Any) -> bytes | None:
    """The pickle of Ray's queues of each metric's last numbers; None if they are anything else."""
    try:
        queues = metadata.__dict__[QUEUES]
        if not all(type(name) is str for name in queues):
            return None
        return pickle_by(_REDUCERS, queues)
    except Exception:  # Kept in another way, or of other things: Ray's own way tells what is wrong.
        return None


def read_entry(state_json: str, metadata_json: str, text: str) -> TrialRow:
    """What is written of a trial of which only the entry in a state file is known, ``text``."""
    state, metadata = json.loads(state_json), json.loads(metadata_json)
    return TrialRow(
        state["trial_id"],
        state["status"],
        metadata["error_filename"] is not None,
        text.encode(),
        state.get("relative_logdir"),
        reported_at=metadata["last_result_time"],
    )


def last_result_of_entry(metadata_json: str) -> dict[str, Any]:
    """The last result that an entry tells of."""
    return _decoded(json.loads(metadata_json), "last_result")


def reported_of_entry(metadata_json: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The last result that an entry tells of, and each metric's summary."""
    metadata = json.loads(metadata_json)
    return _decoded(metadata, "last_result"), _decoded(metadata, "metric_analysis")


def _decoded(metadata: dict[str, Any], part: str) -> dict[str, Any]:
    # Only these parts of the metadata are worth unpickling.
    text = json.dumps(metadata[part])
    value: dict[str, Any] = decode(text) if PICKLED in text else metadata[part]
    return value


_NOTHING = hex_pickle(None)
