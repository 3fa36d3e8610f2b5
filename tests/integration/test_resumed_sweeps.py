"""However a sweep has ended and however it is resumed, each trial comes back once.

``python -m tests.integration.resumed_sweeps 0`` tries every combination, which takes hours.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from tests.integration.resumed_sweeps import Case, chosen_cases, differences, outcome

REPORTED = Case(
    end="callback-on_step_begin",
    happened="errored",
    pending=1,
    unspilled=False,
    checkpoints="1000",
    searcher="variants",
    resumed="errored-resumed",
)
# In a process that goes on, as a notebook's.
INTERRUPTED = replace(REPORTED, end="Ctrl+C twice", checkpoints="0", resumed="default")


@pytest.mark.slow
@pytest.mark.latest_only
@pytest.mark.parametrize("case", [REPORTED, INTERRUPTED, *chosen_cases(20)], ids=str)
def test_each_trial_comes_back_once(
    case: Case, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = outcome(case, tmp_path / "plain", guarded=False)
    guarded = outcome(case, tmp_path / "guarded", guarded=True)
    assert differences(case, plain, guarded) == []
    said = [
        record.getMessage()
        for record in caplog.records
        if record.name == "ray_tune_memguard" and record.levelname != "INFO"
    ]
    assert said == []


@pytest.mark.latest_only
def test_a_fresh_process_says_from_where_it_restores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    logger = logging.getLogger("ray_tune_memguard")
    for name, value in (("handlers", []), ("propagate", False), ("level", logging.NOTSET)):
        monkeypatch.setattr(logger, name, value)
    # A callback's `setup` comes after the restore.
    monkeypatch.setattr("ray_tune_memguard.callbacks.base.show_lines", lambda: None)
    outcome(REPORTED, tmp_path, guarded=True)
    said = [line for line in capfd.readouterr().err.splitlines() if "Restoring the run" in line]
    assert len(said) == 1
    assert str(tmp_path / "sweep" / ".memguard" / "trials-") in said[0]
