"""Serves what a run measures to Prometheus while the run goes on."""

from __future__ import annotations

import time
import weakref
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ray_tune_memguard import options as opt
from ray_tune_memguard.adapter import boundary
from ray_tune_memguard.adapter.boundary import Policy
from ray_tune_memguard.callbacks.base import guarded
from ray_tune_memguard.callbacks.counting import CountingCallback
from ray_tune_memguard.callbacks.head_node_reporter import HeadNodeReporter
from ray_tune_memguard.callbacks.launch_gate import LaunchGate
from ray_tune_memguard.callbacks.object_growth_tracker import ObjectGrowthTracker
from ray_tune_memguard.callbacks.trial_death_reporter import TrialDeathReporter
from ray_tune_memguard.lazy.interfaces import FINISHED
from ray_tune_memguard.lazy.trial_list import SpilledTrials
from ray_tune_memguard.notices import logger
from ray_tune_memguard.report.readings import Readings
from ray_tune_memguard.system.process import rss_bytes

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

    from ray_tune_memguard.cluster.trial_memory import TrialMemories
    from ray_tune_memguard.report.metrics import MetricsServer

#: Prometheus on the same machine, or a tunnel; nobody else.
HOST = "127.0.0.1"
# What the run's thread reads for the scrapes; processes of trials are looked at as often.
_READ_EVERY_S = 1.0
#: The callbacks that serve metrics in this process.
_serving: weakref.WeakSet[MetricsExporter] = weakref.WeakSet()
_UNFINISHED = ("PENDING", "RUNNING", "PAUSED")


@dataclass
class _State:
    """The state of one run.

    Attributes:
        finalizer: stops the server of a callback that is gone.
        readings: what the run's thread has read last; it is replaced, and not changed.
        memories: what the running trials use. Any thread may read it.
    """

    server: MetricsServer
    memories: TrialMemories
    finalizer: weakref.finalize[..., MetricsExporter]
    readings: Readings | None = None
    read_at: float = field(default=float("-inf"))


class MetricsExporter(CountingCallback):
    """Serves the memory of a run to Prometheus, until the run ends.

    The metrics are the driver's memory and what it consists of, the trials by status, the memory of
    running trials, deaths by cause, the launch gate's level and actions, and Ray's processes on the
    head node, as far as callbacks of the same run measure them. A trial has labels only while it
    runs. Without prometheus-client (the extra ``metrics``), or if the port is taken, the run goes
    on after one warning.

    Args:
        metrics_port: the port; 0 for one that is free, which the log names; None for no metrics.
            Default None, or ``TUNE_MEMGUARD_METRICS_PORT``.
        metrics_host: the address to listen on. Default ``127.0.0.1``, which only this machine
            reaches, or ``TUNE_MEMGUARD_METRICS_HOST``.

    Raises:
        ValueError, TypeError: an argument, or its environment variable, is not allowed.

    Examples:
        >>> from ray_tune_memguard import MetricsExporter
        >>> MetricsExporter(metrics_port=9099).metrics_host
        '127.0.0.1'
        >>> MetricsExporter(metrics_port=99999)
        Traceback (most recent call last):
        ValueError: metrics_port must be a port from 0 to 65535, or None; got 99999
    """

    _state: _State | None = None

    def __init__(
        self,
        metrics_port: int | opt.Unset | None = opt.UNSET,
        metrics_host: str | opt.Unset = opt.UNSET,
    ) -> None:
        self.metrics_port = opt.resolve("metrics_port", metrics_port, None, opt.port_or_none)
        self.metrics_host = opt.resolve("metrics_host", metrics_host, HOST, opt.host)
        self.options = {"metrics_port": self.metrics_port, "metrics_host": self.metrics_host}

    @property
    def url(self) -> str | None:
        """Where the metrics of the present run are; None if it serves none.

        Examples:
            >>> from ray_tune_memguard import MetricsExporter
            >>> MetricsExporter(metrics_port=0).url  # No run has begun.
        """
        return None if self._state is None else self._state.server.url

    def begin(self) -> None:
        super().begin()
        self.stop()
        if self.metrics_port is None:
            self.active = False
        elif self.claim("metrics"):
            self._serve(self.metrics_port)

    def _serve(self, port: int) -> None:
        for exporter in list(_serving):
            # After a second Ctrl+C no hook is called, and the port would stay taken.
            if exporter.run.is_left():
                exporter.stop()
        reading = weakref.ref(self)
        try:
            from ray_tune_memguard.report.metrics import MetricsServer

            server = MetricsServer(self.metrics_host, port, lambda: _SCRAPE(reading()))
        except (ImportError, OSError) as error:
            self.active = False
            reason = (
                'they need prometheus-client: pip install "ray-tune-memguard[metrics]"'
                if isinstance(error, ImportError)
                else f"{self.metrics_host}:{port} cannot be used: {error}"
            )
            self.notices.warn("metrics", f"There are no metrics of this run; {reason}.")
            return
        finalizer = weakref.finalize(self, server.stop_soon)
        finalizer.atexit = False
        self._state = _State(server, self.run.trial_memory(), finalizer)
        _serving.add(self)
        logger.info("Metrics of this run: %s", server.url)

    def stop(self) -> None:
        """Serve no more metrics of this run."""
        state, self._state = self._state, None
        if state is not None:
            _serving.discard(self)
            state.finalizer.detach()
            state.server.stop()

    def disable(self, error: Exception) -> None:
        super().disable(error)
        self.stop()

    @guarded
    def on_step_end(self, iteration: int, trials: list[Trial], **info: object) -> None:
        self._finished.count_step()
        state, now = self._state, time.monotonic()
        if state is not None and now - state.read_at >= _READ_EVERY_S:
            state.read_at = now
            state.readings = self._read(trials)

    def on_run_end(self, trials: list[Trial]) -> None:
        self.stop()
        self.active = False

    def _read(self, trials: list[Trial]) -> Readings:
        """What only the run's thread may read."""
        tracker, deaths = self.run.owner_of("growth"), self.run.owner_of("death reports")
        gate, head = self.run.owner_of("launch gate"), self.run.owner_of("head node")
        return Readings(
            step_time=time.time(),
            rss=0.0,
            categories=tracker.categories() if isinstance(tracker, ObjectGrowthTracker) else {},
            trials=self._by_status(trials),
            deaths=deaths.number_by_cause() if isinstance(deaths, TrialDeathReporter) else {},
            nodes=gate.levels() if isinstance(gate, LaunchGate) else (),
            gate_actions=gate.number_by_action() if isinstance(gate, LaunchGate) else {},
            head=head.latest() if isinstance(head, HeadNodeReporter) else {},
        )

    def _by_status(self, trials: list[Trial]) -> dict[str, int]:
        in_memory = trials.resident() if isinstance(trials, SpilledTrials) else trials
        counts = Counter(trial.status for trial in in_memory)
        finished = dict(
            zip(FINISHED, (self._finished.completed, self._finished.errored), strict=True)
        )
        return {**{status: counts[status] for status in _UNFINISHED}, **finished}


@boundary.entry("MetricsExporter.scrape", Policy.KEEP)
def _scrape(exporter: MetricsExporter | None) -> Readings | None:
    """What a scrape tells. Called by the server's threads."""
    state = None if exporter is None else exporter._state
    if state is None or state.readings is None:
        return None
    return replace(state.readings, rss=rss_bytes(), running=state.memories.sizes())


_SCRAPE = _scrape.on_its_own()
