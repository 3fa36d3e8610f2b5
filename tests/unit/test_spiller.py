"""Why a trial is not spilled."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray_tune_memguard.adapter.run.spiller import Spilled, Spiller
from ray_tune_memguard.notices import Notices
from ray_tune_memguard.store.trial_store import TrialStore
from tests.unit.fakes import FakeTrial, fake_row


def test_a_trial_with_the_id_of_another_one_is_kept_and_the_reason_named(tmp_path: Path) -> None:
    store = TrialStore.create(tmp_path, "trials")
    with store.transaction():
        store.put(0, fake_row("t0", "TERMINATED", b"record"))
    trials = SimpleNamespace(position=lambda trial: 1)
    installation: Any = SimpleNamespace(store=store, trials=trials, notices=None)
    controller: Any = FakeTrial(1)
    spiller = Spiller(controller, installation, Notices())
    trial: Any = FakeTrial(0)
    outcome = Spilled()
    with store.transaction():
        assert not spiller._put(trial, fake_row("t0", "TERMINATED", b"record"), outcome)
    [(kept, reason)] = outcome.refused
    assert kept is trial
    assert reason.startswith("the store has another trial with its id")
