"""However a sweep has ended and however it is resumed, each trial comes back once.

``python -m tests.integration.resumed_sweeps 0`` tries every combination, which takes hours.
"""

from __future__ import annotations

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


@pytest.mark.latest_only
@pytest.mark.parametrize("case", [REPORTED, *chosen_cases(20)], ids=str)
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
