"""Ray's memory monitor kills a trial: the trial fails, the sweep goes on.

By Ray alone ``fit()`` raises: see ``python -m benchmarks out_of_memory``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

#: What it measures is the whole machine.
pytestmark = pytest.mark.alone

ROOT = Path(__file__).parents[2]


def run(folder: Path, max_failures: int, actors: str, **environment: str) -> dict[str, Any]:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.integration.short_of_memory",
            str(folder),
            str(max_failures),
            actors,
            "guarded",
        ],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    said: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return said


@pytest.mark.parametrize(
    ("max_failures", "actors"),
    [(1, "reuse"), pytest.param(0, "fresh", marks=pytest.mark.latest_only)],
)
def test_the_trial_fails_and_the_sweep_goes_on(
    tmp_path: Path, max_failures: int, actors: str
) -> None:
    said = run(tmp_path, max_failures, actors)
    assert "raised" not in said, said["raised"]
    assert len(said["results"]) == len(said["restored"]) == 3
    for results in (said["results"], said["restored"]):
        [hog] = [result for result in results if result["hog"]]
        assert hog["error"] == "RayActorError"
        assert "low on memory" in hog["text"]


@pytest.mark.latest_only
def test_the_old_way_can_be_had(tmp_path: Path) -> None:
    said = run(tmp_path, 1, "fresh", TUNE_MEMGUARD_SURVIVE_OOM="0")
    assert "unexpected exception" in said["raised"]
