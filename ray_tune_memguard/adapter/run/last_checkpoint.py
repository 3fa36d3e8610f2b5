"""What a run's last experiment checkpoint has written: told by the writer, read by uploads."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class LastCheckpoint:
    """The last checkpoint of a run.

    Attributes:
        number: its number in the run; 0 before the first one.
        end: how many bytes of its state file are records of finished trials; None if not all of
            its files were written, so that they may be of different moments.
    """

    number: int = 0
    end: int | None = None
