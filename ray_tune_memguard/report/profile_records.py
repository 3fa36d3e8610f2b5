"""The profiles of trials: the record of each, and how it is read."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from ray_tune_memguard.report.records import known_fields, read_records

#: The beginning of the records' files' names, and of the profiles'.
KIND = "profiles"
FILE_PREFIX = "memray-"
State = Literal["running", "completed", "error", "paused", "unfinished", "removed"]


@dataclass(frozen=True)
class TrialProfile:
    """The profile of one trial.

    Attributes:
        trial_id: the trial.
        state: ``running``; ``completed``, ``error`` or ``paused``: what ended the profile;
            ``unfinished``: the run ended first; ``removed``: heavier trials were profiled.
        time: of the record, in seconds since the epoch.
        file: the profile in the experiment's directory, relative to it; empty if it is not there.
        children: the files of forked processes beside it, by name.
        node: the id of the trial's node.
        address: the address of the node.
        pid: the trial's process there.
        path: the profile on the node, in the directory of the Ray session's logs.
        size_bytes: the size of the file on the node, or in the experiment; 0 if it is empty or
            could not be read.
        peak_bytes: the highest memory that was allocated at one time; 0 if it is not known: of a
            process that was killed, and of a file of more than 4 MiB with a record of each
            allocation, which takes long to read. ``memguard profile`` reads it.
        note: what is to be known about it, such as why it was stopped before the trial ended.
    """

    trial_id: str
    state: State
    time: float
    file: str = ""
    children: tuple[str, ...] = ()
    node: str = ""
    address: str = ""
    pid: int = 0
    path: str = ""
    size_bytes: int = 0
    peak_bytes: int = 0
    note: str = ""


def read_profiles(path: str | os.PathLike[str]) -> list[TrialProfile]:
    """The profiles that a :class:`ray_tune_memguard.MemrayProfiler` has made in an experiment.

    Args:
        path: the experiment's directory (``ResultGrid.experiment_path``, on a local disk), the
            ``.memguard`` directory in it, or one ``profiles-*.jsonl`` file.

    Returns:
        The latest record of each profile, in the order of their first ones; an empty list if there
        is none. Two runs of an experiment may have profiled the same trial.

    Examples:
        >>> from ray_tune_memguard import read_profiles
        >>> [(one.trial_id, one.peak_bytes / 2**20) for one in read_profiles(experiment)]
        [('00001', 83.0)]
    """
    records = read_records(path, KIND, _record)
    return list({(one.trial_id, one.node, one.pid): one for one in records}.values())


def _record(row: dict[str, object]) -> TrialProfile:
    known = {"trial_id": "", "state": "running", "time": 0.0, **known_fields(TrialProfile, row)}
    children = known.get("children")
    known["children"] = tuple(map(str, children)) if isinstance(children, list) else ()
    return TrialProfile(**known)  # type: ignore[arg-type]
