"""Reads the text with which Ray's memory monitor says whom it killed, and why.

The text changes with Ray's versions; :data:`FORMATS` is the table of its forms. Of a text of
another form the verdict keeps the text itself.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ray_tune_memguard.diagnostics.deaths.record import MemoryUser

#: Ray writes "GB" and means 2**30 bytes.
_GIB = 2**30


@dataclass(frozen=True)
class MonitorReport:
    """What the monitor said.

    Attributes:
        used_bytes, total_bytes: memory of the node, as the monitor counts it.
        threshold_bytes: what may be in use.
        killed: the workers that it killed, with their sizes.
        largest: the largest processes of the node before the kill, the largest first.
    """

    used_bytes: int
    total_bytes: int
    threshold_bytes: int
    killed: tuple[MemoryUser, ...]
    largest: tuple[MemoryUser, ...]


@dataclass(frozen=True)
class MessageFormat:
    """One form of the text.

    Attributes:
        since: the first version of Ray whose text was seen in this form.
        memory: finds ``used`` and ``total`` in GB, and ``threshold`` in bytes or as a ``share``.
        victim: finds ``pid``, ``size`` in GB and ``name`` of each worker that was killed.
    """

    since: str
    memory: re.Pattern[str]
    victim: re.Pattern[str]


_VICTIM = re.compile(
    r"(?:Actor|Task)\(\w+\): job ID=[^()]*?task name=(?P<name>[^,]*),[^()]*?pid=(?P<pid>\d+), "
    r"(?:actual )?memory used=(?P<size>[\d.]+)GB"
)
FORMATS: tuple[MessageFormat, ...] = (
    MessageFormat(
        "2.60",
        re.compile(
            r"was (?P<used>[\d.]+)GB used / (?P<total>[\d.]+)GB limit.*?"
            r"exceeded threshold of (?P<threshold>\d+)B",
            re.DOTALL,
        ),
        _VICTIM,
    ),
    MessageFormat(
        "2.55",
        re.compile(
            r"low on memory\. Memory on the node .*? was (?P<used>[\d.]+)GB / "
            r"(?P<total>[\d.]+)GB \([\d.]+\), which exceeds the memory usage threshold of "
            r"(?P<share>[\d.]+\d)",
            re.DOTALL,
        ),
        _VICTIM,
    ),
    MessageFormat(
        "2.50",
        re.compile(
            r"was running was (?P<used>[\d.]+)GB / (?P<total>[\d.]+)GB \([\d.]+\), which exceeds "
            r"the memory usage threshold of (?P<share>[\d.]+\d)",
        ),
        re.compile(r"name=(?P<name>[^,]*), pid=(?P<pid>\d+), memory used=(?P<size>[\d.]+)GB"),
    ),
)
# Lines end with a line break or, in 2.55, with a comma.
_LARGEST = re.compile(
    r"(?P<pid>\d+)\t(?P<size>[\d.]+)\t(?P<name>[^\n]*?)(?=, \d+\t|, Refer to|\n|$)"
)


def read_monitor_message(text: str) -> MonitorReport | None:
    """What the monitor said; None if the text has no form that is known."""
    for form in FORMATS:
        found = form.memory.search(text)
        if found is None:
            continue
        values = found.groupdict()
        total = float(values["total"]) * _GIB
        threshold = values.get("threshold")
        limit = float(threshold) if threshold else total * float(values["share"])
        _, _, users = text.partition("memory users:")
        return MonitorReport(
            used_bytes=int(float(values["used"]) * _GIB),
            total_bytes=int(total),
            threshold_bytes=int(limit),
            killed=_users(form.victim, text),
            largest=_users(_LARGEST, users),
        )
    return None


def _users(pattern: re.Pattern[str], text: str) -> tuple[MemoryUser, ...]:
    return tuple(
        MemoryUser(
            pid=int(found["pid"]), bytes=int(float(found["size"]) * _GIB), name=found["name"]
        )
        for found in pattern.finditer(text)
    )
