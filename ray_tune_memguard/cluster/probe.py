"""Runs small functions on the nodes of the cluster, without waiting for them.

On each *other* node one actor, the probe, runs what it is asked to run. It starts with the first
question to its node and takes no CPU. If it dies, a question some seconds later starts another one.
Ray must not restart it: what can be restarted is what Ray's memory monitor kills first, before the
trial that takes the memory. On the driver's own node the function runs at once in this process, so
a cluster of one node has no probe.

Nothing here waits for another node: a thread of its own asks, and :meth:`NodeProbes.ask` returns an
:class:`Answer`, which is ready later, or fails. A node that is lost, or whose probe cannot start,
answers no question.
"""

from __future__ import annotations

import math
import queue
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Generic, TypeVar, cast

import ray
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    NodeDiedError,
    OutOfMemoryError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_tune_memguard.notices import Notices, logger

Value = TypeVar("Value")

#: More questions than this do not wait for one node. A probe starts within 2 s, or 10 s on a busy
#: node.
MAX_UNANSWERED = 32
#: A probe that died is followed by another one after this time: its node may be short of memory.
AGAIN_AFTER_S = 5.0
# The end of a probe's process. A node that is lost does not start another one.
_DEATHS = (ActorDiedError, OutOfMemoryError, WorkerCrashedError, NodeDiedError)
#: The list of the cluster's nodes is read again after this time.
NODES_EVERY_S = 5.0


class NoAnswerError(Exception):
    """The node has not answered yet, or it cannot."""


class Answer(Generic[Value]):
    """What a function returns on one node, some time later.

    Attributes:
        node: the id of the node.
    """

    def __init__(self, node: str) -> None:
        self.node = node
        self._is_ready = threading.Event()
        self._value: Value | None = None
        self._error: BaseException | None = None

    def is_ready(self, timeout_s: float = 0.0) -> bool:
        """Whether :meth:`get` has a value or an error.

        Args:
            timeout_s: seconds to wait at most. The default does not wait.
        """
        return self._is_ready.wait(timeout_s)

    def get(self) -> Value:
        """The value. It does not wait.

        Raises:
            NoAnswerError: the answer is not there yet, the node is lost, or the function raised an
                exception, which is then the cause.
        """
        if not self._is_ready.is_set():
            raise NoAnswerError(f"Node {self.node} has not answered yet.")
        if self._error is not None:
            raise NoAnswerError(f"Node {self.node}: {self._error}") from self._error
        return cast(Value, self._value)

    def resolve(self, value: Value) -> None:
        self._value = value
        self._is_ready.set()

    def fail(self, error: BaseException) -> None:
        self._error = error
        self._is_ready.set()


class NodeProbe:
    """The actor on another node."""

    def run(self, function: Callable[..., Value], *args: object) -> Value:
        return function(*args)


class _Probe:
    """The driver's side of one probe."""

    def __init__(self, node: str) -> None:
        placed = NodeAffinitySchedulingStrategy(node, soft=False)
        probe_class: Any = ray.remote(num_cpus=0, max_restarts=0)(NodeProbe)
        self.actor = probe_class.options(scheduling_strategy=placed).remote()
        #: The number of questions that wait for their answers.
        self.unanswered = 0
        #: Why no more is asked.
        self.ended: BaseException | None = None
        #: When another one may start, by ``time.monotonic()``.
        self.followed_at = math.inf


