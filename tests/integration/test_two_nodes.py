"""What is measured on other nodes: one more node on this machine, which dies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.integration.own_process import said_by
from tests.integration.profiled_trials import LINE

#: What it measures is the whole machine.
pytestmark = pytest.mark.alone


def said_of(*arguments: str) -> dict[str, Any]:
    command = ["tests.integration.two_nodes", *arguments]
    said: dict[str, Any] = said_by(command, variables={"RAY_ADDRESS": ""})
    return said


@pytest.fixture(scope="module")
def probes() -> dict[str, Any]:
    return said_of("probes")


@pytest.mark.latest_only
def test_probes_answer_until_their_node_dies(probes: dict[str, Any]) -> None:
    assert probes["own_is_ready"]
    assert probes["own_pid"]
    assert probes["other_pid"]
    assert probes["wrong"] == "ValueError"
    assert probes["died"] == "ActorDiedError"
    assert probes["restarted"]
    assert not isinstance(probes["lost"], int)
    [line] = probes["lines_of_a_lost_node"]
    assert "has left the cluster" in line


@pytest.mark.latest_only
def test_a_probe_that_cannot_start_is_one_line(probes: dict[str, Any]) -> None:
    assert probes["refused"] == 0
    [line] = [line for line in probes["lines"] if "probe on node" in line]
    assert "ModuleNotFoundError" in line
    assert probes["closed"] == "NoAnswerError"


@pytest.mark.latest_only
def test_trials_are_measured_on_both_nodes_and_one_may_die(tmp_path: Path) -> None:
    said = said_of("trials", str(tmp_path))
    assert said["nodes"] == 2
    # On the other node the last reading can come too late.
    assert set(said["exact"]) == {True}
    assert max(said["off_by_mib"]) < 5
    # Those of the lost node ran again, on the other one.
    assert said["killed"]
    assert said["started_again"] == said["killed"]
    assert said["errors"] == 0
    assert max(said["off_by_mib_after"]) < 5


@pytest.mark.latest_only
def test_a_full_node_does_not_hold_up_the_other_one() -> None:
    said = said_of("gate")
    assert said["errors"] == 0
    assert said["trials"] == 6
    assert said["elsewhere"] > 0
    assert said["overlaps_on_own"] == 0
    assert said["pauses"]
    assert said["paused_elsewhere"] == []


@pytest.mark.latest_only
def test_values_are_kept_on_their_node_and_lost_with_it() -> None:
    found = said_of("keeper")
    assert found["are_here"] == [True] * 6
    assert found["is_there"]
    assert found["read"] == 2.0
    assert found["of_process"].startswith(f"the process that kept it on node {found['node']}")
    assert found["held"] == 3
    assert found["of_node"] == (
        f"node {found['node']}, where it was kept, is not in the cluster (any more)."
    )
    assert found["held_then"] == 2
    assert found["here"] == 1.0
    # Ray runs a task again whose result is lost, and the keeper on the driver's node owns it.
    assert found["made_again"] == "4.0 was read"


@pytest.mark.latest_only
def test_a_sweep_goes_on_when_one_of_three_nodes_is_lost(tmp_path: Path) -> None:
    said = said_of("sweep", str(tmp_path))
    assert said["results"] == said["measured"] == 40
    assert said["errors"] == said["ran_on_the_head"] == 0
    assert said["killed"]
    # Ray may not know yet that the node is dead.
    assert set(said["verdicts"]) <= {"node_died", "unknown"}
    assert said["verdicts"]
    # The head's processes, and the object store that is left, are measured until the end.
    assert min(said["looks_after"]) > 0
    assert said["capacity"] == 160
    assert said["held_on"] == [said["third"]]
    [line] = said["lines"]
    assert "the run continues" in line
    for nodes, (code, found) in ((3, said["before"]), (2, said["after"])):
        assert (code, found["nodes"], found["findings"]) == (0, nodes, [])


@pytest.mark.latest_only
def test_a_profile_comes_from_the_other_node_also_of_a_killed_trial() -> None:
    pytest.importorskip("memray", reason="profiles need memray")
    said = said_of("profiles")
    assert said["errors"] == 1
    assert said["nodes"] == 2
    assert said["states"] == {"true": "completed", "false": "error"}
    assert said["lines"] == [LINE, LINE]
    assert min(said["shares"]) >= 0.9
