"""What is kept of each trial's memory is what the trial saw itself."""

from __future__ import annotations

import logging
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from ray import tune

from ray_tune_memguard import MemGuard, TrialMemoryReporter, read_trial_memory
from ray_tune_memguard.system import process_tree
from tests.integration import sweeps
from tests.integration.memory_users import MIB, uses_memory

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the trials read /proc"),
    pytest.mark.alone,
]

SPACE = {
    "size": tune.grid_search([160, 40]),
    "kind": tune.grid_search(["level", "short", "child"]),
}


def assert_right(memory: Any, results: Any) -> None:
    """Within 5 MiB or 3 % of what each trial saw."""
    truth = {result.metrics["trial_id"]: result for result in results}
    assert sorted(memory["trial_id"]) == sorted(truth)
    for row in memory.itertuples():
        result = truth[row.trial_id]
        for kind in ("rss", "anonymous"):
            saw = result.metrics[kind]
            found = getattr(row, f"peak_{kind}_bytes")
            assert found == pytest.approx(saw, abs=max(5 * MIB, 0.03 * saw)), (row, saw, kind)


@pytest.mark.parametrize("reuse_actors", [False, True])
def test_peaks_are_what_the_trials_saw(
    storage: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    reuse_actors: bool,
) -> None:
    # Where many processes run, a child of a few seconds is not found within the budget.
    monkeypatch.setattr(process_tree._descendants._budget, "_share", 0.05)
    guard = MemGuard(every_seconds=0.5)
    with caplog.at_level(logging.INFO, logger="ray_tune_memguard"):
        grid = sweeps.fit(
            uses_memory,
            storage,
            [guard],
            samples=1,
            space=SPACE,
            tune_config={"reuse_actors": reuse_actors},
        )
    memory = read_trial_memory(grid.experiment_path)
    assert_right(memory, grid)
    assert set(memory["end"]) == {"completed"}
    assert set(memory["starts"]) == {1}
    assert memory["is_reused"].any() == reuse_actors
    is_child = memory["config/kind"] == "child"
    assert set(memory[is_child]["children"]) == {1}
    assert set(memory[~is_child]["is_exact"]) == {True}
    heaviest = memory.iloc[0]
    assert heaviest["config/size"] == 160
    lines = [record.getMessage() for record in caplog.records]
    [summary] = [line for line in lines if line.startswith("Memory of 6 trials")]
    assert f"by {heaviest['trial_id']} (" in summary
    assert [line for line in lines if "RSS" in line and "  trials " in line]
    # Nothing stays: no thread, no trial.
    assert not [thread for thread in threading.enumerate() if "memguard" in thread.name]
    assert guard.run.trial_memory().running() == []


@pytest.mark.latest_only
def test_a_trial_that_fails_and_one_that_dies(storage: Path) -> None:
    grid = sweeps.fit(
        sweeps.dies,
        storage,
        [TrialMemoryReporter(trial_memory_every_seconds=0.1)],
        samples=6,
        space=sweeps.SPACE,
    )
    memory = read_trial_memory(grid.experiment_path).set_index("trial_id")
    assert len(memory) == 6
    assert (memory["end"] == "error").sum() == grid.num_errors
    assert (memory["peak_rss_bytes"] > 50 * MIB).all()


@pytest.mark.latest_only
def test_it_can_be_switched_off(storage: Path) -> None:
    grid = sweeps.fit(
        sweeps.one_report, storage, [MemGuard(trial_memory_every_seconds=None)], samples=2
    )
    with pytest.raises(FileNotFoundError):
        read_trial_memory(grid.experiment_path)
