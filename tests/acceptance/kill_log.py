"""The log of a sweep that is to be killed; it outlives the driver.

A line is written with one ``write`` to a file that is open for appending, so it is there whole or
not at all, whoever is killed next, and lines of several processes do not mix. Each is
``KIND time [trial_id] [score]``, time in seconds since the epoch:

- ``F`` ``fit()`` is called, ``R`` ``Tuner.restore`` is called, ``O`` Ray opened what was there (if
  it cannot, it begins a new sweep without a word), ``B`` all is ready for the first step;
- ``S`` a trial starts to run (written by the trainable, so a trial that runs again is seen);
- ``C`` a trial is complete, with its score (written by the last of the user's callbacks);
- ``K`` the driver is about to kill itself.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

#: Where the log is. The driver's environment is inherited by the actors.
LOG_VARIABLE = "MEMGUARD_KILLS_LOG"
FIT, RESTORE, OPENED, BEGIN, START, COMPLETE, KILL = "F", "R", "O", "B", "S", "C", "K"

#: How many lines of each kind this process has written.
written: dict[str, int] = {}


def write_line(kind: str, *words: object) -> None:
    """Append one line to the log."""
    line = " ".join([kind, f"{time.time():.6f}", *map(str, words)]) + "\n"
    file = os.open(os.environ[LOG_VARIABLE], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)
    written[kind] = written.get(kind, 0) + 1


@dataclass(frozen=True)
class Line:
    """One line of the log."""

    kind: str
    time: float
    trial_id: str = ""
    score: float | None = None

    @classmethod
    def parse(cls, text: str) -> Line:
        """Read a line that :func:`write_line` wrote."""
        kind, at, *words = text.split()
        trial_id = words[0] if words else ""
        return cls(kind, float(at), trial_id, float(words[1]) if len(words) > 1 else None)


def read_log(path: Path) -> list[Line]:
    """Read the lines that are there; none if the file is not."""
    if not path.exists():
        return []
    return [Line.parse(text) for text in path.read_text().splitlines()]
