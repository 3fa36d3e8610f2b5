"""Parts that most trials of a run have alike, compared with the first trial's and written once."""

from __future__ import annotations

import copy
import pickle

from ray.train._internal.storage import StorageContext

from ray_tune_memguard.adapter.serialization.json_text import hex_pickle
from ray_tune_memguard.adapter.serialization.spliced_pickle import SplicedPickles


class StorageTemplate:
    """The storage context that a run's trials have, each with its own directory.

    Contexts that differ from the first one in more than their directory and the number of their
    checkpoint are not typical: for them there is None.
    """

    def __init__(self) -> None:
        self._first: StorageContext | None = None
        # What is the same in all of them; and in their syncers, of which each has its own.
        self._shared: dict[str, object] = {}
        self._of_syncer: dict[str, object] = {}
        self._pickles = SplicedPickles(lambda name, number: self.at((name, number)))

    def place_of(self, storage: StorageContext | None) -> tuple[str, int] | None:
        """Its directory and checkpoint number, by which :meth:`at` makes an equal one."""
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

    def at(self, place: tuple[str, int]) -> StorageContext:
        assert self._first is not None
        storage = self._copy(self._first)
        storage.trial_dir_name, storage.current_checkpoint_index = place
        return storage

    def text_of(self, storage: StorageContext | None) -> str:
        """Its pickle in hexadecimal digits, as Ray writes it."""
        place = self.place_of(storage)
        spliced = None if place is None else self._pickles.of(*place)
        return hex_pickle(storage) if spliced is None else spliced


class ValueTemplate:
    """An object that, in most trials, consists of the same as in the first one."""

    def __init__(self) -> None:
        # It, what it consists of, and its text: set in one step, whoever else is just here.
        self._first: tuple[object, object, str] | None = None

    def is_typical(self, value: object) -> bool:
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

    def another(self) -> object:
        """One like them; the parts of which it consists are those of all others."""
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
