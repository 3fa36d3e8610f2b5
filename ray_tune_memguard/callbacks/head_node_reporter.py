"""Measures Ray's own processes on the head node, and says what to do about one that grows."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ray_tune_memguard import options as opt
from ray_tune_memguard.callbacks.base import guarded
from ray_tune_memguard.callbacks.counting import CountingCallback
from ray_tune_memguard.callbacks.pacing import Pace
from ray_tune_memguard.callbacks.recording import RunRecords
from ray_tune_memguard.notices import logger
from ray_tune_memguard.report.head_records import KIND, HeadRecord
from ray_tune_memguard.report.sizes import size
from ray_tune_memguard.system.process import memory_of

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

    from ray_tune_memguard.cluster.probe import Answer, NodeProbes
    from ray_tune_memguard.diagnostics.process_growth import ProcessGrowth, ProcessSeries

#: Seconds between two looks, at least.
HEAD_EVERY_SECONDS = 1.0
#: Finished trials between two looks, unless more time passes than that.
_EVERY_TRIALS = 25
#: Looks between two judgements.
_JUDGE_EVERY = 5
DRIVER = "driver"


@dataclass
class _HeadState:
    """The state of one run.

    Attributes:
        records: the file of measurements.
        pace: when to look again.
        probes: the way to the head; None before the first look.
        head: the id of the head's node.
        answer: what the head has been asked and has not answered.
        series: the points of the run; None before the first look.
        named: processes whose growth has been logged.
    """

    records: RunRecords
    pace: Pace
    probes: NodeProbes | None = None
    head: str | None = None
    answer: Answer[dict[str, tuple[int, int]]] | None = None
    series: ProcessSeries | None = None
    named: set[str] = field(default_factory=set)


class HeadNodeReporter(CountingCallback):
    """Says which of Ray's own processes on the head node grows, and what to do about it::

        trial#800  head node: gcs_server 66.0 MiB, +15.8 KiB/trial (+812 MiB/hour). It keeps …

    It measures the driver, ``gcs_server``, the raylet, the dashboard, both agents, the log monitor
    and the autoscaler's monitor: their RSS, the part of it that is theirs alone (without the pages
    of the object store, say), and how that part grows by trial and by hour. It logs each process
    that grows steadily once. The experiment's directory keeps all measurements;
    :func:`ray_tune_memguard.read_head_node` reads them.

    On the head the driver reads them itself. From another node, or from a Ray Client, a small actor
    on the head does, and the driver does not wait for it.

    Args:
        head_every_seconds: seconds between two looks, at least; None for no looks. Between two
            looks 25 trials finish, or a minute passes. Default 1, or
            ``TUNE_MEMGUARD_HEAD_EVERY_SECONDS``.

    Raises:
        ValueError, TypeError: the argument, or its environment variable, is not allowed.

    Examples:
        >>> from ray_tune_memguard import HeadNodeReporter
        >>> reporter = HeadNodeReporter(head_every_seconds=10)
        >>> reporter.processes()  # No run has begun.
        []
    """

    _state: _HeadState | None = None

    def __init__(self, head_every_seconds: float | opt.Unset | None = opt.UNSET) -> None:
        self.head_every_seconds = opt.resolve(
            "head_every_seconds", head_every_seconds, HEAD_EVERY_SECONDS, opt.seconds_or_none
        )
        self.options = {"head_every_seconds": self.head_every_seconds}

    def begin(self) -> None:
        super().begin()
        records = RunRecords(self.run, KIND, "HeadNodeReporter", self.notices)
        self._state = _HeadState(records, Pace(self.head_every_seconds))
        self.claim("head node")

    def processes(self) -> list[ProcessGrowth]:
        """The processes at the last look, the one that grows most first.

        Returns:
            Name, RSS and anonymous memory in bytes, bytes per trial and per hour, and whether it
            grows steadily; an empty list before the first look.

        Examples:
            >>> from ray_tune_memguard import HeadNodeReporter
            >>> HeadNodeReporter().processes()
            []
        """
        state = self._state
        return [] if state is None or state.series is None else state.series.growth()

    def latest(self) -> dict[str, tuple[int, int]]:
        """RSS and anonymous memory in bytes of each process at the last look.

        Examples:
            >>> from ray_tune_memguard import HeadNodeReporter
            >>> HeadNodeReporter().latest()
            {}
        """
        state = self._state
        return {} if state is None or state.series is None else state.series.latest()

    def on_first_step(self) -> None:
        if self._state is not None:
            self._state.pace.count_from(self._finished.total)

    @guarded
    def on_step_end(self, iteration: int, trials: list[Trial], **info: object) -> None:
        self._finished.count_step()
        state = self._state
        if state is None:
            return
        if state.answer is not None and state.answer.is_ready():
            self._receive(state, trials)
        elif state.answer is None and state.pace.is_due(self._finished.total, _EVERY_TRIALS):
            self._look(state, trials)

    def on_run_end(self, trials: list[Trial]) -> None:
        state = self._state
        if state is None:
            return
        if state.answer is not None and state.answer.is_ready():
            self._receive(state, trials)
        elif state.answer is None and state.series is not None:
            self._look(state, trials)
        self.active = False
        if state.series is not None:
            self._name_growth(state)
        if state.probes is not None:
            state.probes.give_back(self)

    def _look(self, state: _HeadState, trials: list[Trial]) -> None:
        with state.pace.timed():
            if state.series is None:
                self._begin_looking(state)
            state.pace.count_look(self._finished.total)
            if state.probes is not None and state.head is not None:
                from ray_tune_memguard.cluster.head_node import memory_by_process

                state.answer = state.probes.ask(state.head, memory_by_process, state.head)
        if state.answer is not None and state.answer.is_ready():
            self._receive(state, trials)

    def _begin_looking(self, state: _HeadState) -> None:
        from ray_tune_memguard.cluster.head_node import head_node_id
        from ray_tune_memguard.diagnostics.process_growth import ProcessSeries

        state.series = ProcessSeries(state.pace.before, state.pace.began)
        state.probes = self.run.node_probes(self)
        state.head = None if state.probes is None else head_node_id()

    def _receive(self, state: _HeadState, trials: list[Trial]) -> None:
        from ray_tune_memguard.cluster.probe import NoAnswerError

        answer, state.answer = state.answer, None
        assert answer is not None
        assert state.series is not None
        with state.pace.timed():
            try:
                memory = dict(answer.get())
                self.notices.again("head")
            except NoAnswerError as error:
                self.notices.warn(
                    "head",
                    f"The head node's processes are not measured ({error}). The run continues.",
                )
                return
            own = memory_of(os.getpid())
            if own is not None:
                memory[DRIVER] = (own.rss, own.anonymous)
            state.series.add(self._finished.total, time.monotonic(), memory)
            state.records.add(trials, HeadRecord(time.time(), self._finished.total, memory))
            if state.pace.looks % _JUDGE_EVERY == 0:
                self._name_growth(state)

    def _name_growth(self, state: _HeadState) -> None:
        """Log each process that grows, once."""
        assert state.series is not None
        for process in state.series.growing():
            # What the driver holds, and why, the growth tracker says.
            if process.name not in state.named | {DRIVER}:
                state.named.add(process.name)
                line = _line(process, self.run.reuses_actors() is True, self._finished.total)
                logger.info("trial#%d  head node: %s", self._finished.total, line)


def _line(process: ProcessGrowth, reuses_actors: bool, trials: int) -> str:
    from ray_tune_memguard.cluster import head_node

    slopes = [
        f"+{size(slope)}/{unit}"
        for slope, unit in ((process.per_trial, "trial"), (process.per_hour, "hour"))
        if slope is not None
    ]
    advice = head_node.advice(
        process.name, process.per_trial or 0.0, _settings(), reuses_actors, trials
    )
    return f"{process.name} {size(process.rss)}, {', '.join(slopes)}. {advice}".rstrip()


def _settings() -> dict[str, object]:
    """The settings that the head was started with, as far as they can be read."""
    from ray_tune_memguard.cluster import gcs, settings

    variables = settings.given_in(dict(os.environ))
    given: dict[str, object] = {
        name: settings.effective(name, {}, variables)
        for name in settings.BY_NAME.keys() & variables.keys()
    }
    try:
        return {**given, **gcs.system_config()}
    except gcs.ClusterStateError:
        return given
