"""Bad input is refused at construction, by name, value and what is allowed."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import pytest
from ray import cloudpickle

from ray_tune_memguard import (
    LaunchGate,
    MemGuard,
    MemrayProfiler,
    MetricsExporter,
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
    ("metrics_port", -1, ValueError),
    ("metrics_port", "http", TypeError),
    ("metrics_host", 7, TypeError),
    ("metrics_host", " ", ValueError),
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
        ("HEAD_EVERY_SECONDS", "0"),
        ("OBJECTS_EVERY_SECONDS", "0"),
        ("TRIAL_MEMORY_EVERY_SECONDS", "-1"),
        ("LAUNCH_GATE", "maybe"),
        ("PAUSE", "0"),
        ("RESUME", "1.5"),
        ("MEMORY_PER_TRIAL", "much"),
        ("SHED", "2"),
        ("STOP_AT", "-1"),
        ("METRICS_PORT", "65536"),
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
    monkeypatch.setenv("TUNE_MEMGUARD_HEAD_EVERY_SECONDS", "30")
    monkeypatch.setenv("TUNE_MEMGUARD_OBJECTS_EVERY_SECONDS", "none")
    monkeypatch.setenv("TUNE_MEMGUARD_REPORT_DEATHS", "0")
    monkeypatch.setenv("TUNE_MEMGUARD_HISTORIES", "store")
    monkeypatch.setenv("TUNE_MEMGUARD_TRIAL_MEMORY_EVERY_SECONDS", "none")
    monkeypatch.setenv("TUNE_MEMGUARD_MEMORY_PER_TRIAL", "2 GB")
    monkeypatch.setenv("TUNE_MEMGUARD_METRICS_PORT", "9099")
    monkeypatch.setenv("TUNE_MEMGUARD_PAUSE", "0.7")
    monkeypatch.setenv("TUNE_MEMGUARD_SLOW_START", "1")
    assert MemGuard(every_trials=3).options == {
        "every_trials": 3,
        "every_seconds": 2.5,
        "spill_dir": tmp_path / "spill",
        "trim_every_trials": 50,
        "trim_slack_mib": None,
        "sample_every_trials": 25,
        "growth_budget": 0.5,
        "survive_oom": False,
        "head_every_seconds": 30.0,
        "objects_every_seconds": None,
        "report_deaths": False,
        "histories": "store",
        "trial_memory_every_seconds": None,
        "launch_gate": True,
        "pause": 0.7,
        "resume": None,
        "slow_start": True,
        "memory_per_trial": 2_000_000_000,
        "shed": False,
        "stop_at": None,
        "metrics_port": 9099,
        "metrics_host": "127.0.0.1",
    }


@pytest.mark.parametrize("pickler", [pickle, cloudpickle])
@pytest.mark.parametrize(
    "callback",
    [
        LaunchGate(memory_per_trial="2 GB", stop_at=0.93),
        MemGuard(every_trials=9),
        MemrayProfiler("largest", survive_kill=True),
        MetricsExporter(metrics_port=9099),
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


@pytest.mark.parametrize(
    ("given", "count"),
    [
        (1, 1),
        (2.5e9, 2_500_000_000),
        ("2 GB", 2 * 10**9),
        ("2GB", 2 * 10**9),
        ("512 MiB", 512 * 2**20),
        ("1.5 gib", 3 * 2**29),
        ("3G", 3 * 10**9),
        ("3Gi", 3 * 2**30),
        ("100", 100),
        ("7 kB", 7000),
        ("20 B", 20),
        (None, None),
    ],
)
def test_sizes(given: object, count: int | None) -> None:
    assert LaunchGate(memory_per_trial=given).memory_per_trial == count  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "given", ["much", "", "2 XB", "GB", "-1 GB", 0, -5, True, [], float("nan")]
)
def test_no_sizes(given: object) -> None:
    with pytest.raises((TypeError, ValueError), match=r"^memory_per_trial must be a positive"):
        LaunchGate(memory_per_trial=given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"pause": 0.8, "resume": 0.8}, "resume must be less than pause; got resume=0.8"),
        ({"pause": 0.8, "resume": 0.9}, "resume must be less than pause"),
        ({"pause": 0.95, "stop_at": 0.93}, "pause must be less than stop_at"),
        ({"pause": 0}, "pause must be a number above 0 and up to 1, or None; got 0"),
        ({"pause": 1.1}, "pause must be a number above 0"),
        ({"resume": "low"}, "resume must be a number above 0"),
        ({"stop_at": 90}, "stop_at must be a number above 0"),
        ({"slow_start": "yes"}, "slow_start must be True or False"),
        ({"shed": 2}, "shed must be True or False"),
    ],
)
def test_what_the_gate_refuses(options: dict[str, Any], text: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{re.escape(text)}"):
        LaunchGate(**options)
