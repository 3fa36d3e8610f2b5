"""Ray's memory monitor kills a trial: the trial fails, the sweep goes on.

By Ray alone ``fit()`` raises: see ``python -m tests.acceptance out-of-memory``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.integration.own_process import said_by

#: What it measures is the whole machine.
pytestmark = pytest.mark.alone


def sweep(folder: Path, max_failures: int, actors: str, **variables: str) -> dict[str, Any]:
    command = ["tests.integration.short_of_memory", str(folder), str(max_failures), actors]
    said: dict[str, Any] = said_by([*command, "guarded"], variables=variables)
    return said


@pytest.mark.parametrize(
    ("max_failures", "actors"),
    [(1, "reuse"), pytest.param(0, "fresh", marks=pytest.mark.latest_only)],
)
def test_the_trial_fails_and_the_sweep_goes_on(
    tmp_path: Path, max_failures: int, actors: str
) -> None:
    # A checkpoint while the trial still runs, which Ray does not correct when its process has died.
    said = sweep(tmp_path, max_failures, actors, TUNE_GLOBAL_CHECKPOINT_S="0")
    assert "raised" not in said, said["raised"]
    assert len(said["results"]) == len(said["restored"]) == 3
    for results in (said["results"], said["restored"]):
        [hog] = [result for result in results if result["hog"]]
        assert hog["error"] == "RayActorError"
        assert "low on memory" in hog["text"]


@pytest.mark.latest_only
def test_the_old_way_can_be_had(tmp_path: Path) -> None:
    said = sweep(tmp_path, 1, "fresh", TUNE_MEMGUARD_SURVIVE_OOM="0")
    assert "unexpected exception" in said["raised"]
