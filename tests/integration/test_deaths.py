"""Trials that really die: the verdict, the culprit, and what the results say."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.integration.deaths import CAUSES, CGROUP, DETAILS, can_limit
from tests.integration.own_process import run, said_by

#: What it measures is the whole machine.
pytestmark = pytest.mark.alone

MAX_ATTEMPTS = 4


def deaths(folder: Path, *causes: str) -> list[str]:
    return ["tests.integration.deaths", str(folder), ",".join(causes)]


def test_each_cause_has_its_verdict(tmp_path: Path) -> None:
    causes = ["sigkill", "segv", "sigterm", "memory_error", "ordinary"]
    if can_limit():
        causes.append("kernel")
    said = said_by(deaths(tmp_path, *causes, "sys_exit"))
    found = {death["provoked"]: death for sweep in said for death in sweep["deaths"]}
    assert set(found) == {*causes, "sys_exit"} - {"ordinary"}
    for cause, death in found.items():
        assert death["cause"] == CAUSES[cause], death["summary"]
        assert death["detail"] == DETAILS.get(cause, death["detail"])
        assert death["certainty"] == "certain"
        assert not death["is_retried"]
        assert death["pid"] or cause == "memory_error"
    texts = [text for sweep in said for text in sweep["errors"]]
    assert len(texts) == len(causes) + 1
    told = [text.partition("ray-tune-memguard: ")[2] for text in texts]
    # What a user sees in Result.error, where a process died.
    for cause in {"sigkill", "segv", "sigterm", "sys_exit", "kernel"} & set(found):
        assert found[cause]["summary"] in told
    if can_limit():
        assert found["kernel"]["is_culprit"]
        assert found["kernel"]["size_bytes"] > 100 * 2**20
        assert "memguard_" in found["kernel"]["detail"]


def test_the_culprit_is_named_whoever_is_killed(tmp_path: Path) -> None:
    for attempt in range(MAX_ATTEMPTS):
        [said] = said_by(deaths(tmp_path / str(attempt), "monitor"))
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
    [said] = said_by(deaths(tmp_path, "node"))
    [death] = said["deaths"]
    assert (death["provoked"], death["cause"], death["certainty"]) == (
        "node",
        "node_died",
        "certain",
    )


@pytest.mark.latest_only
@pytest.mark.skipif(not can_limit(), reason="needs root and cgroups of version 1")
def test_a_restore_says_that_the_kernel_killed_the_driver(tmp_path: Path) -> None:
    killed = run(deaths(tmp_path, "driver"))
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    for group in CGROUP.glob("memguard_*"):
        if not (group / "cgroup.procs").read_text():
            group.rmdir()
    restored = run(deaths(tmp_path, "restored"))
    assert restored.returncode == 0, restored.stderr[-2000:]
    assert "The kernel's OOM killer killed the driver of the last run" in restored.stderr
    assert "at the limit of cgroup /memguard_" in restored.stderr
