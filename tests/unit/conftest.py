"""Spilled fake trials."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ray_tune_memguard.spill.ghost import Residency
from ray_tune_memguard.spill.ledger import ProgressLedger
from ray_tune_memguard.spill.store import TrialStore
from ray_tune_memguard.spill.trials import SpilledTrials
from tests.unit.fakes import FakeCodec, FakeTrial, fake_row

Spill = Callable[..., None]


@pytest.fixture
def store(tmp_path: Path) -> TrialStore:
    return TrialStore.create(tmp_path / "memguard", "trials")


@pytest.fixture
def residency(store: TrialStore) -> Residency:
    return Residency(store, FakeCodec(), capacity=4)


@pytest.fixture
def trials(residency: Residency) -> SpilledTrials:
    """Twelve trials, all in memory."""
    ledger = ProgressLedger(lambda metric, result: result.get(metric))
    return SpilledTrials((FakeTrial(n) for n in range(12)), residency, ledger)


@pytest.fixture
def spill() -> Spill:
    """Spill these trials of the list, by number."""

    def spill_numbers(trials: SpilledTrials, *numbers: int) -> None:
        chosen = [trials.find(f"t{number:05d}") for number in numbers]
        codec = FakeCodec()
        with trials.residency.store.transaction():
            for trial in chosen:
                row = fake_row(trial.trial_id, trial.status, codec.dump(trial))
                trials.residency.store.put(trials.seq(trial), row)
        for trial in chosen:
            trials.ledger.note(
                trials.seq(trial), trial.trial_id, trial.last_result, trial.metric_analysis
            )
            trials.release(trial)

    return spill_numbers
