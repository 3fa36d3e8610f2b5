"""Reads the text with which Ray's memory monitor says whom it killed, and why.

The text changes with Ray's versions; the patterns here know those of 2.50 to 2.60. Of a text of
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
        threshold_bytes: what may be in use; None if it does not say, as for the limit of a cgroup.
        workers: the workers that it killed, and those that it considered, with their sizes.
        largest: the largest processes of the node before the kill, the largest first.
    """

    used_bytes: int
    total_bytes: int
    threshold_bytes: int | None
    workers: tuple[MemoryUser, ...]
    largest: tuple[MemoryUser, ...]


# "was 4.27GB / 23.59GB (0.18)"; since 2.59 "was 4.27GB used / 23.59GB limit (0.18)".
_MEMORY = re.compile(
    r"was (?P<used>[\d.]+)GB(?: used)? / (?P<total>[\d.]+)GB(?: limit)? \([\d.]+\)"
)
# Up to 2.55 a share of the total, since then bytes.
_SHARE = re.compile(r"exceeds the memory usage threshold of (?P<share>\d+(?:\.\d+)?)")
_THRESHOLD = re.compile(r"exceeded threshold of (?P<bytes>\d+)B")
# Up to 2.54, of the one worker: "(lease ID: …, name=A, pid=1, memory used=0.77GB)". Since then, of
# each: "(Actor(…): job ID=…, task name=A, required resources={…}, pid=1, actual memory used=…";
# "(Task: …" is also an actor in its constructor, and an idle worker has no name.
_WORKER = re.compile(
    r"(?:\bname=(?P<name>[^\n]*?), (?:required resources=[^\n]*?)?|no lease granted: [^\n]*?)"
    r"\bpid=(?P<pid>\d+), (?:actual )?memory used=(?P<size>[\d.]+)GB"
)
# Lines end with a line break or, in 2.55, with a comma, or, in 2.56, with a semicolon.
_LARGEST = re.compile(
    r"(?P<pid>\d+)\t(?P<size>[\d.]+)\t(?P<name>[^\n]*?)(?=[,;] \d+\t|[,;] Refer to|\n|$)"
)


def read_monitor_message(text: str) -> MonitorReport | None:
    """What the monitor said; None if the text has no form that is known."""
    found = _MEMORY.search(text)
    if found is None:
        return None
    total = float(found["total"]) * _GIB
    before, _, users = text.partition("memory users:")
    return MonitorReport(
        used_bytes=int(float(found["used"]) * _GIB),
        total_bytes=int(total),
        threshold_bytes=_threshold(text, total),
        workers=_users(_WORKER, before),
        largest=_users(_LARGEST, users),
    )


def _threshold(text: str, total: float) -> int | None:
    if found := _THRESHOLD.search(text):
        return int(found["bytes"])
    if found := _SHARE.search(text):
        return int(total * float(found["share"]))
    return None


def _users(pattern: re.Pattern[str], text: str) -> tuple[MemoryUser, ...]:
    return tuple(
        MemoryUser(
            pid=int(found["pid"]),
            bytes=int(float(found["size"]) * _GIB),
            name=found["name"] or "unnamed",
        )
        for found in pattern.finditer(text)
    )
