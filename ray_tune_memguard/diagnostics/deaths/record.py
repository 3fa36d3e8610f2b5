"""The record of a trial's death."""

from __future__ import annotations

from dataclasses import dataclass

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
