"""Bad input is refused at construction, by name, value and what is allowed."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from ray import cloudpickle

from ray_tune_memguard import (
    MemGuard,
    ObjectGrowthTracker,
    OomSurvival,
    RssReporter,
    TrialMemoryReporter,
    TrialPruner,
)
from ray_tune_memguard.callbacks.base import reopen

BAD: list[tuple[str, Any, type[Exception]]] = [
    ("every_trials", 0, ValueError),
    ("every_trials", -3, ValueError),
    ("every_trials", 1.5, TypeError),
    ("every_trials", True, TypeError),
    ("every_seconds", "soon", TypeError),
    ("every_seconds", 0, ValueError),
    ("every_seconds", float("nan"), ValueError),
    ("every_seconds", float("inf"), ValueError),
    ("trim_every_trials", "often", TypeError),
    ("trim_slack_mib", -1, ValueError),
    ("survive_oom", "perhaps", TypeError),
    ("survive_oom", 2, ValueError),
    ("trial_memory_every_seconds", 0, ValueError),
    ("trial_memory_every_seconds", "often", TypeError),
    ("spill_dir", 7, TypeError),
    ("spill_dir", "/dev/null", ValueError),
    ("spill_dir", "/dev/null/below", ValueError),
    ("spill_dir", "/proc/nowhere", ValueError),
]


@pytest.mark.parametrize(("option", "value", "error"), BAD)
def test_bad_arguments(option: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        MemGuard(**{option: value})
    assert str(caught.value).startswith(f"{option} must be ")
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("EVERY_TRIALS", "0"),
        ("EVERY_SECONDS", "soon"),
        ("TRIM_SLACK_MIB", "-1"),
        ("SPILL_DIR", "/dev/null"),
        ("SAMPLE_EVERY_TRIALS", "none"),
        ("GROWTH_BUDGET", "1.5"),
        ("SURVIVE_OOM", "perhaps"),
        ("SURVIVE_OOM", "2"),
        ("TRIAL_MEMORY_EVERY_SECONDS", "-1"),
    ],
)
def test_bad_environment(monkeypatch: pytest.MonkeyPatch, variable: str, text: str) -> None:
    monkeypatch.setenv(f"TUNE_MEMGUARD_{variable}", text)
    with pytest.raises((TypeError, ValueError), match=f"^TUNE_MEMGUARD_{variable} must be "):
        MemGuard()


def test_an_argument_wins_over_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TUNE_MEMGUARD_EVERY_TRIALS", "17")
    monkeypatch.setenv("TUNE_MEMGUARD_EVERY_SECONDS", "2.5")
    monkeypatch.setenv("TUNE_MEMGUARD_TRIM_SLACK_MIB", "none")
    monkeypatch.setenv("TUNE_MEMGUARD_SPILL_DIR", str(tmp_path / "spill"))
    monkeypatch.setenv("TUNE_MEMGUARD_GROWTH_BUDGET", "0.5")
    monkeypatch.setenv("TUNE_MEMGUARD_SURVIVE_OOM", "0")
    monkeypatch.setenv("TUNE_MEMGUARD_REPORT_DEATHS", "0")
    monkeypatch.setenv("TUNE_MEMGUARD_HISTORIES", "store")
    monkeypatch.setenv("TUNE_MEMGUARD_TRIAL_MEMORY_EVERY_SECONDS", "none")
    guard = MemGuard(every_trials=3)
    assert guard.options == {
        "every_trials": 3,
        "every_seconds": 2.5,
        "spill_dir": tmp_path / "spill",
        "trim_every_trials": 50,
        "trim_slack_mib": None,
        "sample_every_trials": 25,
        "growth_budget": 0.5,
        "survive_oom": False,
        "report_deaths": False,
        "histories": "store",
        "trial_memory_every_seconds": None,
    }


@pytest.mark.parametrize("pickler", [pickle, cloudpickle])
@pytest.mark.parametrize(
    "callback",
    [
        MemGuard(every_trials=9),
        ObjectGrowthTracker(growth_budget=0.5),
        OomSurvival(survive_oom=False),
        RssReporter(every_seconds=9),
        TrialMemoryReporter(trial_memory_every_seconds=9),
        TrialPruner(trim_every_trials=9),
    ],
    ids=lambda callback: type(callback).__name__,
)
def test_callbacks_pickle_with_their_options(pickler: Any, callback: Any) -> None:
    again = pickler.loads(pickler.dumps(callback))
    assert type(again) is type(callback)
    assert again.options == callback.options


def test_a_directory_of_another_machine_does_not_keep_a_callback_from_opening(
    caplog: pytest.LogCaptureFixture,
) -> None:
    again = reopen(
        "ray_tune_memguard.memguard:MemGuard",
        {"every_trials": 9, "spill_dir": "/proc/nowhere", "of_a_later_version": 1},
    )
    assert again.options["every_trials"] == 9
    assert again.options["spill_dir"] is None
    assert "spill_dir" in caplog.text
    assert "of_a_later_version" in caplog.text


class WithArgument(MemGuard):
    """A user's own guard."""

    def __init__(self, owner: str, **options: Any) -> None:
        super().__init__(**options)
        self.owner = owner


@pytest.mark.parametrize("pickler", [pickle, cloudpickle])
def test_a_users_subclass_pickles_with_its_own_state(pickler: Any) -> None:
    again = pickler.loads(pickler.dumps(WithArgument("me", every_trials=9)))
    assert type(again).__name__ == "WithArgument"
    assert again.owner == "me"
    assert again.reporter.every_trials == 9
