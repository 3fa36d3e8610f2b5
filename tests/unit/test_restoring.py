"""What of a killed run comes back with its files."""

from __future__ import annotations

from ray.tune.experiment import Trial

from ray_tune_memguard.adapter.restore.plan import RestoreEntry, RestorePlan


def test_files_of_what_had_finished_come_back_and_of_what_runs_again_do_not() -> None:
    order = [
        RestoreEntry(4.0, 0, "failed", Trial.ERROR, ["failed", ""]),
        RestoreEntry(3.0, 1, "ended", Trial.TERMINATED, ["ended", ""]),
        RestoreEntry(2.0, 2, "runs", Trial.RUNNING, ["runs", ""]),
        RestoreEntry(1.0, 3, "spilled", Trial.TERMINATED),
    ]
    for rerun, expected in ((set(), ["failed", "ended"]), ({Trial.ERROR}, ["ended"])):
        plan = RestorePlan(order, rerun=frozenset(rerun))
        assert plan.finished_in_memory() == expected
        assert str(plan) == (
            "1 finished trials stay on disk, 3 trials return to memory "
            "(1 ERROR, 1 RUNNING, 1 TERMINATED)"
        )
