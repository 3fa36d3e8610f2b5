"""Serves what a run measures to Prometheus. Needs the extra ``metrics``."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from ray_tune_memguard.report.readings import Readings

_PREFIX = "ray_tune_memguard_"


class MetricsServer:
    """Serves metrics on all paths of an address, from a registry of its own, until it is stopped.

    Args:
        host: the address to listen on.
        port: the port; 0 for one that is free.
        read: gives the readings of a scrape; None if there are none. It is called by threads.

    Raises:
        OSError: it cannot listen there.

    Attributes:
        url: where the metrics are.
    """

    def __init__(self, host: str, port: int, read: Callable[[], Readings | None]) -> None:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_OfReadings(read))
        self._server, self._thread = start_http_server(port, host, registry)
        where = f"[{host}]" if ":" in host else host
        self.url = f"http://{where}:{self._server.server_port}/metrics"

    def stop(self) -> None:
        """Stop listening. Takes up to half a second."""
        self._server.shutdown()
        self._server.server_close()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def stop_soon(self) -> None:
        """Stop listening, without waiting. Any thread may call it, the server's own included."""
        with contextlib.suppress(RuntimeError):  # Python ends, or has no more threads.
            threading.Thread(target=self.stop, daemon=True).start()


class _OfReadings(Collector):
    def __init__(self, read: Callable[[], Readings | None]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        readings = self._read()
        if readings is not None:
            yield from families(readings)


def families(readings: Readings) -> Iterator[Metric]:
    """The metrics. ``docs/metrics.md`` says what each means."""
    yield GaugeMetricFamily(
        f"{_PREFIX}last_step_timestamp_seconds",
        "When the driver's loop made its last step.",
        readings.step_time,
    )
    yield GaugeMetricFamily(
        f"{_PREFIX}driver_rss_bytes", "Resident memory of the driver.", readings.rss
    )
    yield _gauge(
        "driver_category_bytes",
        "What the driver's resident memory consists of, at the last sample.",
        ("category",),
        (((name,), value) for name, value in readings.categories.items()),
    )
    yield _gauge(
        "trials",
        "Trials of the experiment by status.",
        ("status",),
        (((status,), count) for status, count in readings.trials.items()),
    )
    running = list(readings.running)
    for name, text, values in (
        ("running_trial_rss_bytes", "Resident memory", [one.rss for one in running]),
        ("running_trial_anonymous_bytes", "Anonymous memory", [one.anonymous for one in running]),
    ):
        yield _gauge(
            name,
            f"{text} of a running trial, all of its processes.",
            ("trial_id", "node"),
            (((one.trial_id, one.node), value) for one, value in zip(running, values, strict=True)),
        )
    yield _counter("trial_deaths", "Deaths of trials' processes.", "cause", readings.deaths)
    yield _counter("gate_actions", "Actions of the launch gate.", "action", readings.gate_actions)
    nodes = list(readings.nodes)
    for name, text, values in (
        ("used_ratio", "Used share of the fullest limit of a node.", [one.used for one in nodes]),
        ("pause_ratio", "Share at which trials wait.", [one.pause for one in nodes]),
        ("is_paused", "Whether trials wait on a node.", [float(one.is_paused) for one in nodes]),
    ):
        yield _gauge(
            f"gate_{name}",
            text,
            ("node",),
            (((one.node,), value) for one, value in zip(nodes, values, strict=True)),
        )
    for place, (name, text) in enumerate(
        (("head_process_rss_bytes", "Resident"), ("head_process_anonymous_bytes", "Anonymous"))
    ):
        yield _gauge(
            name,
            f"{text} memory of a process of Ray's on the head node.",
            ("process",),
            (((process,), sizes[place]) for process, sizes in readings.head.items()),
        )


def _gauge(
    name: str,
    text: str,
    labels: tuple[str, ...],
    samples: Iterable[tuple[tuple[str, ...], float]],
) -> Metric:
    family = GaugeMetricFamily(f"{_PREFIX}{name}", text, labels=labels)
    for values, value in samples:
        family.add_metric(values, value)
    return family


def _counter(name: str, text: str, label: str, counts: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(f"{_PREFIX}{name}", text, labels=(label,))
    for value, count in counts.items():
        family.add_metric((value,), count)
    return family
