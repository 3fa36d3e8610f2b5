"""Protocols of the trials, of the store of trials and of the codec that this package uses.

The package imports neither Ray nor SQLite. Its callers pass in a :class:`TrialRows` (for example
``store.trial_store.TrialStore``) and a :class:`TrialCodec` (for Ray's trials,
``adapter.serialization.trial_pickle.TrialStateCodec``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, TypeVar

#: The statuses of a finished trial, and so of every row.
FINISHED = ("TERMINATED", "ERROR")


class TrialLike(Protocol):
    """The attributes of a trial that this package uses. Its class must have a ``__dict__``."""

    trial_id: str
    status: str

    def is_finished(self) -> bool: ...

    @property
    def last_result(self) -> dict[str, object]: ...

    @property
    def metric_analysis(self) -> Mapping[str, Mapping[str, float]]:
        """Ray's summaries: values by metric and by kind (``max``, ``last``, …)."""
        ...


TrialT = TypeVar("TrialT", bound=TrialLike)


class TrialRow(Protocol):
    """A spilled trial's position, id and status, without its state."""

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
        """The rows with ``start <= position < stop``, in order."""

    def positions(self) -> Iterator[int]: ...

    def extent(self) -> tuple[int, int]:
        """The number of rows, and the highest position, -1 without any."""

    def count(self, status: str) -> int: ...

    def with_status(self, status: str, after: int, limit: int) -> Sequence[TrialRow]:
        """Rows with a higher position than ``after``, in order."""

    def with_error(self) -> Sequence[TrialRow]:
        """Trials that ever failed, in order."""

    def directory(self, trial_id: str) -> str | None:
        """The name of the trial's directory. Raises KeyError without a row."""

    def has_state(self, trial_id: str) -> bool:
        """Whether :meth:`state` returns one. Raises KeyError without a row."""

    def state(self, trial_id: str) -> bytes | None:
        """The codec's dump; None if another process dumped it. Raises KeyError without a row."""

    def states(self, positions: Sequence[int]) -> Sequence[bytes | None]:
        """The :meth:`state` at each of some hundred positions. Raises KeyError without a row."""

    def state_record(self, trial_id: str) -> bytes:
        """The trial's record in the experiment state file. Raises KeyError without a row."""


class TrialCodec(Protocol[TrialT]):
    """Serializes and deserializes finished trials, for this process."""

    trial_class: type[TrialT]

    def dump(self, trial: TrialT) -> bytes:
        """Serialize the whole state of ``trial``. Raises if a part does not pickle."""

    def load(self, raw: bytes) -> dict[str, object]:
        """The attributes that ``dump`` wrote."""

    def load_for_report(self, raw: bytes) -> dict[str, object]:
        """Those of the attributes that a report on all trials reads: name, config and results."""

    def load_state_record(self, record: bytes) -> dict[str, object]:
        """The attributes of a trial, from the state record that another process wrote."""

    def load_record_for_report(self, record: bytes) -> dict[str, object]:
        """Those of them that a report on all trials reads."""
