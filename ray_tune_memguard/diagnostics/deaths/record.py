"""The record of a trial's death, and how it is read."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_tune_memguard.diagnostics.deaths import table
from ray_tune_memguard.report.records import known_fields, read_records

#: The kind of the records; their files are ``.memguard/deaths-<run>.jsonl``.
KIND = "deaths"

# Causes. What they are called in a line is in `verdict.py`.
RAY_MEMORY_MONITOR = "ray_memory_monitor"
KERNEL_OOM = "kernel_oom"
SIGKILL_OR_EXIT = "sigkill_or_exit"
CRASH = "crash"
SIGTERM = "sigterm"
EXIT_CODE = "exit_code"
MEMORY_ERROR = "memory_error"
CUDA_OUT_OF_MEMORY = "cuda_out_of_memory"
NODE_DIED = "node_died"
RAY_KILL = "ray_kill"
OWNER_DIED = "owner_died"
UNKNOWN_CAUSE = "unknown"
#: Causes that say that memory was short.
OUT_OF_MEMORY = frozenset({RAY_MEMORY_MONITOR, KERNEL_OOM, MEMORY_ERROR, CUDA_OUT_OF_MEMORY})

# How sure a verdict is.
CERTAIN, LIKELY, UNKNOWN = "certain", "likely", "unknown"


@dataclass(frozen=True)
class MemoryUser:
    """A process, and what it used.

    Attributes:
        pid: the process.
        bytes: resident memory in bytes.
        name: its command, or the name of its trial.
        trial_id: its trial; empty for a process that is no trial.
        growth: how fast it grew, in bytes per second; None if that was not measured.
    """

    pid: int
    bytes: int
    name: str
    trial_id: str = ""
    growth: float | None = None


@dataclass(frozen=True)
class Death:
    """The death of a trial's process, or a trial that ran out of memory by itself.

    Attributes:
        time: when the run was told, in seconds since the epoch.
        trial_id, trial_name: the trial.
        cause: ``ray_memory_monitor``, ``kernel_oom``, ``sigkill_or_exit``, ``crash`` (with
            ``detail`` as the signal), ``sigterm``, ``exit_code`` (with ``detail`` as the code),
            ``memory_error``, ``cuda_out_of_memory``, ``node_died``, ``ray_kill``, ``owner_died`` or
            ``unknown``.
        certainty: ``certain``, ``likely`` or ``unknown``.
        summary: the line of the log.
        evidence: what the verdict follows from.
        absent: what could not be asked, and why.
        detail: the signal's name, the exit code, or the cgroup whose limit was reached.
        is_retried: whether Ray starts the trial again.
        failures: how often the trial has failed, with this time.
        pid, node_id, node_ip: the process and its node; 0 or empty if unknown.
        size_bytes: resident memory of the process at the end; None if it is not known.
        size_source: who told the size.
        growth: how fast it grew, in bytes per second; None if that was not measured.
        used_bytes, limit_bytes: memory of the node, and what may be in use; None if not known.
        culprit: the process that used most on the node then; None if it is not known. It may be the
            trial itself.
        largest: the largest processes of the node then, the largest first.
        advice: what to do.
        error: Ray's text, up to 4,000 characters.
    """

    time: float
    trial_id: str
    trial_name: str
    cause: str
    certainty: str
    summary: str = ""
    evidence: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    detail: str = ""
    is_retried: bool = False
    failures: int = 1
    pid: int = 0
    node_id: str = ""
    node_ip: str = ""
    size_bytes: int | None = None
    size_source: str = ""
    growth: float | None = None
    used_bytes: int | None = None
    limit_bytes: int | None = None
    culprit: MemoryUser | None = None
    largest: tuple[MemoryUser, ...] = ()
    advice: str = ""
    error: str = ""

    @property
    def is_culprit(self) -> bool:
        """Whether this trial itself used most on its node."""
        return self.culprit is not None and self.culprit.trial_id == self.trial_id


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
