"""What a restore plan says of each trial."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pyarrow.fs import LocalFileSystem
from ray.tune import ResumeConfig
from ray.tune.experiment import Trial

from ray_tune_memguard.adapter.contract import Capabilities
from ray_tune_memguard.adapter.installation import new_summary_index
from ray_tune_memguard.adapter.location import Experiment
from ray_tune_memguard.adapter.restore.begin import begin
from ray_tune_memguard.adapter.restore.new_run import NewRun
from ray_tune_memguard.adapter.restore.plan import RestoreEntry, RestorePlan, plan
from ray_tune_memguard.adapter.restore.staged_files import fetch_saved_states
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


def test_saved_states_are_staged_without_experiment_state_files(tmp_path: Path) -> None:
    path, staging = tmp_path / "sweep", tmp_path / "staging"
    own = path / "my.pkl"
    own.mkdir(parents=True)
    (own / "part").write_text("mine")
    for name in ("searcher-state-1.pkl", "callback.json", "experiment_state-1.json", "log.txt"):
        (path / name).write_text(name)
    fetch_saved_states(Experiment(LocalFileSystem(), str(path)), staging)
    assert {file.name for file in staging.iterdir()} == {
        "searcher-state-1.pkl",
        "callback.json",
        "my.pkl",
    }
    assert (staging / "callback.json").read_text() == "callback.json"
    assert (staging / "my.pkl" / "part").read_text() == "mine"


def record(trial_id: str, status: str) -> list[str]:
    """What the experiment state file holds of a trial."""
    state = {"trial_id": trial_id, "status": status}
    metadata = {"last_result_time": 0.0, "last_result": {}, "metric_analysis": {}}
    return [json.dumps(state), json.dumps(metadata)]


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
        summaries=new_summary_index().dump(),
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
    store.finalize()
    store.close()
    left = TrialStore.open(store.path)
    return VerifiedStore(Experiment(LocalFileSystem(), "/x"), left, Snapshot.load(left))


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


def run_in(tmp_path: Path, spill_dir: Path | None = None) -> NewRun:
    """The run that continues the experiment ``sweep``."""
    storage: Any = SimpleNamespace(
        storage_filesystem=LocalFileSystem(),
        storage_fs_path=str(tmp_path),
        experiment_dir_name="sweep",
        experiment_fs_path=str(tmp_path / "sweep"),
        experiment_driver_staging_path=str(tmp_path / "staging"),
        syncer=None,
    )
    controller: Any = SimpleNamespace(
        _storage=storage,
        _session_str="2026-11-26_10-00-00",
        experiment_state_path="/x/experiment_state-2026-11-26_10-00-00.json",
        _placeholder_resolvers=None,
    )
    return NewRun.of(controller, ResumeConfig(), spill_dir, Capabilities(frozenset()))


def test_a_run_begins_with_the_rows_that_stay(killed: VerifiedStore, tmp_path: Path) -> None:
    run = run_in(tmp_path)
    (tmp_path / "sweep").mkdir()
    made = plan(killed, run.resume_config)
    begun = begin(made, killed, run)
    rows = [row.trial_id for row in begun.files.store.rows(0, 9)]
    assert rows == [entry.trial_id for _, entry in made.staying()]
    assert begun.has_saved_states
    assert begun.replaces is None, "it is another experiment's"
    begun.files.state_file.publish("]}")
    state = json.loads(begun.files.state_file.path.read_text())
    assert [json.loads(record[0])["trial_id"] for record in state["trial_data"]] == rows
    begun.files.discard()
    assert not list((tmp_path / "sweep" / ".memguard").iterdir())


def test_a_run_that_cannot_begin_leaves_no_file(killed: VerifiedStore, tmp_path: Path) -> None:
    elsewhere = tmp_path / "stores"
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "callback.json").write_text("{}")
    (tmp_path / "staging").write_text("a file where the staging directory should be")
    run = run_in(tmp_path, elsewhere)
    with pytest.raises(OSError, match="staging"):
        begin(plan(killed, run.resume_config), killed, run)
    assert not list(elsewhere.iterdir())
