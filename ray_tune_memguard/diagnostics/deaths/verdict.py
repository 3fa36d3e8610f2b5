"""Judges what killed a trial's process, by the evidence, and says how certain that is.

:func:`judge` is a pure function: it asks nobody. ``evidence.py`` gathers the facts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from ray_tune_memguard.cluster.gcs import NODE_OUT_OF_MEMORY, ActorInfo, NodeInfo, WorkerInfo
from ray_tune_memguard.diagnostics.deaths import record as of
from ray_tune_memguard.diagnostics.deaths.monitor_message import (
    MonitorReport,
    read_monitor_message,
)
from ray_tune_memguard.diagnostics.deaths.record import CERTAIN, LIKELY, UNKNOWN
from ray_tune_memguard.system.kernel_log import KernelEvidence, OomKill

#: What a line says. ``{detail}`` is the verdict's detail.
PHRASES = {
    of.RAY_MEMORY_MONITOR: "was killed by Ray's memory monitor",
    of.KERNEL_OOM: "was killed by the kernel's OOM killer",
    of.SIGKILL_OR_EXIT: "was killed by a SIGKILL of another process or ended itself by os._exit: "
    "Ray and the kernel tell both alike",
    of.CRASH: "crashed with {detail}",
    of.SIGTERM: "was ended by a SIGTERM",
    of.EXIT_CODE: "ended itself with exit code {detail}",
    of.MEMORY_ERROR: "failed with MemoryError: its process was refused more memory",
    of.CUDA_OUT_OF_MEMORY: "ran out of GPU memory",
    of.NODE_DIED: "died with its node",
    of.RAY_KILL: "was ended by ray.kill",
    of.OWNER_DIED: "ended because the process that had created it died",
    of.UNKNOWN_CAUSE: "died, and why cannot be told",
}

_MONITOR_TEXT = "due to the node running low on memory"
_GPU = re.compile(
    r"(?:CUDA|HIP|cuda runtime) (?:error: )?out of memory|torch\.(?:cuda\.)?OutOfMemoryError|"
    r"CUDA_ERROR_OUT_OF_MEMORY|cudaErrorMemoryAllocation|RESOURCE_EXHAUSTED: (?:Out of memory|"
    r"OOM when allocating)"
)
_PYTHON = re.compile(r"^(?:[\w.]*\.)?_?(?:Array)?MemoryError\b", re.MULTILINE)
# Python's traceback has this between an error and what was raised while that one was handled.
_HANDLING = "During handling of the above exception, another exception occurred:"
_SIGNAL = re.compile(r"\*\*\* (?P<signal>SIG[A-Z]+) received at time")
# Ray repeats it with the number of the process: a child of the trial has the same stream.
_LOGGED = re.compile(r" E (?P<pid>\d+) \d+\] \S+: \*\*\* SIG[A-Z]+ received at time")
# Python writes the stack of the thread that crashed first, of which this is the innermost frame.
_FRAME = re.compile(r"(?:Current thread .*|Stack) \(most recent call first\):\n(.*)")
_FATAL = {
    "Fatal Python error: Segmentation fault": "SIGSEGV",
    "Fatal Python error: Aborted": "SIGABRT",
    "Fatal Python error: Bus error": "SIGBUS",
    "Fatal Python error: Floating": "SIGFPE",
    "Fatal Python error: Illegal instruction": "SIGILL",
}
_EXIT_CODE = re.compile(r"exit code (?P<code>-?\d+)")
#: In a container a kill in the log belongs to a process of about this size.
_SIZE_TOLERANCE = 0.3
# The kernel keeps 15 characters of a process's name.
_RAY_NAME = "ray::"


@dataclass(frozen=True)
class DeathFacts:
    """All that is known about one death.

    Attributes:
        error_text: the text of the error that Ray gave to Tune.
        is_alive: whether the error came from the trial's own code, in a process that lives on.
        is_memory_error: whether that error is Python's ``MemoryError``.
        pid: the process; None if unknown.
        actor, worker, node: what the control service says; None if it does not know.
        kernel: what the kernel of its node says; None if the node was not asked.
        stderr_tail: the end of what the process wrote to its error stream; None if not read.
        size_bytes: its last known size.
        is_largest: whether it was the largest process of its node; None if unknown.
        absent: what could not be asked, and why.
    """

    error_text: str
    is_alive: bool = False
    is_memory_error: bool = False
    pid: int | None = None
    actor: ActorInfo | None = None
    worker: WorkerInfo | None = None
    node: NodeInfo | None = None
    kernel: KernelEvidence | None = None
    stderr_tail: str | None = None
    size_bytes: int | None = None
    is_largest: bool | None = None
    absent: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """What killed the process.

    Attributes:
        cause: see :class:`ray_tune_memguard.diagnostics.deaths.record.Death`.
        certainty: ``certain``, ``likely`` or ``unknown``.
        evidence: what the verdict follows from.
        detail: the signal's name, the exit code, or the cgroup whose limit was reached.
        monitor: what Ray's memory monitor said, if it killed and its text could be read.
        kill: the entry of the kernel's log, if it killed and told.
    """

    cause: str
    certainty: str
    evidence: tuple[str, ...] = field(default=())
    detail: str = ""
    monitor: MonitorReport | None = None
    kill: OomKill | None = None

    def phrase(self) -> str:
        """What happened to the trial, as the rest of a sentence that begins with its name."""
        return PHRASES[self.cause].format(detail=self.detail)


def judge(facts: DeathFacts) -> Verdict | None:
    """What killed a trial's process.

    Args:
        facts: what is known.

    Returns:
        The verdict; None for an ordinary error of the trial's code.
    """
    if facts.is_alive:
        return _own_error(facts)
    return (
        _by_ray(facts) or _by_exit(facts) or _by_kernel(facts) or _by_signal(facts) or _rest(facts)
    )


def _own_error(facts: DeathFacts) -> Verdict | None:
    before, _, last = facts.error_text.rpartition(_HANDLING)
    if found := _GPU.search(last):
        return Verdict(of.CUDA_OUT_OF_MEMORY, CERTAIN, (f"its error says {found[0]!r}",))
    if facts.is_memory_error or _PYTHON.search(last):
        return Verdict(of.MEMORY_ERROR, CERTAIN, ("its error is a MemoryError",))
    if found := _GPU.search(before):
        evidence = f"it failed while it handled an error that says {found[0]!r}"
        return Verdict(of.CUDA_OUT_OF_MEMORY, LIKELY, (evidence,))
    if _PYTHON.search(before):
        return Verdict(of.MEMORY_ERROR, LIKELY, ("it failed while it handled a MemoryError",))
    return None


def _by_ray(facts: DeathFacts) -> Verdict | None:
    """Deaths that Ray caused, or knows."""
    reason = facts.actor.death_reason if facts.actor else ""
    told = []
    if facts.worker is not None and facts.worker.exit_type == NODE_OUT_OF_MEMORY:
        told.append(f"its worker's exit type is {NODE_OUT_OF_MEMORY}")
    if reason == "OUT_OF_MEMORY":
        told.append("Ray names memory as its actor's cause of death")
    if _MONITOR_TEXT in facts.error_text:
        told.append(f"Ray's error says {_MONITOR_TEXT!r}")
    if told:
        report = read_monitor_message(facts.error_text)
        return Verdict(of.RAY_MEMORY_MONITOR, CERTAIN, tuple(told), monitor=report)
    if reason == "NODE_DIED":
        told.append("Ray names its node as its actor's cause of death")
    if facts.node is not None and not facts.node.is_alive:
        message = facts.node.death_message
        told.append("Ray counts its node as dead" + (f": {message}" if message else ""))
    if told:
        return Verdict(of.NODE_DIED, CERTAIN, tuple(told))
    if reason in ("RAY_KILL", "OWNER_DIED"):
        cause = of.RAY_KILL if reason == "RAY_KILL" else of.OWNER_DIED
        return Verdict(cause, CERTAIN, (f"its actor's cause of death is {reason}",))
    return None


def _by_exit(facts: DeathFacts) -> Verdict | None:
    """Exits that the worker itself announced to Ray."""
    detail = _exit_detail(facts)
    if "receives a SIGTERM" in detail:
        return Verdict(of.SIGTERM, CERTAIN, ("its worker reported the SIGTERM to Ray",))
    if found := _EXIT_CODE.search(detail):
        evidence = f"its worker reported exit code {found['code']} to Ray"
        return Verdict(of.EXIT_CODE, CERTAIN, (evidence,), detail=found["code"])
    return None


def _exit_detail(facts: DeathFacts) -> str:
    if facts.worker is not None and facts.worker.exit_detail:
        return facts.worker.exit_detail
    return facts.error_text.partition("Worker exit detail:")[2]


def _by_kernel(facts: DeathFacts) -> Verdict | None:
    """Kills of the kernel's OOM killer."""
    kernel = facts.kernel
    if kernel is None:
        return None
    kill = next((kill for kill in reversed(kernel.kills) if kill.pid == facts.pid), None)
    if kernel.pids_are_ours and kill is not None:
        return _killed(kill, CERTAIN, f"the kernel's log says that it killed process {kill.pid}")
    if not kernel.pids_are_ours and (kill := _kill_of_container(facts, kernel)):
        return _killed(
            kill,
            LIKELY,
            f"the kernel's log says that it killed a process named {kill.name!r} of this size "
            "(it has another number outside of this container)",
        )
    if kernel.has_log:
        return None
    if kernel.cgroup_rise and facts.is_largest is not False:
        rise = "the number of OOM kills of a cgroup above this process rose"
        return Verdict(of.KERNEL_OOM, LIKELY, (rise,))
    if kernel.counter_rise and facts.is_largest:
        rise = "the machine's number of OOM kills rose, and this was its largest process"
        return Verdict(of.KERNEL_OOM, LIKELY, (rise,))
    return None


