"""Why a trial is not spilled."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ray_tune_memguard.adapter.run import controller
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
    owner: Any = FakeTrial(1)
    spiller = Spiller(owner, installation, Notices())
    trial: Any = FakeTrial(0)
    outcome = Spilled()
    with store.transaction():
        assert not spiller._put(trial, fake_row("t0", "TERMINATED", b"record"), outcome)
    [(kept, reason)] = outcome.refused
    assert kept is trial
    assert reason.startswith("the store has another trial with its id")


@pytest.mark.parametrize("name", ["train_\udce9", "x" * 10], ids=["not text", "text"])
def test_a_row_that_cannot_be_written_costs_no_other(tmp_path: Path, name: str) -> None:
    store = TrialStore.create(tmp_path, "trials")
    trials = SimpleNamespace(position=lambda trial: trial.number)
    installation: Any = SimpleNamespace(store=store, trials=trials, notices=None)
    owner: Any = FakeTrial(9)
    spiller = Spiller(owner, installation, Notices())
    outcome = Spilled()
    with store.transaction():
        for number, directory in enumerate(["first", name, "last"]):
            trial: Any = SimpleNamespace(number=number)
            row = fake_row(f"t{number}", "TERMINATED", b"record")
            row.directory = directory
            spiller._put(trial, row, outcome)
    kept = 3 if name.isascii() else 2
    assert store.extent()[0] == kept
    assert len(outcome.refused) == 3 - kept


class CannotBeWritten:
    """A controller with one trial that finished, whose record of before says that it runs."""

    def __init__(self, trial: Any) -> None:
        self._trials_to_cache = {trial}
        self._trial_metadata = {trial.trial_id: ('{"status": "RUNNING"}', "{}")}


def test_a_record_that_could_not_be_written_is_not_taken_for_the_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trial: Any = FakeTrial(0)
    run: Any = SimpleNamespace(codec=SimpleNamespace(), notices=Notices())
    made: Any = CannotBeWritten(trial)
    monkeypatch.setattr(controller, "_this_run", lambda given: run)
    spiller = Spiller(made, SimpleNamespace(trials=None, notices=None), Notices())  # type: ignore[arg-type]
    answers = [RuntimeError("dictionary changed size during iteration"), ("new", "new")]

    def json_state(given: object) -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    run.codec.json_state = json_state
    write = controller._get_trial_checkpoints.ours
    assert write(None, made) == {trial.trial_id: ('{"status": "RUNNING"}', "{}")}
    assert spiller._unchanged(trial) is None
    assert write(None, made) == {trial.trial_id: ("new", "new")}
    assert spiller._unchanged(trial) == ("new", "new")
