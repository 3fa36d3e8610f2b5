"""Metrics of a real run, scraped while it goes on."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from ray import tune

from ray_tune_memguard import MemGuard
from ray_tune_memguard.callbacks import head_node_reporter
from tests.integration import sweeps
from tests.unit.test_metrics import is_served, scrape

pytest.importorskip("prometheus_client", reason="metrics need prometheus-client")
TRIALS = 6


class Scrapes(tune.Callback):
    """Scrapes at each result, in the thread of the run."""

    def __init__(self, guard: MemGuard) -> None:
        self.guard = guard
        self.url = ""
        self.found: list[tuple[set[str], dict[tuple[str, ...], float]]] = []

    def on_trial_result(self, iteration: int, trials: list[Any], **_: Any) -> None:
        if not self.found:
            self.guard.tracker.sample()
        self.url = self.guard.metrics.url or ""
        unfinished = {trial.trial_id for trial in trials if not trial.is_finished()}
        self.found.append((unfinished, scrape(self.url)))


def reports_for_a_while(config: dict[str, Any]) -> None:
    for number in range(4):
        time.sleep(1.0)
        tune.report({"score": number})


@pytest.mark.slow
def test_scrapes_of_a_run(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_node_reporter, "_EVERY_TRIALS", 1)
    guard = MemGuard(metrics_port=0, head_every_seconds=0.1, trial_memory_every_seconds=0.2)
    scrapes = Scrapes(guard)
    sweeps.fit(
        reports_for_a_while,
        storage,
        [guard, scrapes],
        samples=1,
        space={"x": tune.grid_search(list(range(TRIALS)))},
    )
    assert not is_served(scrapes.url)
    last = scrapes.found[-1][1]
    assert last["driver_rss_bytes",] > 50 * 2**20
    assert sum(value for key, value in last.items() if key[0] == "trials") == TRIALS
    assert last["trials", "TERMINATED"] >= TRIALS - 2
    [used] = [value for key, value in last.items() if key[0] == "gate_used_ratio"]
    assert 0 < used < 1
    assert last["driver_category_bytes", "shared"] > 10 * 2**20
    assert last["head_process_rss_bytes", "gcs_server"] > 10 * 2**20
    measured = set()
    for unfinished, found in scrapes.found:
        running = {key[2] for key in found if key[0] == "running_trial_rss_bytes"}
        assert running <= unfinished
        measured |= running
    assert len(measured) == TRIALS
