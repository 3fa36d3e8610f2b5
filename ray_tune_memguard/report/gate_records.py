"""The records of the launch gate: why trials waited, which were paused, why a run was stopped."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from ray_tune_memguard.report.records import known_fields, read_records

KIND = "gate"
Action = Literal["pause", "resume", "shed", "stop"]


@dataclass(frozen=True)
class GateRecord:
    """One action of the launch gate.

    Attributes:
        time: when, in seconds since the epoch.
        action: ``pause``: trials wait on this node; ``resume``: none waits any more, or the run
            ends; ``shed``: a running trial was paused; ``stop``: the run was ended so that it can
            be resumed.
        node: the id of the node.
        reason: why, in words.
        used_bytes: bytes in use, of the limit that decided; 0 if none did.
        total_bytes: this limit; 0 if none decided.
        source: what sets this limit: ``the machine``, or a cgroup's directory.
        running: the trials that ran on the node.
        expected_bytes: what the next trial was expected to take; 0 if nothing was known.
        started: for ``resume``: the trials that started since the pause.
        seconds: for ``resume``: how long the pause was.
        trial_id: for ``shed``: the trial.
    """

    time: float
    action: Action
    node: str
    reason: str
    used_bytes: int = 0
    total_bytes: int = 0
    source: str = ""
    running: int = 0
    expected_bytes: int = 0
    started: int = 0
    seconds: float = 0.0
    trial_id: str = ""


def read_gate(path: str | os.PathLike[str]) -> list[GateRecord]:
    """What the launch gate did in all runs of an experiment.

    Args:
        path: the experiment's directory, the ``.memguard`` directory in it, or one file.

    Returns:
        The records, run by run, each in the order of time; an empty list if there is none.

    Examples:
        >>> from ray_tune_memguard import read_gate
        >>> [(record.action, record.running) for record in read_gate(experiment)]
        [('pause', 2), ('resume', 1)]
    """
    return read_records(path, KIND, _record)


def waits(records: Iterable[GateRecord], end: float) -> list[tuple[float, float]]:
    """When trials of one run waited on a node, in seconds since the epoch.

    Args:
        records: of the run.
        end: when the run ended, for pauses that were not closed because it was killed.
    """
    found = []
    paused: dict[str, float] = {}
    for record in records:
        if record.action == "pause":
            paused.setdefault(record.node, record.time)
        elif record.action == "resume" and record.node in paused:
            found.append((paused.pop(record.node), record.time))
        elif record.action == "stop":
            # What waits from now on waits for the next run.
            return found + [(begin, record.time) for begin in paused.values()]
    return found + [(begin, max(begin, end)) for begin in paused.values()]


def _record(row: dict[str, object]) -> GateRecord:
    known: dict[str, Any] = {"time": 0.0, "action": "pause", "node": "", "reason": ""}
    return GateRecord(**{**known, **known_fields(GateRecord, row)})
