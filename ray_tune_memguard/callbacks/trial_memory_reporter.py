"""Measures what trials use while they run, and keeps the peaks of finished trials on disk."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ray_tune_memguard import options as opt
from ray_tune_memguard.adapter import boundary, contract
from ray_tune_memguard.adapter.boundary import Policy
from ray_tune_memguard.callbacks.base import GuardCallback, guarded
from ray_tune_memguard.callbacks.recording import RunRecords
from ray_tune_memguard.notices import logger
from ray_tune_memguard.report.trial_memory import KIND, plain_config

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

    from ray_tune_memguard.cluster.probe import NodeProbes
    from ray_tune_memguard.cluster.trial_memory import TrialMemories

#: Between two looks the kernel keeps the peak of each process, so one second is often enough.
EVERY_SECONDS = 1.0
#: The end of the run waits so long for the last readings of other nodes.
MAX_WAIT_AT_END_S = 1.0


@dataclass
class _State:
    """The state of one run.

    Attributes:
        trials: those of the run, as hooks get them.
        running: the trials that run, by id.
        wake: set when a trial starts or ends.
        checked_at: when it was last checked which trials have paused.
    """

    memories: TrialMemories
    probes: NodeProbes | None
    records: RunRecords
    every_seconds: float
    trials: Sequence[Trial] = ()
    running: dict[str, Trial] = field(default_factory=dict)
    wake: threading.Event = field(default_factory=threading.Event)
    is_stopped: bool = False
    thread: threading.Thread | None = None
    checked_at: float = 0.0

    def stop(self) -> None:
        self.is_stopped = True
        self.wake.set()

    def write_records(self) -> None:
        for record in self.memories.take_records():
            self.records.add(self.trials, record)


class TrialMemoryReporter(GuardCallback):
    """Measures the memory of each trial: its process and all descendants, on every node.

    It keeps a record of each finished trial with the experiment, with its peaks, its growth and its
    configuration; :func:`ray_tune_memguard.read_trial_memory` reads them. At the end of the run it
    logs the trials that used most. The lines of a :class:`RssReporter` name the running trials that
    use most.

    A thread of the driver reads the processes of the driver's node; on each other node a small
    actor does. The peak RSS is the kernel's own figure, also with reused actors. Sizes of
    descendants are sampled.

    Args:
        trial_memory_every_seconds: seconds between two looks at the running trials; None for no
            measurement. Default 1, or ``TUNE_MEMGUARD_TRIAL_MEMORY_EVERY_SECONDS``.

    Raises:
        ValueError, TypeError: the argument, or its environment variable, is not allowed.

    Examples:
        >>> from ray import tune
        >>> from ray_tune_memguard import TrialMemoryReporter
        >>> config = tune.RunConfig(callbacks=[TrialMemoryReporter()])
        >>> TrialMemoryReporter(trial_memory_every_seconds=0)
        Traceback (most recent call last):
        ValueError: trial_memory_every_seconds must be a positive number of seconds, or None; got 0
    """

    _state: _State | None = None

    def __init__(self, trial_memory_every_seconds: float | opt.Unset | None = opt.UNSET) -> None:
        self.trial_memory_every_seconds = opt.resolve(
            "trial_memory_every_seconds",
            trial_memory_every_seconds,
            EVERY_SECONDS,
            opt.seconds_or_none,
        )
        self.options = {"trial_memory_every_seconds": self.trial_memory_every_seconds}

    def begin(self) -> None:
        if self._state is not None:
            self._state.stop()
        self._state = None
        run = self.run
        if (
            self.trial_memory_every_seconds is None
            or run.controller is None
            or contract.TRIAL_MEMORY not in run.capabilities
        ):
            self.active = False
            return
        if not self.claim("trial memory"):
            return
        self._state = _State(
            run.trial_memory(),
            run.node_probes(self),
            RunRecords(run, KIND, type(self).__name__, self.notices),
            self.trial_memory_every_seconds,
        )
        if self._state.probes is not None:
            # So that the probes are there when the first trials start.
            self._state.probes.ask_all(os.getpid)
        self._state.memories.measure_with(
            self._state.probes, keeps_actors=run.reuses_actors() is not False
        )

    def disable(self, error: Exception) -> None:
        super().disable(error)
        self._end_measuring()

    @guarded
    def on_trial_start(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: object
    ) -> None:
        state = self._state
        actor_id = self.run.actor_id(trial)
        if state is None or actor_id is None:
            return
        state.trials = trials
        state.running[trial.trial_id] = trial
        state.memories.start(trial.trial_id, actor_id, plain_config(trial.config))
        if state.thread is None:
            state.thread = threading.Thread(
                target=_watch,
                args=(weakref.ref(self), state),
                name="memguard-trial-memory",
                daemon=True,
            )
            state.thread.start()
        state.wake.set()

    @guarded
    def on_step_end(self, iteration: int, trials: list[Trial], **info: object) -> None:
        # Ray calls no hook when a trial pauses.
        state, now = self._state, time.monotonic()
        if state is None or now - state.checked_at < state.every_seconds:
            return
        state.checked_at = now
        for trial_id, trial in list(state.running.items()):
            if trial.status not in ("RUNNING", "PENDING"):
                del state.running[trial_id]
                state.memories.pause(trial_id)

    @guarded
    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: object
    ) -> None:
        self._end(trial, "completed")

    @guarded
    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: object
    ) -> None:
        self._end(trial, "error")

    @guarded
    def on_experiment_end(self, trials: list[Trial], **info: object) -> None:
        state = self._state
        if state is None:
            return
        # Ray calls no hooks for trials that end with the experiment.
        state.stop()
        if state.thread is not None:
            state.thread.join(MAX_WAIT_AT_END_S)
        state.memories.end_all(MAX_WAIT_AT_END_S)
        state.write_records()
        text = state.memories.summary()
        if text:
            logger.info(text)
        self._end_measuring()

    def _end(self, trial: Trial, how: str) -> None:
        state = self._state
        if state is not None:
            state.running.pop(trial.trial_id, None)
            state.memories.end(trial.trial_id, how)
            state.wake.set()

    def _end_measuring(self) -> None:
        state = self._state
        if state is None:
            return
        state.stop()
        state.running.clear()
        state.memories.measure_with(None)
        if state.probes is not None:
            state.probes.give_back(self)
            state.probes = None


def _watch(owner: weakref.ref[TrialMemoryReporter], state: _State) -> None:
    """Look at the running trials until the run ends. The target of the thread."""
    look_at = time.monotonic()
    while not state.is_stopped:
        state.wake.wait(max(0.0, look_at - time.monotonic()))
        state.wake.clear()
        reporter = owner()
        # A run can end without a hook, for example by a second Ctrl+C.
        if reporter is None or reporter.run.controller is None:
            return
        if not reporter.active:
            reporter._end_measuring()
            return
        is_time = time.monotonic() >= look_at
        if is_time:
            look_at = time.monotonic() + state.every_seconds
        if not state.is_stopped:
            _LOOK(state, is_time)
        del reporter


@boundary.entry("TrialMemoryReporter.look", Policy.KEEP)
def _look(state: _State, is_time: bool) -> None:
    if is_time:
        state.memories.look()
    else:
        state.memories.locate()
    state.write_records()


_LOOK = _look.on_its_own()
