"""From a trial's failure to the record of its death."""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ray_tune_memguard.adapter.handle import RunHandle
from ray_tune_memguard.cluster import core_names
from ray_tune_memguard.cluster.probe import Answer, NoAnswerError
from ray_tune_memguard.cluster.trial_memory import TrialUse
from ray_tune_memguard.diagnostics.deaths import evidence
from ray_tune_memguard.diagnostics.deaths.evidence import NodeEvidence, Place
from ray_tune_memguard.diagnostics.deaths.record import (
    KERNEL_OOM,
    UNKNOWN_CAUSE,
    Death,
    MemoryUser,
)
from ray_tune_memguard.diagnostics.deaths.report import MAX_LARGEST, Sizes, make_record
from ray_tune_memguard.diagnostics.deaths.verdict import DeathFacts, judge
from ray_tune_memguard.system.kernel_log import KernelWatch
from ray_tune_memguard.system.largest import largest_processes
from ray_tune_memguard.system.node_memory import NodeMemoryReader

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

#: Processes of trials that died lately: Ray's monitor names them in later messages, too.
MAX_DEAD = 100
#: Another node that has not answered after this time counts as not asked. Its probe may have to
#: start first.
MAX_ANSWER_S = 10.0
#: Ray may count the node of a dead process as dead only so much later.
MAX_NODE_S = 3.0


@dataclass
class Inquiry:
    """A death, and what its node was asked.

    Attributes:
        death: the record as far as it is known.
        facts, sizes: what it follows from.
        answer: what the node says; None if there is nothing to wait for.
        until: when the wait ends, by ``time.monotonic()``.
    """

    death: Death
    facts: DeathFacts
    sizes: Sizes
    trial_of: dict[int, tuple[str, str]]
    answer: Answer[NodeEvidence] | None = None
    until: float = 0.0

    def is_over(self) -> bool:
        """Whether the answer is there, or the wait has ended."""
        is_told = self.answer is not None and self.answer.is_ready()
        return is_told or time.monotonic() >= self.until

    def conclusion(self) -> Death:
        """The record, with what the node has said, and what Ray says of the node by now."""
        facts = self.facts
        if self.death.cause == UNKNOWN_CAUSE and facts.node is not None:
            facts = replace(facts, node=evidence.node_of_now(facts.node))
        if self.answer is not None:
            try:
                told = self.answer.get()
            except NoAnswerError as error:
                facts = replace(facts, absent=(*facts.absent, f"its node ({error})"))
            else:
                asked = tuple(name for name in facts.absent if name != evidence.OTHER_KERNEL)
                facts = replace(
                    facts,
                    kernel=told.kernel,
                    stderr_tail=told.stderr_tail,
                    absent=asked + told.kernel.absent,
                )
        verdict = judge(facts) if facts != self.facts else None
        if verdict is None:
            return self.death
        return make_record(self.death, facts, verdict, self.sizes, self.trial_of)


class Investigation:
    """Investigates the failures of one run.

    Args:
        run: the run.
        watch: the watch over this machine's kernel, since the run began.
        user: the callback, for the probes of other nodes.
    """

    def __init__(self, run: RunHandle, watch: KernelWatch, user: object) -> None:
        self._run = run
        self._watch = watch
        self._user = user
        self._place = Place.of_driver()
        self._dead: deque[tuple[int, str, str]] = deque(maxlen=MAX_DEAD)

    def investigate(
        self, trial: Trial, exception: Exception, actor_id: str | None
    ) -> Inquiry | None:
        """What is known of a failure.

        Args:
            trial: the trial.
            exception: what Ray got.
            actor_id: the trial's actor; None if it is not known.

        Returns:
            The death; None for an ordinary error.
        """
        facts = evidence.facts_of(
            exception,
            actor_id,
            self._place,
            self._watch,
            core_names.CLUSTER_STATE in self._run.capabilities,
        )
        if judge(facts) is None:
            return None
        use = self._run.trial_memory().of(trial.trial_id)
        node = _node_of(facts, use)
        sizes = self._sizes(use, node, facts)
        facts = _with_size(facts, sizes)
        verdict = judge(facts)
        assert verdict is not None
        if verdict.cause == KERNEL_OOM:
            self._watch.explain(verdict.kill)
        trial_of = self._trials_by_pid(node)
        death = make_record(
            Death(time.time(), trial.trial_id, str(trial), verdict.cause, verdict.certainty),
            facts,
            verdict,
            sizes,
            trial_of,
        )
        if facts.pid:
            self._dead.append((facts.pid, trial.trial_id, str(trial)))
        inquiry = Inquiry(death, facts, sizes, trial_of)
        if verdict.cause == UNKNOWN_CAUSE:
            if facts.kernel is None:
                self._ask_node(inquiry)
            is_elsewhere = facts.node is not None and facts.node.node_id != self._place.node_id
            if inquiry.answer is None and is_elsewhere:
                inquiry.until = time.monotonic() + MAX_NODE_S
        return inquiry

    def _ask_node(self, inquiry: Inquiry) -> None:
        actor, worker, node = inquiry.facts.actor, inquiry.facts.worker, inquiry.facts.node
        if actor is None or worker is None or node is None or not node.is_alive:
            return
        probes = self._run.node_probes(self._user)
        if probes is None:
            return
        inquiry.answer = probes.ask(
            node.node_id,
            evidence.of_this_node,
            worker.worker_id,
            self._place.job_id,
            worker.pid,
        )
        inquiry.until = time.monotonic() + MAX_ANSWER_S

    def _sizes(self, use: TrialUse | None, node: str | None, facts: DeathFacts) -> Sizes:
        """What was measured: of trials by another callback, of processes now."""
        victim = None if use is None else _user(use)
        others = tuple(
            _user(other)
            for other in self._run.trial_memory().running(node)
            if use is None or other.trial_id != use.trial_id
        )
        if facts.kernel is None and node != self._place.node_id:
            return Sizes(victim, others)
        memory = NodeMemoryReader().read().tightest
        return Sizes(
            victim,
            others,
            tuple(
                MemoryUser(size.pid, size.rss_bytes, size.command)
                for size in largest_processes(MAX_LARGEST)
            ),
            memory.used_bytes if memory else None,
            memory.total_bytes if memory else None,
        )

    def _trials_by_pid(self, node: str | None) -> dict[int, tuple[str, str]]:
        """Id and name of the trials on the node of a death, by their processes."""
        # Another process may have got the number of a dead one since.
        found = {pid: (trial_id, name) for pid, trial_id, name in self._dead}
        found.update(self._run.trials_by_pid(node))
        return found


def _node_of(facts: DeathFacts, use: TrialUse | None) -> str | None:
    """The node of the process; None if it is not known."""
    if facts.actor is not None:
        return facts.actor.node_id
    return None if use is None else use.node


def _user(use: TrialUse) -> MemoryUser:
    growth = None if math.isnan(use.growth) else use.growth
    return MemoryUser(use.pid, use.rss, use.trial_id, use.trial_id, growth)


def _with_size(facts: DeathFacts, sizes: Sizes) -> DeathFacts:
    """The facts with the last known size of the process, and whether it was the largest."""
    if sizes.victim is None:
        return facts
    if facts.pid is None:  # Of a process that lives Ray is not asked.
        facts = replace(facts, pid=sizes.victim.pid)
    size = sizes.victim.bytes
    others = [user.bytes for user in (*sizes.trials, *sizes.processes) if user.pid != facts.pid]
    return replace(facts, size_bytes=size, is_largest=size >= max(others, default=0))
