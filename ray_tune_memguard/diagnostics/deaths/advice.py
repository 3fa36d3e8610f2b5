"""What to do about a death, in numbers where they are known."""

from __future__ import annotations

import math

from ray_tune_memguard.diagnostics.deaths import record as of
from ray_tune_memguard.diagnostics.deaths.record import Death, MemoryUser

_GIB = 2**30
#: A trial that is given this much more than it was seen to use fits.
_MARGIN = 1.1
#: Trials that use less than this of what is in use are not the reason that it is short.
_MIN_SHARE = 0.1


def advise(death: Death, trials: list[MemoryUser]) -> str:
    """What to do about a death.

    Args:
        death: the death, with all that was measured.
        trials: the trials that ran on its node then, with their sizes; with the dead one.
    """
    if death.cause in (of.RAY_MEMORY_MONITOR, of.KERNEL_OOM):
        return _fit(death, trials)
    return _ADVICE.get(death.cause, "")


_ADVICE = {
    of.MEMORY_ERROR: (
        "The system refused memory to this process: compare `ulimit -v` and the limit of its "
        "container with the size of its arrays."
    ),
    of.CUDA_OUT_OF_MEMORY: (
        "Use a smaller batch, or fewer trials for each GPU: "
        'tune.with_resources(trainable, {"gpu": 1}) gives each one a GPU of its own.'
    ),
    of.CRASH: "The stack is in the error stream of its worker: see the session's logs directory.",
    of.SIGTERM: (
        "Something ended the process on purpose: the time limit of a job scheduler, an eviction, "
        "`ray stop`, or a script of yours."
    ),
    of.SIGKILL_OR_EXIT: (
        "Look for who sends SIGKILL on that node (a job scheduler, a watchdog, `ray stop "
        "--force`), and for os._exit in the trial's code or its libraries."
    ),
    of.EXIT_CODE: "The trial's code, or a library of it, ended the process: look for sys.exit.",
    of.NODE_DIED: (
        "Look at the node itself: its memory, its network, and whether it was preempted. With "
        "max_failures the trial starts again on another node."
    ),
}


def _fit(death: Death, trials: list[MemoryUser]) -> str:
    """How many such trials fit, by the largest one that was seen."""
    sizes = [user.bytes for user in trials]
    limit = death.limit_bytes
    if death.largest and not sizes and limit and death.used_bytes:
        return (
            f"No trial is among the largest processes: what uses the {format_size(limit)} are "
            "other processes on this node. Run them elsewhere, or fewer trials at once."
        )
    if not sizes or not limit:
        return (
            "Run fewer trials at once (tune.TuneConfig(max_concurrent_trials=…)), or reserve "
            'memory for each: tune.with_resources(trainable, {"cpu": 1, "memory": …}).'
        )
    largest, count = max(sizes), len(sizes)
    room = max(0, limit - max(0, (death.used_bytes or 0) - sum(sizes)))
    fitting = math.floor(room / (largest * _MARGIN))
    each, left = format_size(largest), format_size(room)
    # Rounded to two digits. Without "cpu", Ray reserves none.
    needed = int(float(f"{largest * _MARGIN:.2g}"))
    reserve = f'tune.with_resources(trainable, {{"cpu": 1, "memory": {needed:_}}})'
    if fitting < 1 and sum(sizes) < (death.used_bytes or 0) * _MIN_SHARE:
        return (
            f"Trials use {format_size(sum(sizes))} of the {format_size(death.used_bytes or 0)} in "
            "use: the rest are other processes on this node. Run them elsewhere, or fewer trials "
            "at once."
        )
    if fitting < 1:
        spare = "" if largest > room else ", with a tenth to spare,"
        return (
            f"One trial of {each}{spare} does not fit into the {left} that are left for trials: "
            "make it smaller, or use a node with more memory."
        )
    if fitting >= count:
        return (
            f"{_trials(count)} of {each} would have fitted into {left}, so it grew further than "
            f"was seen. Reserve what it needs at its end: {reserve} with a larger number, or use a "
            "node with more memory."
        )
    return (
        f"{_trials(count)} of {each} need {format_size(count * largest)} of {left}: run at most "
        f"{fitting} at once (tune.TuneConfig(max_concurrent_trials={fitting})), or {reserve}."
    )


def _trials(count: int) -> str:
    return f"{count} such trials" if count > 1 else "One such trial"


def format_size(number: float) -> str:
    """Bytes as a person reads them."""
    if number < _GIB:
        return f"{number / 2**20:.0f} MiB"
    return f"{number / _GIB:.1f} GiB"