class NodeProbes:
    """The probes of one run. Any thread may use them.

    Those who use them take them and give them back (:meth:`take`, :meth:`give_back`); the last one
    that gives them back ends the actors. They end with the driver anyway, and when nothing refers
    to this object.

    A function is sent by its name, so it must be in a module that the other nodes have. Its result
    should be small: up to 100 KB travel with the answer.

    Args:
        notices: the log of the run's warnings.

    Attributes:
        own_node: the id of the driver's node.

    Examples:
        A function of a module, asked of all nodes; the answers are collected in a later step::

            answers = probes.ask_all(memory_of, pid)
            ...
            for node, answer in answers.items():
                if answer.is_ready():
                    print(node, answer.get())
    """

    def __init__(self, notices: Notices) -> None:
        self._notices = notices
        self._lock = threading.RLock()
        self._probes: dict[str, _Probe] = {}
        self._users: set[int] = set()
        self._is_closed = False
        self._nodes: list[str] | None = None
        self._nodes_read_at = 0.0
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self.own_node: str = ray.get_runtime_context().get_node_id()

    def take(self, user: object) -> NodeProbes:
        """Use the probes until :meth:`give_back`."""
        with self._lock:
            self._users.add(id(user))
            self._is_closed = False
        return self

    def give_back(self, user: object) -> None:
        """End the probes if nobody else has taken them."""
        with self._lock:
            self._users.discard(id(user))
            ended = [] if self._users else self._end()
        _kill(ended)

    def nodes(self) -> list[str]:
        """The ids of the nodes that are alive. They are a little more than 5 s old at most."""
        if self._nodes is None:
            self._read_nodes()
        elif time.monotonic() - self._nodes_read_at >= NODES_EVERY_S:
            self._nodes_read_at = time.monotonic()
            self._run_in_thread(NodeProbes._read_nodes)
        return self._nodes or []

    def ask(self, node: str, function: Callable[..., Value], *args: object) -> Answer[Value]:
        """Run a function on a node. It does not wait for another node.

        Args:
            node: the id of the node.
            function: a function of a module, which does not wait for anything.
            args: its arguments.

        Returns:
            The answer, which is ready already for the driver's own node.
        """
        answer: Answer[Value] = Answer(node)
        if node == self.own_node:
            try:
                answer.resolve(function(*args))
            except Exception as error:
                answer.fail(error)
        else:
            self._run_in_thread(lambda probes: probes._send(answer, function, args), answer)
        return answer

    def ask_here(self, function: Callable[..., Value], *args: object) -> Answer[Value]:
        """Run a function in this process, but in the probes' thread, because it may wait for Ray.

        Args:
            function: any function.
            args: its arguments.
        """
        answer: Answer[Value] = Answer(self.own_node)

        def run(probes: NodeProbes) -> None:
            try:
                # Without a cluster Ray would start one.
                if probes._is_closed or not ray.is_initialized():
                    raise NoAnswerError("The run has ended.")
                answer.resolve(function(*args))
            except Exception as error:
                answer.fail(error)

        self._run_in_thread(run, answer)
        return answer

    def ask_all(self, function: Callable[..., Value], *args: object) -> dict[str, Answer[Value]]:
        """Run a function on every node that is alive.

        Args:
            function: see :meth:`ask`.
            args: its arguments.

        Returns:
            The answers by the id of the node.
        """
        return {node: self.ask(node, function, *args) for node in self.nodes()}

    def close(self) -> None:
        """End all probes, whoever uses them."""
        with self._lock:
            ended = self._end()
        _kill(ended)

    def _end(self) -> list[_Probe]:
        """Answer no more questions; called with the lock. Returns the probes to be killed."""
        self._is_closed = True
        probes, self._probes = self._probes, {}
        self._jobs.put(None)
        self._thread = None
        return list(probes.values())

    def _run_in_thread(self, job: _Job, answer: Answer[Any] | None = None) -> None:
        with self._lock:
            if self._is_closed:
                if answer is not None:
                    answer.fail(NoAnswerError("The run has ended."))
                return
            if self._thread is None:
                # A queue of its own: an earlier thread may still be about to end.
                self._jobs = queue.SimpleQueue()
                weakref.finalize(self, self._jobs.put, None).atexit = False
                self._thread = threading.Thread(
                    target=_work,
                    args=(weakref.ref(self), self._jobs),
                    name="memguard-probes",
                    daemon=True,
                )
                self._thread.start()
        self._jobs.put(job)

    def _read_nodes(self) -> None:
        if ray.is_initialized():
            self._nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
            self._nodes_read_at = time.monotonic()

    def _send(
        self, answer: Answer[Value], function: Callable[..., Value], args: tuple[object, ...]
    ) -> None:
        try:
            probe = self._probe_of(answer.node)
            asked = probe.actor.run.remote(function, *args)
        except Exception as error:
            answer.fail(error)
            return
        probe.unanswered += 1
        asked.future().add_done_callback(lambda done: self._receive(answer, probe, done))

    def _probe_of(self, node: str) -> _Probe:
        """The probe that can be asked.

        Raises:
            NoAnswerError: there is none.
        """
        # Without a cluster Ray would start one.
        if self._is_closed or not ray.is_initialized():
            raise NoAnswerError("The run has ended.")
        probe = self._probes.get(node)
        if probe is None or time.monotonic() >= probe.followed_at:
            probe = _Probe(node)
            with self._lock:
                if self._is_closed:  # In this moment; the actor ends without its handle.
                    raise NoAnswerError("The run has ended.")
                self._probes[node] = probe
        if probe.ended is not None:
            raise NoAnswerError(str(probe.ended)) from probe.ended
        if probe.unanswered >= MAX_UNANSWERED:
            self._warn("silent", node, "it does not answer")
            raise NoAnswerError("It does not answer.")
        return probe

    def _receive(self, answer: Answer[Any], probe: _Probe, done: Future[Any]) -> None:
        """Called in a thread of Ray's."""
        probe.unanswered -= 1
        error = done.exception()
        if error is None:
            answer.resolve(done.result())
            return
        if isinstance(error, RayTaskError):
            error = error.cause or error
        elif isinstance(error, RayError) and not isinstance(error, ActorUnavailableError):
            is_first, probe.ended = probe.ended is None, error
            if is_first:
                self._run_in_thread(lambda probes: probes._follow(answer.node, probe, error))
        answer.fail(error)

    def _follow(self, node: str, probe: _Probe, error: RayError) -> None:
        """Let another probe follow one that has died, or report what cannot be mended."""
        has_died = isinstance(error, _DEATHS) and not getattr(error, "actor_init_failed", False)
        if has_died:
            probe.followed_at = time.monotonic() + AGAIN_AFTER_S
        self._read_nodes()
        if self._is_closed:
            return
        if node in (self._nodes or []):
            if not has_died:
                self._warn("ended", node, str(error).strip().splitlines()[-1])
        else:
            self._notices.warn(
                "lost",
                f"Node {node} has left the cluster. What is measured on it ends there; the run "
                "continues. Further occurrences are not logged.",
            )

    def _warn(self, topic: str, node: str, reason: str) -> None:
        self._notices.warn(
            topic,
            f"The probe on node {node} cannot be used ({reason}). What it would measure is "
            "missing; the run continues. Further occurrences are not logged.",
        )


_Job = Callable[[NodeProbes], object]


def _kill(probes: list[_Probe]) -> None:
    """Without the lock: Ray waits for a thread of its own, which may just be in `_receive`."""
    # Without a cluster Ray would start one, to end an actor that is gone.
    if ray.is_initialized():
        for probe in probes:
            try:
                ray.kill(probe.actor)
            except Exception as error:  # It has ended, or is of an earlier cluster.
                logger.debug("A probe cannot be ended", exc_info=error)


def _work(owner: weakref.ref[NodeProbes], jobs: queue.SimpleQueue[_Job | None]) -> None:
    while (job := jobs.get()) is not None:
        probes = owner()
        if probes is None:
            return
        try:
            job(probes)
        except Exception as error:  # Ray's; the question stays without an answer.
            logger.debug("A probe cannot be asked", exc_info=error)
        del job, probes
