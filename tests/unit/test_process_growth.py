"""Which of several processes grows steadily, by trials or by time."""

from __future__ import annotations

import pytest

from ray_tune_memguard.diagnostics.process_growth import ProcessGrowth, ProcessSeries
from ray_tune_memguard.diagnostics.steady_growth import MAX_POINTS

MIB = 2**20


def growth(series: ProcessSeries) -> dict[str, ProcessGrowth]:
    return {process.name: process for process in series.growth()}


def test_a_process_that_grows_by_trials() -> None:
    series = ProcessSeries(before=1000, began=0.0)
    for trials in range(0, 825, 25):
        # The first hundred trials fill caches.
        warm = min(trials, 100) * 200_000
        # Pages come in blocks.
        gcs = (43 * MIB + warm + trials * 16_000) // 65_536 * 65_536
        series.add(1000 + trials, trials / 40, {"gcs_server": (2 * gcs, gcs), "raylet": (MIB, MIB)})
    found = series.growth()
    assert [process.name for process in found] == ["gcs_server", "raylet"]
    gcs = found[0]
    assert gcs.is_growing
    assert gcs.per_trial == pytest.approx(16_000, rel=0.05)
    # 40 trials a second.
    assert gcs.per_hour == pytest.approx(16_000 * 40 * 3600, rel=0.05)
    assert gcs.rss == 2 * gcs.anonymous
    assert not found[1].is_growing
    assert found[1].per_trial == 0
    assert series.growing() == [gcs]


def test_pages_of_the_object_store_are_no_growth_of_the_raylet() -> None:
    series = ProcessSeries(before=0, began=0.0)
    for trials in range(0, 1000, 25):
        rss = 40 * MIB + trials * 5 * MIB
        series.add(trials, trials / 40, {"raylet": (rss, 30 * MIB)})
    assert series.growing() == []
    assert growth(series)["raylet"].rss == rss


def test_a_process_that_stops_growing_is_not_named() -> None:
    series = ProcessSeries(before=0, began=0.0)
    for trials in range(0, 1000, 20):
        series.add(trials, trials / 40, {"gcs_server": (0, 50 * MIB + min(trials, 400) * 16_000)})
    assert not growth(series)["gcs_server"].is_growing


def test_a_process_that_grows_while_no_trial_finishes() -> None:
    series = ProcessSeries(before=0, began=0.0)
    for minute in range(120):
        memory = {"dashboard": (0, 90 * MIB + minute * MIB), "agent": (0, 80 * MIB + minute % 3)}
        series.add(3, 60.0 * minute, memory)
    found = growth(series)
    assert series.growing() == [found["dashboard"]]
    assert found["dashboard"].per_trial is None
    assert found["dashboard"].per_hour == pytest.approx(60 * MIB, rel=0.01)
    assert not found["agent"].is_growing


def test_few_points_are_no_growth_and_many_are_thinned_out() -> None:
    series = ProcessSeries(before=0, began=0.0)
    assert series.growth() == series.growing() == []
    for trials in range(4):
        series.add(trials * 100, float(trials), {"raylet": (0, trials * 100 * MIB)})
    assert not growth(series)["raylet"].is_growing
    for trials in range(400, 100_000, 25):
        series.add(trials, float(trials), {"raylet": (0, trials * 8192)})
    assert len(series._series._points) <= MAX_POINTS
    assert growth(series)["raylet"].per_trial == pytest.approx(8192, rel=0.01)


def test_a_process_that_is_gone_is_left_out() -> None:
    series = ProcessSeries(before=0, began=0.0)
    series.add(0, 0.0, {"dashboard": (MIB, 0), "raylet": (MIB, 0)})
    series.add(100, 1.0, {"raylet": (MIB, 0)})
    assert list(growth(series)) == ["raylet"]
