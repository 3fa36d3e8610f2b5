"""Makes the record of a death from its facts, its verdict and the sizes of processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ray_tune_memguard.diagnostics.deaths import record as of
from ray_tune_memguard.diagnostics.deaths.advice import advise, format_size
from ray_tune_memguard.diagnostics.deaths.record import Death, MemoryUser
from ray_tune_memguard.diagnostics.deaths.verdict import DeathFacts, Verdict

MAX_ERROR = 4000
MAX_LARGEST = 10


@dataclass(frozen=True)
class Sizes:
    """What was measured of the node.

    Attributes:
        victim: the trial's process, as it was last seen; None if it was not measured.
        trials: the other trials on the node, by their last measurement.
        processes: the largest processes of the node, measured after the death.
        used_bytes, limit_bytes: memory of the node, and what may be in use.
    """

    victim: MemoryUser | None = None
    trials: tuple[MemoryUser, ...] = ()
    processes: tuple[MemoryUser, ...] = ()
    used_bytes: int | None = None
    limit_bytes: int | None = None


def make_record(
    death: Death,
    facts: DeathFacts,
    verdict: Verdict,
    sizes: Sizes,
    trial_of: Mapping[int, tuple[str, str]],
) -> Death:
    """Complete the record of a death.

    Args:
        death: the record with its trial.
        facts: what is known.
        verdict: what killed it.
        sizes: what was measured.
        trial_of: id and name of each trial on the node, by its process.
    """
    victim, source = _size_of_victim(facts, verdict, sizes)
    largest = _largest(facts, verdict, sizes, trial_of, victim, death)
    death = replace(
        death,
        cause=verdict.cause,
        certainty=verdict.certainty,
        evidence=verdict.evidence,
        absent=facts.absent,
        detail=verdict.detail,
        pid=facts.pid or 0,
        node_id=facts.actor.node_id if facts.actor else "",
        node_ip=facts.node.address if facts.node else "",
        size_bytes=victim,
        size_source=source,
        growth=sizes.victim.growth if sizes.victim else None,
        used_bytes=_used(verdict, sizes),
        limit_bytes=_limit(verdict, sizes),
        largest=largest[:MAX_LARGEST],
        error=facts.error_text[:MAX_ERROR],
    )
    # Without the size of the process itself nobody knows whether another one used more.
    is_complete = victim is not None or verdict.monitor is not None
    if (
        verdict.cause in of.OUT_OF_MEMORY
        and verdict.cause != of.CUDA_OUT_OF_MEMORY
        and is_complete
        and largest
    ):
        death = replace(death, culprit=largest[0])
    death = replace(death, advice=advise(death, _trials_among(largest, sizes)))
    return replace(death, summary=describe(death, verdict))


def describe(death: Death, verdict: Verdict) -> str:
    """The line of the log."""
    parts = [f"Trial {death.trial_name} {verdict.phrase()}{_certainty(death)}."]
    if death.size_bytes:
        parts.append(f"It used {format_size(death.size_bytes)}{_growth(death.growth)}.")
    culprit = death.culprit
    if culprit is not None:
        if death.is_culprit:
            parts.append("It used most of all processes on its node.")
        else:
            who = "trial " if culprit.trial_id else ""
            parts.append(
                f"Most on its node was used by {who}{culprit.name} (process {culprit.pid}): "
                f"{format_size(culprit.bytes)}{_growth(culprit.growth)}."
            )
    if death.limit_bytes and death.cause in (of.RAY_MEMORY_MONITOR, of.KERNEL_OOM):
        parts.append(f"The limit is {format_size(death.limit_bytes)}.")
    if death.advice:
        parts.append(death.advice)
    return " ".join(parts)


#: What is counted at the end of a run.
_COUNTED = {
    of.RAY_MEMORY_MONITOR: "by Ray's memory monitor",
    of.KERNEL_OOM: "by the kernel's OOM killer",
    of.SIGKILL_OR_EXIT: "by a SIGKILL or os._exit",
    of.CRASH: "by a crash",
    of.SIGTERM: "by a SIGTERM",
    of.EXIT_CODE: "with an exit code",
    of.MEMORY_ERROR: "of a MemoryError",
    of.CUDA_OUT_OF_MEMORY: "out of GPU memory",
    of.NODE_DIED: "with their node",
    of.RAY_KILL: "by ray.kill",
    of.OWNER_DIED: "with their owner",
    of.UNKNOWN_CAUSE: "for unknown reasons",
}


def summarize(number_by_cause: Mapping[str, int], path: Path | None) -> str:
    """The line at the end of a run.

    Args:
        number_by_cause: deaths of the run.
        path: the file of their records.
    """
    total = sum(number_by_cause.values())
    causes = sorted(number_by_cause.items(), key=lambda item: (-item[1], item[0]))
    counts = ", ".join(f"{number} {_COUNTED[cause]}" for cause, number in causes)
    where = f" ray_tune_memguard.read_deaths({str(path.parent.parent)!r}) has them." if path else ""
    return f"Deaths of trials in this run: {total} ({counts}).{where}"


def _certainty(death: Death) -> str:
    reasons = "; ".join(death.evidence)
    return f" ({death.certainty}: {reasons})" if reasons else f" ({death.certainty})"


def _growth(growth: float | None) -> str:
    return f", growing by {format_size(growth)}/s" if growth and growth > 2**20 else ""


def _size_of_victim(facts: DeathFacts, verdict: Verdict, sizes: Sizes) -> tuple[int | None, str]:
    if verdict.kill is not None and verdict.kill.rss_bytes:
        return verdict.kill.rss_bytes, "the kernel's log"
    if verdict.monitor is not None:
        for user in verdict.monitor.workers:
            if user.pid == facts.pid:
                return user.bytes, "Ray's memory monitor"
    if sizes.victim is not None:
        return sizes.victim.bytes, "the last measurement"
    return None, ""


def _largest(
    facts: DeathFacts,
    verdict: Verdict,
    sizes: Sizes,
    trial_of: Mapping[int, tuple[str, str]],
    victim_bytes: int | None,
    death: Death,
) -> tuple[MemoryUser, ...]:
    """Processes of the node at the time of the death, the largest first."""
    found: dict[int, MemoryUser] = {}
    told: Sequence[MemoryUser] = ()
    if verdict.monitor is not None:
        # Ray looked before it killed: this is as it was.
        told = (*verdict.monitor.workers, *verdict.monitor.largest)
    elif verdict.kill is not None and verdict.kill.cgroup:
        # Others in this cgroup count only, and who they are is not known, except for trials.
        told = sizes.trials
    else:
        told = (*sizes.processes, *sizes.trials)
    for user in told:
        if user.pid not in found or user.bytes > found[user.pid].bytes:
            found[user.pid] = user
    if facts.pid and victim_bytes and facts.pid not in found:
        found[facts.pid] = MemoryUser(facts.pid, victim_bytes, death.trial_name)
    growth = {user.pid: user.growth for user in (*sizes.trials, sizes.victim) if user}
    named = [
        _with_trial(user, trial_of, growth.get(user.pid))
        if user.pid != facts.pid
        else replace(
            user,
            name=death.trial_name,
            trial_id=death.trial_id,
            growth=sizes.victim.growth if sizes.victim else user.growth,
        )
        for user in found.values()
    ]
    # Of processes of the same size the trials come first.
    named.sort(key=lambda user: (-user.bytes, not user.trial_id))
    return tuple(named)


def _trials_among(largest: Sequence[MemoryUser], sizes: Sizes) -> list[MemoryUser]:
    """All trials of the node: Ray and the list of processes tell of the largest ones only."""
    told = {user.pid for user in largest}
    others = [user for user in sizes.trials if user.pid not in told]
    return [user for user in (*largest, *others) if user.trial_id]


def _with_trial(
    user: MemoryUser, trial_of: Mapping[int, tuple[str, str]], growth: float | None
) -> MemoryUser:
    if user.pid not in trial_of:
        return user
    trial_id, name = trial_of[user.pid]
    return replace(user, name=name, trial_id=trial_id, growth=growth or user.growth)


def _limit(verdict: Verdict, sizes: Sizes) -> int | None:
    if verdict.monitor is not None:
        return verdict.monitor.threshold_bytes
    if verdict.kill is not None and verdict.kill.limit_bytes:
        return verdict.kill.limit_bytes
    return sizes.limit_bytes


def _used(verdict: Verdict, sizes: Sizes) -> int | None:
    if verdict.monitor is not None:
        return verdict.monitor.used_bytes
    if verdict.kill is not None and verdict.kill.limit_bytes:
        # The kernel kills when a cgroup is full.
        return verdict.kill.limit_bytes
    if verdict.cause == of.KERNEL_OOM and not (verdict.kill and verdict.kill.cgroup):
        # Or the machine. What was measured is what is left after the kill.
        return sizes.limit_bytes
    return sizes.used_bytes
