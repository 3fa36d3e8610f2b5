"""Metrics for Prometheus: what a scrape tells, and what happens where none can be served."""

from __future__ import annotations

import gc
import json
import logging
import socket
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ray_tune_memguard import MemGuard, MetricsExporter
from ray_tune_memguard.adapter.contract import Capabilities
from ray_tune_memguard.adapter.handle import RunHandle
from ray_tune_memguard.report.readings import NodeLevel, Readings, RunningTrial
from tests.unit.fakes import FakeTrial

pytest.importorskip("prometheus_client", reason="metrics need prometheus-client")
from prometheus_client.parser import text_string_to_metric_families

from ray_tune_memguard.report import metrics

DASHBOARD = Path(__file__).parents[2] / "docs" / "grafana-dashboard.json"
PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
PREFIX = "ray_tune_memguard_"
EVERYTHING = Readings(
    step_time=1000.5,
    rss=200.0,
    categories={"python": 120.0, "slack": 10.0},
    trials={"RUNNING": 2, "TERMINATED": 7},
    running=[RunningTrial("t1", "n1", 300.0, 250.0), RunningTrial('t"2\n', "n1", 400.0, 350.0)],
    deaths={"kernel_oom": 3},
    nodes=[NodeLevel("n1", 0.7, 0.9, True)],
    gate_actions={"pause": 2, "resume": 1},
    head={"gcs_server": (90.0, 50.0)},
)


