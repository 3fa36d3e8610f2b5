from __future__ import annotations

import copy
import gc
import pickle
import threading
import weakref
from typing import Any

import pytest

from ray_tune_memguard.lazy import ghost
from ray_tune_memguard.lazy.changes import ChangedStates
from ray_tune_memguard.lazy.ghost import is_ghost
from ray_tune_memguard.lazy.progress import ProgressView
from ray_tune_memguard.lazy.trial_list import SpilledTrials
from tests.unit.fakes import FakeTrial


def test_a_spilled_trial_is_the_same_object_without_its_state(
    trials: SpilledTrials, spill: Any
) -> None:
    held = trials[3]
    spill(trials, 3)
    assert is_ghost(held)
    assert trials[3] is held
    assert set(object.__getattribute__(held, "__dict__")) < {
        "trial_id",
        "status",
        "_memguard_activator",
    } | {"x"}


def test_id_status_and_class_do_not_wake_it(trials: SpilledTrials, spill: Any) -> None:
    held = trials[3]
    spill(trials, 3)
    assert (held.trial_id, held.status, held.is_finished()) == ("t00003", "TERMINATED", True)
    assert isinstance(held, FakeTrial)
    assert held.__class__ is FakeTrial
    assert type(held).__name__ == "FakeTrial"
    assert {held: 1}[held] == 1
    assert is_ghost(held)


def test_any_other_use_gives_the_state_back(trials: SpilledTrials, spill: Any) -> None:
    held = trials[3]
    before = dict(held.__dict__)
    spill(trials, 3)
    assert held.config == {"number": 3, "layers": (8, 8)}
    assert type(held) is FakeTrial
    assert vars(held) == before


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))]
)
def test_copies_of_a_ghost_are_plain_trials(trials: SpilledTrials, spill: Any, copied: Any) -> None:
    held = trials[3]
    spill(trials, 3)
    twin = copied(held)
    assert type(twin) is FakeTrial
    assert twin.config["number"] == 3


def test_a_thread_that_reads_while_a_trial_is_emptied_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trial, seen = FakeTrial(7), []

    class Activator:
        def activate(self, given: FakeTrial, /) -> None:
            # In a sweep it waits here until the other thread has emptied the trial.
            seen.append(given)
            object.__setattr__(given, "__class__", FakeTrial)

    make = ghost._ghost_class

    def read_in_between(plain: type) -> type:
        made = make(plain)
        object.__setattr__(trial, "__class__", made)
        assert trial.config["number"] == 7
        return made

    monkeypatch.setattr(ghost, "_ghost_class", read_in_between)
    attributes = vars(trial)
    ghost.empty(trial, Activator())
    assert seen == [trial]
    # Somebody may be going through them.
    assert "_memguard_activator" not in attributes


def test_what_nobody_holds_is_not_in_memory(trials: SpilledTrials, spill: Any) -> None:
    gone = weakref.ref(trials[3])
    spill(trials, 3)
    gc.collect()
    assert gone() is None
    assert trials[3].config["number"] == 3


def test_loaded_trials_are_bounded(trials: SpilledTrials, spill: Any) -> None:
    held = list(trials)
    spill(trials, *range(12))
    for trial in held:
        assert trial.config
    assert sum(not is_ghost(trial) for trial in held) == 4
    assert all(mine is theirs for mine, theirs in zip(trials, held, strict=True))


def test_who_only_reads_wakes_nobody(trials: SpilledTrials, spill: Any) -> None:
    held, changed, resident = trials[3], trials[4], trials[5]
    spill(trials, 3, 4)
    changed.config["number"] = -4
    read = trials.cache.peek
    assert read(held).config == {"number": 3, "layers": (8, 8)}
    assert type(read(held)) is FakeTrial
    assert is_ghost(held)
    assert read(changed) is changed
    assert read(resident) is resident
    assert trials.cache.active() == [changed]


def test_changes_are_kept(trials: SpilledTrials, spill: Any) -> None:
    spill(trials, *range(12))
    trials[3].config["note"] = "nested"
    trials[4].custom = "attribute"
    del trials[5].last_result
    for trial in trials:
        assert trial.config
    assert all(is_ghost(trials[n]) for n in (3, 4, 5))
    assert trials[3].config["note"] == "nested"
    assert trials[4].custom == "attribute"
    assert not hasattr(trials[5], "last_result")


def test_a_change_of_status_shows(trials: SpilledTrials, spill: Any) -> None:
    spill(trials, *range(12))
    trials[3].status = "ERROR"
    trials.cache.deactivate_all()
    assert trials[3].status == "ERROR"
    groups = ProgressView(trials, metric=None, errors=False).by_status()
    assert {status: len(group) for status, group in groups.items()} == {
        "TERMINATED": 11,
        "ERROR": 1,
    }
    assert [trial.trial_id for trial in groups["ERROR"]] == ["t00003"]
    assert "t00003" not in [trial.trial_id for trial in groups["TERMINATED"]]


def test_what_cannot_be_written_any_more_stays_loaded(trials: SpilledTrials, spill: Any) -> None:
    spill(trials, *range(12))
    trials[3].lock = threading.Lock()
    for trial in trials:
        assert trial.config
    gc.collect()
    assert trials[3].lock is not None


def test_threads_may_wake_the_same_ghost(trials: SpilledTrials, spill: Any) -> None:
    held = list(trials)
    spill(trials, *range(12))
    wrong: list[Any] = []

    def read() -> None:
        for _ in range(200):
            for number, trial in enumerate(held):
                try:
                    if trial.config["number"] != number:
                        wrong.append(trial)
                except Exception as error:
                    wrong.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_reading_writes_nothing(
    trials: SpilledTrials, spill: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spill(trials, *range(12))
    written: list[str] = []
    monkeypatch.setattr(ChangedStates, "put", lambda self, *row: written.append(row[0]))
    for _ in range(2):
        assert [trial.config["number"] for trial in trials] == list(range(12))
    trials.cache.deactivate_all()
    assert written == []
