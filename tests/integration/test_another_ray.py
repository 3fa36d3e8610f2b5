"""A sweep that one Ray began and another one restores. The kill is real, as in ``test_kills``."""

from __future__ import annotations

import os
import sys

import pytest

from tests.acceptance.kill_runs import Plan, kill_and_restore

#: ``make`` sets it for the older Rays: the interpreter that has the latest.
OTHER_PYTHON = os.environ.get("ANOTHER_RAY_PYTHON", "")
TRIALS = 60


@pytest.mark.skipif(not OTHER_PYTHON, reason="ANOTHER_RAY_PYTHON is not set")
@pytest.mark.parametrize("direction", ["begun by the other", "restored by the other"])
def test_restored_by_another_ray(direction: str) -> None:
    pythons = [OTHER_PYTHON, sys.executable]
    begin, restore = pythons if "begun" in direction else reversed(pythons)
    outcome = kill_and_restore(
        Plan(
            "memguard",
            TRIALS,
            seed=5,
            share=0.5,
            checkpoint_seconds=1.0,
            timeout=150.0,
            begin_python=begin,
            restore_python=restore,
        )
    )
    assert not outcome.failure, outcome.failure
    assert outcome.is_whole
    assert outcome.statuses == {"TERMINATED": TRIALS}
    assert outcome.settled > 0
    assert outcome.ran_again == outcome.without_history == 0
