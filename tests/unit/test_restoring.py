"""What of a killed run comes back with its files."""

from __future__ import annotations

from typing import Any

from ray.tune.experiment import Trial

from ray_tune_memguard.adapter.restore.resume import RestoreEntry, RestorePlan


def test_files_of_what_had_finished_come_back_and_of_what_runs_again_do_not() -> None:
    nothing: Any = None
    order = [
        RestoreEntry(4.0, 0, "failed", Trial.ERROR, ["failed", ""]),
        RestoreEntry(3.0, 1, "ended", Trial.TERMINATED, ["ended", ""]),
        RestoreEntry(2.0, 2, "runs", Trial.RUNNING, ["runs", ""]),
        RestoreEntry(1.0, 3, "spilled", Trial.TERMINATED),
    ]
    for rerun, expected in ((set(), ["failed", "ended"]), ({Trial.ERROR}, ["ended"])):
        past = RestorePlan(nothing, nothing, {}, order, [], frozenset(rerun))
        assert past.finished_unspilled() == expected
