"""A driver that is killed by SIGKILL, and its sweep restored: nothing is lost, nothing is doubled.

``python -m tests.acceptance kills`` does the same at full size, with Ray alone beside it.
"""

from __future__ import annotations

import random

import pytest

from tests.acceptance.kill_runs import Plan, kill_and_restore

pytestmark = [pytest.mark.slow, pytest.mark.latest_only]

TRIALS = 120
#: So that there are checkpoints to be killed at; Ray's own period is 10 s.
CHECKPOINT_SECONDS = 1.0
TIMEOUT = 100.0

AT_RANDOM = [random.Random(seed).uniform(0.1, 0.9) for seed in (1,)]
#: One of each write; ``python -m tests.acceptance kills --aim`` has all of them.
AIMED = ["spill:after", "publish:during", "upload:half"]


def check(plan: Plan) -> None:
    outcome = kill_and_restore(plan)
    assert not outcome.failure, outcome.failure
    assert outcome.opened
    assert outcome.results == TRIALS
    assert outcome.doubled == outcome.lost == outcome.changed == outcome.unfinished == 0
    assert outcome.statuses == {"TERMINATED": TRIALS}
    assert outcome.is_whole
    assert outcome.ran_again == outcome.without_history == 0


@pytest.mark.parametrize("share", AT_RANDOM, ids=lambda share: f"{share:.0%}")
def test_killed_at_random(share: float) -> None:
    check(
        Plan(
            "memguard",
            TRIALS,
            seed=round(share * 1000),
            share=share,
            checkpoint_seconds=CHECKPOINT_SECONDS,
            timeout=TIMEOUT,
        )
    )


@pytest.mark.parametrize("aim", AIMED)
def test_killed_at_a_chosen_instant(aim: str) -> None:
    check(
        Plan(
            "memguard",
            TRIALS,
            seed=3,
            share=0.4,
            aim=aim,
            checkpoint_seconds=CHECKPOINT_SECONDS,
            timeout=TIMEOUT,
        )
    )
