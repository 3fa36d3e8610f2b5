"""Spilled fake trials."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ray_tune_memguard.lazy.cache import TrialCache
from ray_tune_memguard.lazy.summaries import TrialSummaryIndex
from ray_tune_memguard.lazy.trial_list import SpilledTrials
from ray_tune_memguard.store.trial_store import TrialStore
from tests.unit.fakes import FakeCodec, FakeTrial, fake_row

Spill = Callable[..., None]


@pytest.fixture
def store(tmp_path: Path) -> TrialStore:
    return TrialStore.create(tmp_path / "memguard", "trials")


@pytest.fixture
def cache(store: TrialStore) -> TrialCache:
    return TrialCache(store, FakeCodec(), capacity=4)


@pytest.fixture
def trials(cache: TrialCache) -> SpilledTrials:
    """Twelve trials, all in memory."""
    summaries = TrialSummaryIndex(lambda metric, result: result.get(metric))
    return SpilledTrials((FakeTrial(n) for n in range(12)), cache, summaries)


@pytest.fixture
def spill() -> Spill:
    """Spill these trials of the list, by number."""

    def spill_numbers(trials: SpilledTrials, *numbers: int) -> None:
        chosen = [trials.find(f"t{number:05d}") for number in numbers]
        codec = FakeCodec()
        with trials.cache.store.transaction():
            for trial in chosen:
                row = fake_row(trial.trial_id, trial.status, codec.dump(trial))
                trials.cache.store.put(trials.position(trial), row)
        for trial in chosen:
            trials.summaries.note(
                trials.position(trial), trial.trial_id, trial.last_result, trial.metric_analysis
            )
            trials.release(trial)

    return spill_numbers
