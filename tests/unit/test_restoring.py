"""What a restore plan says of each trial."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pyarrow.fs import LocalFileSystem
from ray.tune import ResumeConfig
from ray.tune.experiment import Trial

from ray_tune_memguard.adapter.location import Experiment
from ray_tune_memguard.adapter.restore.plan import RestoreEntry, RestorePlan, plan
from ray_tune_memguard.adapter.restore.verify import VerifiedStore
from ray_tune_memguard.store.snapshot import Snapshot
from ray_tune_memguard.store.trial_store import TrialStore
from tests.unit.fakes import fake_row


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


def record(trial_id: str, status: str) -> list[str]:
    """What the experiment state file holds of a trial."""
    state = {"trial_id": trial_id, "status": status}
    return [json.dumps(state), json.dumps({"last_result_time": 0.0})]


@pytest.fixture
def killed(tmp_path: Path) -> VerifiedStore:
    """A store of which the snapshot is older than the last trials."""
    store = TrialStore.create(tmp_path, "trials")
    snapshot = [
        ("failed since", Trial.RUNNING),
        ("pending", Trial.PENDING),
        ("paused", Trial.PAUSED),
        ("failed before", Trial.ERROR),
    ]
    Snapshot(
        state=json.dumps({"trial_data": [record(*row) for row in snapshot], "runner_data": {}}),
        positions=[1, 4, 3, 5],
        creation_count=6,
        summaries={},
        files=None,
    ).save(store)
    rows = [
        ("ended before", Trial.TERMINATED, 0, {}),
        ("failed since", Trial.ERROR, 1, {}),
        ("created since", Trial.ERROR, 6, {"creation_index": 6}),
        ("paused", Trial.TERMINATED, 3, {"resumes": True}),
    ]
    with store.transaction():
        for trial_id, status, position, more in rows:
            text = json.dumps(record(trial_id, status)).encode()
            store.put(position, fake_row(trial_id, status, text, **more))
    return VerifiedStore(Experiment(LocalFileSystem(), "/x"), store, Snapshot.load(store))


@pytest.mark.parametrize("errored", ResumeConfig.ResumeType)
def test_each_trial_is_in_the_plan_once(
    killed: VerifiedStore, errored: ResumeConfig.ResumeType
) -> None:
    made = plan(killed, ResumeConfig(errored=errored))
    stays = {entry.trial_id for _, entry in made.staying()}
    returns = {json.loads(state)["trial_id"] for state, _ in made.returning()}
    failed = {"failed since", "created since"}
    if errored == ResumeConfig.ResumeType.SKIP:
        assert stays == {"ended before", *failed}
    else:
        assert stays == {"ended before"}
    assert len(made.entries) == len(stays) + len(returns)
    assert stays | returns == {"ended before", "pending", "paused", "failed before", *failed}
    # The searcher knows neither's end, whether or not they run again.
    assert {trial.trial_id for trial in made.unsnapshotted} == failed
