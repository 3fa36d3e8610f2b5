"""Serializes once the parts that are equal in most trials of a run."""

from __future__ import annotations

import copy
import pickle

from ray.train._internal.storage import StorageContext

from ray_tune_memguard.adapter.serialization.json_text import hex_pickle
from ray_tune_memguard.adapter.serialization.spliced_pickle import SplicedPickles


class StorageTemplate:
    """The storage context of a run's trials, without the directory of a trial.

    A context is *typical* if it differs from the first one only in the name of the directory and
    the number of the checkpoint.
    """

    def __init__(self) -> None:
        self._first: StorageContext | None = None
        # The attributes that are equal in all contexts, and in their syncers.
        self._shared: dict[str, object] = {}
        self._of_syncer: dict[str, object] = {}
        self._pickles = SplicedPickles(lambda name, number: self.at((name, number)))

    def key_of(self, storage: StorageContext | None) -> tuple[str, int] | None:
        """Directory and checkpoint number of a typical context, for :meth:`at`; otherwise None."""
        if storage is None:
            return None
        shared = dict(storage.__dict__)
        name = shared.pop("trial_dir_name", None)
        number = shared.pop("current_checkpoint_index", None)
        syncer = shared.pop("syncer", None)
        if not (type(name) is str and type(number) is int and hasattr(syncer, "__dict__")):
            return None
        if self._first is None:
            self._first, self._shared = self._copy(storage), shared
            self._of_syncer = dict(syncer.__dict__)
        is_typical = (
            shared == self._shared
            and type(syncer) is type(self._first.syncer)
            and syncer.__dict__ == self._of_syncer
        )
        return (name, number) if is_typical else None

    @staticmethod
    def _copy(storage: StorageContext) -> StorageContext:
        like = copy.copy(storage)
        like.syncer = copy.copy(storage.syncer)
        return like

    def at(self, key: tuple[str, int]) -> StorageContext:
        """The typical context with this directory and checkpoint number."""
        assert self._first is not None
        storage = self._copy(self._first)
        storage.trial_dir_name, storage.current_checkpoint_index = key
        return storage

    def text_of(self, storage: StorageContext | None) -> str:
        """Its pickle in hexadecimal digits, as Ray writes it."""
        key = self.key_of(storage)
        spliced = None if key is None else self._pickles.of(*key)
        return hex_pickle(storage) if spliced is None else spliced


class ValueTemplate:
    """An object that is equal in most trials of a run."""

    def __init__(self) -> None:
        # The object, its parts, and its text; one attribute, so that threads see all or none.
        self._first: tuple[object, object, str] | None = None

    def is_typical(self, value: object) -> bool:
        """Whether ``value``, which is not None, is equal to what :meth:`another` returns.

        Raises:
            Exception: the object cannot be taken apart or compared.
        """
        # A pickle is made of these parts, so objects with equal parts have the same text.
        parts = value.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
        if self._first is None:
            # Deep copies, because the first object may change.
            self._first = copy.deepcopy(value), copy.deepcopy(parts), hex_pickle(value)
        return bool(parts == self._first[1])

    def another(self) -> object:
        """A new object like the first one; it shares its parts with the others."""
        assert self._first is not None
        first = self._first[0]
        one = object.__new__(type(first))
        one.__dict__.update(first.__dict__)
        return one

    def text_of(self, value: object) -> str:
        """Its pickle in hexadecimal digits, as Ray writes it."""
        if self.is_typical(value) and self._first is not None:
            return self._first[2]
        return hex_pickle(value)