def _kill_of_container(facts: DeathFacts, kernel: KernelEvidence) -> OomKill | None:
    for kill in reversed(kernel.kills):
        if not kill.name.startswith(_RAY_NAME) or not facts.size_bytes:
            continue
        # The last measurement may be older than the kill, and so smaller.
        if kill.rss_bytes >= facts.size_bytes * (1 - _SIZE_TOLERANCE):
            return kill
    return None


def _killed(kill: OomKill, certainty: str, evidence: str) -> Verdict:
    where = f"at the limit of cgroup {kill.cgroup}" if kill.cgroup else "for the whole machine"
    return Verdict(of.KERNEL_OOM, certainty, (f"{evidence}, {where}",), kill.cgroup, kill=kill)


def _by_signal(facts: DeathFacts) -> Verdict | None:
    """Crashes, which leave a stack in the worker's error stream."""
    tail = facts.stderr_tail or ""
    crashed = [int(pid) for pid in _LOGGED.findall(tail)]
    if crashed and facts.pid and facts.pid not in crashed:
        return None
    found = _SIGNAL.findall(tail)
    signal = found[-1] if found else next((_FATAL[line] for line in _FATAL if line in tail), "")
    if not signal or signal == "SIGTERM":
        return None
    frames = _FRAME.findall(tail)
    where = f" (innermost: {frames[-1].strip()})" if frames else ""
    evidence = f"its error stream ends with the stack of the crash{where}"
    return Verdict(of.CRASH, CERTAIN, (evidence,), detail=signal)


def _rest(facts: DeathFacts) -> Verdict:
    """A process that is gone without a word."""
    kernel = facts.kernel
    is_gone = "End of file" in _exit_detail(facts)
    no_stack = "its error stream has no stack of a crash of its own"
    if not is_gone or kernel is None:
        return Verdict(of.UNKNOWN_CAUSE, UNKNOWN, ("Ray knows no reason",))
    if kernel.has_log and kernel.pids_are_ours:
        calm = f"the kernel's log has no OOM kill of process {facts.pid}"
    elif kernel.counter_rise == 0:
        calm = "the kernel's OOM killer has killed nothing on this machine"
    elif kernel.has_log and not kernel.kills:
        calm = "the kernel's log has no OOM kill"
    else:
        perhaps = "the kernel's OOM killer has killed something on this machine, perhaps this"
        rose = (perhaps,) if kernel.counter_rise or kernel.kills else ()
        return Verdict(of.UNKNOWN_CAUSE, UNKNOWN, ("its process is gone without a word", *rose))
    if facts.stderr_tail is None:
        return Verdict(of.SIGKILL_OR_EXIT, LIKELY, (calm,))
    return Verdict(of.SIGKILL_OR_EXIT, CERTAIN, (calm, no_stack))
