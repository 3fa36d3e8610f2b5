"""Records of a run's driver: when it began and ended, so that a later run knows how it ended."""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_tune_memguard.report.records import file_pattern, known_fields, read_records
from ray_tune_memguard.report.series_file import report_files
from ray_tune_memguard.system.kernel_log import boot_id, oom_kills_of_machine

#: The kind of the records; their files are ``.memguard/driver-<run>.jsonl``.
KIND = "driver"
FILE_PATTERN = file_pattern(KIND)
BEGIN, END = "begin", "end"


@dataclass(frozen=True)
class DriverRecord:
    """The begin or the end of a run.

    Attributes:
        event: ``begin`` or ``end``.
        time: seconds since the epoch.
        pid: the driver's process.
        host: the name of its machine.
        boot_id: identifies the time since the machine started.
        kernel_time_s: seconds since the machine started, by the clock of the kernel's log.
        oom_kills: the machine's number of OOM kills until then; None if it cannot be read.
        pid_namespace: in which ``pid`` is its number, such as a container; empty if unknown.
    """

    event: str
    time: float
    pid: int
    host: str
    boot_id: str
    kernel_time_s: float
    oom_kills: int | None
    # Earlier versions wrote none.
    pid_namespace: str = ""

    @classmethod
    def now(cls, event: str, kernel_time_s: float) -> DriverRecord:
        """A record of this process.

        Args:
            event: ``begin`` or ``end``.
            kernel_time_s: see :class:`DriverRecord`.
        """
        return cls(
            event,
            time.time(),
            os.getpid(),
            socket.gethostname(),
            boot_id(),
            kernel_time_s,
            oom_kills_of_machine(),
            pid_namespace(),
        )

    def is_seen_from_here(self) -> bool:
        """Whether this process can see the driver, if it is there."""
        return (
            bool(self.boot_id)
            and (self.boot_id, self.host) == (boot_id(), socket.gethostname())
            and self.pid_namespace in ("", pid_namespace())
        )


def pid_namespace() -> str:
    """Identifies what gives this process its number; empty if the system does not tell."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def interrupted_run(directory: Path, own: Path | None) -> tuple[DriverRecord, Path] | None:
    """The begin of the last earlier run, and its file, if that run has not recorded its end.

    Args:
        directory: the directory of the runs' records.
        own: this run's file.
    """
    last = last_record(directory, own)
    return None if last is None or last[0].event == END else last


def last_record(path: Path, own: Path | None = None) -> tuple[DriverRecord, Path] | None:
    """The last record of the last run, and its file; None if that run has no intact record.

    Args:
        path: the experiment's directory, or the directory of the runs' records.
        own: the file of a run that does not count.
    """
    files = [file for file in report_files(path, FILE_PATTERN) if file != own]
    records = read_records(files[-1], KIND, _record) if files else []
    return (records[-1], files[-1]) if records else None


def run_of(file: Path) -> str:
    """The name of the run that a file of records is of."""
    return file.stem.removeprefix(f"{KIND}-")


def _record(row: dict[str, Any]) -> DriverRecord:
    values: dict[str, Any] = known_fields(DriverRecord, row)
    return DriverRecord(**values)
