"""The doctor on real clusters: five situations of idle workers, and a healthy one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.integration.own_process import said_by

#: What it measures is the whole machine.
pytestmark = pytest.mark.alone


@pytest.fixture(scope="module")
def said() -> dict[str, Any]:
    found: dict[str, Any] = said_by(
        ["tests.integration.doctor_situations"], variables={"RAY_ADDRESS": ""}
    )
    return found


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
