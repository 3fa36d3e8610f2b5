"""Trials that really die: the verdict, the culprit, and what the results say."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration.deaths import CAUSES, CGROUP, DETAILS, can_limit

#: What it measures is the whole machine.
pytestmark = pytest.mark.alone

ROOT = Path(__file__).parents[2]
MAX_ATTEMPTS = 4


def start(folder: Path, causes: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.integration.deaths", str(folder), ",".join(causes)],
        cwd=ROOT,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def run(folder: Path, causes: list[str]) -> list[dict[str, Any]]:
    done = start(folder, causes)
    assert done.returncode == 0, done.stderr[-4000:]
    said: list[dict[str, Any]] = json.loads(done.stdout.strip().splitlines()[-1])
    return said


def test_each_cause_has_its_verdict(tmp_path: Path) -> None:
    causes = ["sigkill", "segv", "sigterm", "memory_error", "ordinary"]
    if can_limit():
        causes.append("kernel")
    said = run(tmp_path, [*causes, "sys_exit"])
    deaths = {death["provoked"]: death for sweep in said for death in sweep["deaths"]}
    assert set(deaths) == {*causes, "sys_exit"} - {"ordinary"}
    for cause, death in deaths.items():
        assert death["cause"] == CAUSES[cause], death["summary"]
        assert death["detail"] == DETAILS.get(cause, death["detail"])
        assert death["certainty"] == "certain"
        assert not death["is_retried"]
        assert death["pid"] or cause == "memory_error"
    texts = [text for sweep in said for text in sweep["errors"]]
    assert len(texts) == len(causes) + 1
    told = [text.partition("ray-tune-memguard: ")[2] for text in texts]
    # What a user sees in Result.error, where a process died.
    for cause in {"sigkill", "segv", "sigterm", "sys_exit", "kernel"} & set(deaths):
        assert deaths[cause]["summary"] in told
    if can_limit():
        assert deaths["kernel"]["is_culprit"]
        assert deaths["kernel"]["size_bytes"] > 100 * 2**20
        assert "memguard_" in deaths["kernel"]["detail"]


def test_the_culprit_is_named_whoever_is_killed(tmp_path: Path) -> None:
    for attempt in range(MAX_ATTEMPTS):
        [said] = run(tmp_path / str(attempt), ["monitor"])
        if said["has_culprit"]:
            break
    assert said["has_culprit"], "Other processes of this machine took the memory."
    assert said["deaths"]
    for death in said["deaths"]:
        assert death["cause"] == "ray_memory_monitor"
        assert death["culprit_provoked"] == "monitor"
        assert death["size_bytes"]
        assert death["limit_bytes"]


@pytest.mark.latest_only
def test_a_trial_dies_with_its_node(tmp_path: Path) -> None:
    [said] = run(tmp_path, ["node"])
    [death] = said["deaths"]
    assert (death["provoked"], death["cause"], death["certainty"]) == (
        "node",
        "node_died",
        "certain",
    )


@pytest.mark.latest_only
@pytest.mark.skipif(not can_limit(), reason="needs root and cgroups of version 1")
def test_a_restore_says_that_the_kernel_killed_the_driver(tmp_path: Path) -> None:
    killed = start(tmp_path, ["driver"])
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    for group in CGROUP.glob("memguard_*"):
        if not (group / "cgroup.procs").read_text():
            group.rmdir()
    restored = start(tmp_path, ["restored"])
    assert restored.returncode == 0, restored.stderr[-2000:]
    assert "The kernel's OOM killer killed the driver of the last run" in restored.stderr
    assert "at the limit of cgroup /memguard_" in restored.stderr
