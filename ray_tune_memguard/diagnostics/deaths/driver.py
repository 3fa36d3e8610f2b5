"""Finds out whether the kernel killed the driver of an earlier run."""

from __future__ import annotations

import csv
from pathlib import Path

from ray_tune_memguard.diagnostics.deaths.advice import format_size
from ray_tune_memguard.report.driver_record import DriverRecord
from ray_tune_memguard.report.series import FILE_PATTERN, RssPoint, RssSeries
from ray_tune_memguard.system.kernel_log import (
    KernelLogError,
    OomKill,
    boot_id,
    kills_of_log,
    oom_kills_of_machine,
    sees_machine_pids,
)

_COUNTS = ("trials", "completed", "errored", "rss_bytes")
# The clock of the log may differ from that of the record by this much.
_CLOCK_TOLERANCE_S = 1.0


def what_ended_it(begin: DriverRecord, file: Path) -> str | None:
    """A sentence about a driver that ended without a word, if the kernel may have killed it.

    Args:
        begin: how the run began.
        file: the file of this record.

    Returns:
        The sentence; None if the kernel did not kill it, or if nothing is known: it ran on another
        machine, or the machine was restarted since.
    """
    if not begin.boot_id or begin.boot_id != boot_id():
        return None
    size = _last_rss(file)
    try:
        kill = _kill_of(begin)
    except KernelLogError as error:
        count = oom_kills_of_machine()
        if count is None or begin.oom_kills is None or count <= begin.oom_kills:
            return None
        return (
            f"The driver of the last run (process {begin.pid}) ended without a word, and the "
            f"kernel's OOM killer has killed something on this machine since it began. Whether it "
            f"killed the driver cannot be told ({error}).{size}"
        )
    if kill is None:
        return None
    where = f" at the limit of cgroup {kill.cgroup}" if kill.cgroup else ""
    return (
        f"The kernel's OOM killer killed the driver of the last run (process {begin.pid}){where}, "
        f"when it used {format_size(kill.rss_bytes)} (certain: the kernel's log).{size}"
    )


def _kill_of(begin: DriverRecord) -> OomKill | None:
    if not sees_machine_pids():
        raise KernelLogError("the kernel's log has other process numbers than this container")
    since = begin.kernel_time_s - _CLOCK_TOLERANCE_S
    kills = [
        kill for kill in kills_of_log() if kill.pid == begin.pid and kill.kernel_time_s >= since
    ]
    return kills[-1] if kills else None


def _last_rss(file: Path) -> str:
    """What the RSS series of the same run says last; empty if it says nothing."""
    run = file.stem.partition("-")[2]
    path = file.with_name(FILE_PATTERN.replace("*", run))
    series = RssSeries(None)
    try:
        with path.open(newline="", encoding="utf-8") as rows:
            for row in csv.DictReader(rows):
                counts = [int(row[name]) for name in _COUNTS]
                series.add(RssPoint(float(row["time"]), *counts))
    except (OSError, ValueError, KeyError, TypeError):
        pass  # The last line may be torn.
    return f" Its last report: {series.line()}." if series.recent else ""