def scrape(url: str | None) -> dict[tuple[str, ...], float]:
    """The value of each metric, by its name and the values of its labels."""
    assert url is not None
    with urllib.request.urlopen(url, timeout=30) as answer:
        text = answer.read().decode()
    return {
        (sample.name.removeprefix(PREFIX), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def is_served(url: str) -> bool:
    try:
        scrape(url)
    except OSError:  # Refused, or reset while it stops.
        return False
    return True


@pytest.fixture
def exporter() -> Iterator[MetricsExporter]:
    exporter = MetricsExporter(metrics_port=0)
    yield exporter
    exporter.stop()


def step(callback: Any, *statuses: str) -> list[Any]:
    trials = [FakeTrial(number, status) for number, status in enumerate(statuses)]
    callback.on_step_begin(0, trials)
    callback.on_step_end(0, trials)
    return trials


def test_a_scrape_tells_everything() -> None:
    server = metrics.MetricsServer("127.0.0.1", 0, lambda: EVERYTHING)
    try:
        assert scrape(server.url) == {
            ("last_step_timestamp_seconds",): 1000.5,
            ("driver_rss_bytes",): 200.0,
            ("driver_category_bytes", "python"): 120.0,
            ("driver_category_bytes", "slack"): 10.0,
            ("trials", "RUNNING"): 2.0,
            ("trials", "TERMINATED"): 7.0,
            ("running_trial_rss_bytes", "n1", "t1"): 300.0,
            ("running_trial_rss_bytes", "n1", 't"2\n'): 400.0,
            ("running_trial_anonymous_bytes", "n1", "t1"): 250.0,
            ("running_trial_anonymous_bytes", "n1", 't"2\n'): 350.0,
            ("trial_deaths_total", "kernel_oom"): 3.0,
            ("gate_actions_total", "pause"): 2.0,
            ("gate_actions_total", "resume"): 1.0,
            ("gate_used_ratio", "n1"): 0.7,
            ("gate_pause_ratio", "n1"): 0.9,
            ("gate_is_paused", "n1"): 1.0,
            ("head_process_rss_bytes", "gcs_server"): 90.0,
            ("head_process_anonymous_bytes", "gcs_server"): 50.0,
        }
    finally:
        server.stop()
    assert not is_served(server.url)


def test_only_this_machine_reaches_them(exporter: MetricsExporter) -> None:
    exporter.setup()
    assert exporter.url is not None
    assert exporter.url.startswith("http://127.0.0.1:")


def test_trials_are_counted_by_status(exporter: MetricsExporter) -> None:
    exporter.setup()
    assert scrape(exporter.url) == {}  # No step was made yet.
    step(exporter, "TERMINATED", "TERMINATED", "ERROR", "RUNNING", "PENDING")
    found = scrape(exporter.url)
    counts = {key[1]: value for key, value in found.items() if key[0] == "trials"}
    assert counts == {"TERMINATED": 2, "ERROR": 1, "RUNNING": 1, "PENDING": 1, "PAUSED": 0}
    assert found["driver_rss_bytes",] > 10 * 2**20
    assert not any(key[0].startswith("running_trial") for key in found)


def test_they_end_with_the_run(exporter: MetricsExporter) -> None:
    exporter.setup()
    trials = step(exporter, "RUNNING")
    url = exporter.url
    assert url is not None
    assert is_served(url)
    exporter.on_experiment_end(trials)
    assert not is_served(url)
    assert exporter.url is None
    exporter.setup()
    assert is_served(exporter.url or "")


class Controller:
    """A run: hooks are called by one of its methods."""

    def begin(self, exporter: MetricsExporter) -> None:
        exporter.begin_run(RunHandle(self, Capabilities(frozenset())))  # type: ignore[arg-type]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.mark.parametrize("is_gone", [True, False])
def test_a_run_that_ended_without_a_hook_gives_its_port_back(
    is_gone: bool, exporter: MetricsExporter, caplog: pytest.LogCaptureFixture
) -> None:
    """A second Ctrl+C; a notebook keeps the traceback, and with it the controller."""
    port = free_port()
    first, controller = MetricsExporter(metrics_port=port), Controller()
    controller.begin(first)
    assert is_served(first.url or "")
    if is_gone:
        del controller
        gc.collect()
    later, exporter.metrics_port = Controller(), port
    later.begin(exporter)
    assert first.url is None
    assert exporter.url is not None
    assert is_served(exporter.url)
    assert [one.message for one in caplog.records if one.levelno >= logging.WARNING] == []


def test_a_run_that_goes_on_keeps_its_port(exporter: MetricsExporter) -> None:
    runner, other = Controller(), MetricsExporter(metrics_port=0)  # As Ray's loop calls it.
    runner.begin(exporter)
    Controller().begin(other)
    assert is_served(exporter.url or "")
    other.stop()


def test_a_callback_that_is_gone_serves_nothing() -> None:
    def serve() -> str:  # What looks for the controller keeps the variables of its callers.
        exporter = MetricsExporter(metrics_port=0)
        exporter.setup()
        assert is_served(exporter.url or "")
        return exporter.url or ""

    url = serve()
    gc.collect()
    until = time.monotonic() + 20
    while is_served(url) and time.monotonic() < until:
        time.sleep(0.1)
    assert not is_served(url)


def test_nothing_is_served_unless_asked_for() -> None:
    exporter = MetricsExporter()
    exporter.setup()
    step(exporter, "RUNNING")
    assert exporter.url is None


def test_memguard_serves_them_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNE_MEMGUARD_METRICS_PORT", "0")
    guard = MemGuard()
    guard.setup()
    trials = step(guard, "RUNNING", "TERMINATED")
    assert scrape(guard.metrics.url)["trials", "TERMINATED"] == 1
    guard.on_experiment_end(trials)
    assert guard.metrics.url is None


def test_a_port_that_is_taken_is_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        exporter = MetricsExporter(metrics_port=taken.getsockname()[1])
        exporter.setup()
        step(exporter, "RUNNING")
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "There are no metrics of this run" in record.message
    assert "cannot be used" in record.message


def test_a_missing_library_is_one_warning(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.delitem(sys.modules, "ray_tune_memguard.report.metrics")
    exporter = MetricsExporter(metrics_port=0)
    exporter.setup()
    step(exporter, "RUNNING")
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert 'pip install "ray-tune-memguard[metrics]"' in record.message


def test_the_page_and_the_dashboard_name_the_metrics() -> None:
    names = {
        f"{family.name}_total" if family.type == "counter" else family.name
        for family in metrics.families(EVERYTHING)
    }
    page = PAGE.read_text(encoding="utf-8")
    assert [name for name in names if f"`{name}`" not in page] == []
    queries = [
        target["expr"]
        for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
        for target in panel["targets"]
    ]
    shown = {name for name in names if any(name in query for query in queries)}
    assert names - shown <= {f"{PREFIX}last_step_timestamp_seconds"}
    unknown = [
        query for query in queries if PREFIX in query and not any(name in query for name in names)
    ]
    assert unknown == []
