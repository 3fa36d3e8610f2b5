"""Writes a trial's state record, as in Ray's experiment state file.

The decoded record is equal to Ray's. Its text is shorter, and takes a fraction of the time that
``Trial.get_json_state`` takes.
"""

from __future__ import annotations

from typing import cast

from ray.tune.experiment import Trial

from ray_tune_memguard.adapter.serialization.json_text import encode, hex_pickle, pickled
from ray_tune_memguard.adapter.serialization.metric_queues import QUEUES
from ray_tune_memguard.adapter.serialization.templates import StorageTemplate, ValueTemplate

_NOTHING = hex_pickle(None)


class _WithoutPickles:
    """Has a trial's attributes, but none that ``Trial.__getstate__`` pickles."""

    _nonjson_fields = ()


class StateWriter:
    """Writes the state records of one run's trials."""

    def __init__(self) -> None:
        self.storages = StorageTemplate()
        self._typical: dict[str, ValueTemplate] = {}

    def write(self, trial: Trial, queues: bytes | None, plain: bool = False) -> tuple[str, str]:
        """Write the two texts of a trial's state record, as ``Trial.get_json_state`` does.

        Like Ray, it caches the text of the metadata until one of their attributes is set; a change
        inside one (a last result that becomes ``done``) is not written before that.

        Args:
            trial: the trial.
            queues: the :func:`pickled_queues` of its metadata.
            plain: see :func:`encode`.
        """
        state = self._state_of(trial)
        del state["run_metadata"]
        metadata = trial.run_metadata
        state["storage"] = pickled(self.storages.text_of(trial.storage))
        text: str | None = getattr(metadata, "_cached_json", None)
        if text is None:
            values = dict(metadata.__dict__)
            values.pop("_cached_json", None)
            if queues is not None:
                # Ray would pickle each queue by itself.
                values[QUEUES] = pickled(queues.hex())
            if "checkpoint_manager" in values:
                text = self._text_of("checkpoint_manager", values["checkpoint_manager"])
                values["checkpoint_manager"] = pickled(text)
            text = encode(values, plain)
            vars(metadata)["_cached_json"] = text
        return encode(state, plain), text

    def _state_of(self, trial: Trial) -> dict[str, object]:
        """``Trial.__getstate__``, without pickling the same few objects for each trial."""
        bare = object.__new__(_WithoutPickles)
        bare.__dict__ = trial.__dict__
        try:
            state = Trial.__getstate__(cast(Trial, bare))
        except AttributeError:  # A Ray whose `__getstate__` uses more than the attributes.
            return trial.__getstate__()
        for name in trial._nonjson_fields:
            state[name] = self._text_of(name, state.get(name))
        return state

    def _text_of(self, name: str, value: object) -> str:
        if value is None:
            return _NOTHING
        try:
            return self._typical.setdefault(name, ValueTemplate()).text_of(value)
        except Exception:  # An object that cannot be taken apart or compared.
            return hex_pickle(value)
