"""Reads the records of deaths in an experiment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ray_tune_memguard.diagnostics.deaths import table
from ray_tune_memguard.diagnostics.deaths.record import KIND, Death, MemoryUser
from ray_tune_memguard.report.records import known_fields, read_records


class Deaths(list[Death]):
    """Deaths in order of time; a notebook shows them as a table."""

    def _repr_html_(self) -> str:
        return table.html(self)


def read_deaths(path: str | os.PathLike[str]) -> Deaths:
    """Read who died in an experiment and why, in all of its runs.

    Args:
        path: the experiment's directory (``ResultGrid.experiment_path``, on a local disk), the
            ``.memguard`` directory in it, or one ``deaths-*.jsonl`` file.

    Returns:
        A list with a :class:`Death` for each trial's process that died, and for each trial that
        ended with an out-of-memory error of its own, in order of time. Empty if nothing died. A
        notebook shows it as a table.

    Raises:
        FileNotFoundError: there is nothing at ``path``.

    Examples:
        >>> from ray_tune_memguard import read_deaths
        >>> for death in read_deaths(experiment):
        ...     print(death.trial_id, death.cause, death.certainty)
        ...     print(death.size_bytes, death.culprit.name, death.culprit.bytes)
        00001 ray_memory_monitor certain
        115343360 train_00000 933232640
    """
    if not Path(path).expanduser().exists():
        raise FileNotFoundError(f"There is no experiment at {os.fspath(path)}")
    return Deaths(sorted(read_records(path, KIND, _death), key=lambda death: death.time))


def _death(row: dict[str, Any]) -> Death:
    values: dict[str, Any] = known_fields(Death, row)
    for name in ("evidence", "absent"):
        values[name] = tuple(values.get(name) or ())
    values["largest"] = tuple(_user(user) for user in values.get("largest") or ())
    culprit = values.get("culprit")
    values["culprit"] = _user(culprit) if culprit else None
    return Death(**values)


def _user(row: dict[str, Any]) -> MemoryUser:
    values: dict[str, Any] = known_fields(MemoryUser, row)
    return MemoryUser(**values)
