"""What this package needs of a trial, of a store of trials and of a codec, as protocols.

The package knows neither Ray nor SQLite. Who uses it passes in a :class:`TrialRows` (for example
``store.trial_store.TrialStore``) and a :class:`TrialCodec` (for Ray's trials,
``adapter.serialization.trial_pickle.TrialStateCodec``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, TypeVar

#: The statuses of a finished trial, and so of every row.
FINISHED = ("TERMINATED", "ERROR")


class TrialLike(Protocol):
    """What is asked of a trial here. It may be an object of any class that has a ``__dict__``."""

    trial_id: str
    status: str

    def is_finished(self) -> bool: ...

    @property
    def last_result(self) -> dict[str, object]: ...

    @property
    def metric_analysis(self) -> Mapping[str, Mapping[str, float]]:
        """By metric and by Ray's words (``max``, ``last``, …): the values that are compared."""
        ...


TrialT = TypeVar("TrialT", bound=TrialLike)


class TrialRow(Protocol):
    """Where a spilled trial stands, without its state."""

    @property
    def position(self) -> int: ...
    @property
    def trial_id(self) -> str: ...
    @property
    def status(self) -> str: ...


class TrialRows(Protocol):
    """The store of spilled trials, one row each, by ``position`` and by trial id.

    A row never changes and is never removed: it is the durable record of a finished trial.
    Each method may raise ``sqlite3.Error``: the store cannot be read or written now.
    """

    def row(self, trial_id: str) -> TrialRow | None: ...

    def rows(self, start: int, stop: int) -> Sequence[TrialRow]:
        """Those with ``start <= position < stop``, in order."""

    def positions(self) -> Iterator[int]: ...

    def extent(self) -> tuple[int, int]:
        """How many rows there are, and the highest position, -1 without any."""

    def count(self, status: str) -> int: ...

    def with_status(self, status: str, after: int, limit: int) -> Sequence[TrialRow]:
        """Rows with a higher position than ``after``, in order."""

    def with_error(self) -> Sequence[TrialRow]:
        """Trials that ever failed, in order."""

    def state(self, trial_id: str) -> bytes | None:
        """What the codec dumped; None if another process did. Raises KeyError without a row."""

    def state_record(self, trial_id: str) -> bytes:
        """What the experiment state file has of the trial. Raises KeyError without a row."""


class TrialCodec(Protocol[TrialT]):
    """Takes a finished trial apart and puts it together again, in this process."""

    trial_class: type[TrialT]

    def dump(self, trial: TrialT) -> bytes:
        """The whole state of ``trial``. Raises whatever its parts raise when they do not pickle."""

    def load(self, raw: bytes) -> dict[str, object]:
        """The attributes that ``dump`` wrote."""

    def load_state_record(self, record: bytes) -> dict[str, object]:
        """The attributes of a trial that another process wrote to the experiment state file."""
