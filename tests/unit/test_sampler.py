"""What a sample does with sites that are too big for its time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ray_tune_memguard.adapter.retention_sites import RetentionSite
from ray_tune_memguard.diagnostics import deadline, sampler
from ray_tune_memguard.diagnostics.growth import UNMEASURED
from ray_tune_memguard.diagnostics.sampler import GrowthSampler, Sample
from tests.unit.test_deep_size import history

HISTORY = ("holder", "MyDashboard.history")


class SlowClock:
    """Each look at the clock takes half a millisecond, however fast the machine is."""

    def __init__(self) -> None:
        self.now = 0.0

    def thread_time(self) -> float:
        self.now += 0.0005
        return self.now

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def _slow_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadline, "time", SlowClock())
    monkeypatch.setattr(sampler, "memory_breakdown", lambda: FOUND)
    monkeypatch.setattr(sampler, "RayProcesses", lambda session: SimpleNamespace(rss=dict))


FOUND = SimpleNamespace(
    rss=2**28, python=None, malloc=None, other=None, stacks=None, slack=None, shared=None, absent={}
)


def sampler_of(**sites: Any) -> GrowthSampler:
    """A sampler of a run that has these sites, in their order."""
    adapter = SimpleNamespace(
        TRIALS="TuneController._trials",
        THREADS="threads",
        GrowingGlobals=lambda: SimpleNamespace(found=(), compare=lambda trials: None),
        retention_sites_of=lambda controller, found: [
            RetentionSite(f"MyDashboard.{name}", value, "callback", "user")
            for name, value in sites.items()
        ],
        barriers_of=lambda controller: [],
        trial_identity=lambda found: None,
        trials_in_memory=lambda controller: [],
    )
    run = SimpleNamespace(
        retention_sites=lambda: adapter, ray_session=lambda: None, controller=object()
    )
    return GrowthSampler(run)


def sample(of: GrowthSampler) -> Sample:
    return of.sample(100, 100)


def chain() -> list[Any]:
    found: list[Any] = []
    for _ in range(300_000):
        found = [found]
    return found


def test_what_does_not_fit_into_the_time_is_estimated() -> None:
    measured = sampler_of(history=history(256))
    found = sample(measured)
    assert "sizes" not in found.absent
    assert found.values[HISTORY] == pytest.approx(256 * 12_705, rel=0.1)
    assert measured.known["MyDashboard.history"].is_estimated


def test_what_fits_is_no_estimate() -> None:
    measured = sampler_of(history=history(20))
    sample(measured)
    assert not measured.known["MyDashboard.history"].is_estimated


def test_the_growth_of_an_estimated_site_is_near_to_the_true_one() -> None:
    kept = history(256)
    measured = sampler_of(history=kept)
    first = sample(measured).values[HISTORY]
    kept |= history(1256)
    grown = sample(measured).values[HISTORY] - first
    assert grown == pytest.approx(1000 * 12_705, rel=0.1)


def test_several_big_sites_are_soon_measured_all_in_one_sample() -> None:
    many = {f"history{n}": history(256) for n in range(6)}
    measured = sampler_of(**many)
    for _ in range(4):
        found = sample(measured)
    assert "sizes" not in found.absent
    assert {kind for kind, _ in found.values if kind != "part"} == {"holder", "entries"}


def test_a_site_that_stays_too_big_is_a_row_and_leaves_time_for_others() -> None:
    measured = sampler_of(chain=chain(), few=[bytes(5000)])
    for _ in range(3):
        found = sample(measured)
        assert "no time for MyDashboard.chain (" in found.absent["sizes"]
        assert found.values["holder", "MyDashboard.few"] > 5000
    [row] = [row for row in found.rows(100, 100) if row.kind == UNMEASURED]
    assert (row.name, row.value) == ("MyDashboard.chain", 0.0)


def test_the_row_of_what_became_too_big_has_its_last_size() -> None:
    kept: list[Any] = [bytes(5000)]
    measured = sampler_of(kept=kept)
    sample(measured)
    kept.append(chain())
    found = sample(measured)
    assert found.values[UNMEASURED, "MyDashboard.kept"] > 5000
