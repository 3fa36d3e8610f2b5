"""The doctor on real clusters: five situations of idle workers, and a healthy one."""

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


def run(*arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env={**os.environ, "RAY_ADDRESS": ""},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def said() -> dict[str, Any]:
    return run("tests.integration.doctor_situations")


def test_five_situations_are_five_findings(said: dict[str, Any]) -> None:
    found = {finding["check"]: finding for finding in said["doctor"]["findings"]}
    assert set(found) == {
        "idle-workers-never-end",
        "idle-workers-end-late",
        "idle-workers-own-objects",
        "idle-workers-hold-memory",
        "idle-workers-burn-cpu",
    }
    for check, kind in (
        ("idle-workers-own-objects", "owns"),
        ("idle-workers-hold-memory", "holds"),
        ("idle-workers-burn-cpu", "spins"),
    ):
        assert f"pid {said['pids'][kind]} " in found[check]["evidence"]
    assert said["code"] == 10
    assert said["doctor"]["unseen"] == []


def test_looking_starts_no_worker(said: dict[str, Any]) -> None:
    assert said["workers"] >= 6
    assert said["started"] == 0


def test_the_settings_are_accepted_and_mend_what_was_found(said: dict[str, Any]) -> None:
    assert said["mended"] == {
        "kill_idle_workers_interval_ms": 200,
        "idle_worker_killing_time_threshold_ms": 1000,
    }
    assert said["idle"] <= 2
    code, found = said["healthy"]
    assert json.loads(found)["findings"] == []
    assert code == 0
