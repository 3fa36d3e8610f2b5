"""An Optuna study in a database is told each trial once, also after a crash."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from ray import tune
from ray.tune.search import ConcurrencyLimiter

from benchmarks.problem import METRIC, MODE, make_trainable, search_space
from benchmarks.simulated import install_simulated_actors
from ray_tune_memguard import MemGuard
from tests.integration.test_restore import At, copied

pytestmark = [pytest.mark.latest_only, pytest.mark.usefixtures("spilled_in_their_step")]

TRIALS = 30


def searcher(database: Path, limit: int) -> Any:
    optuna = pytest.importorskip("optuna", reason="optuna is not installed")
    from ray.tune.search.optuna import OptunaSearch

    search = OptunaSearch(
        metric=METRIC,
        mode=MODE,
        sampler=optuna.samplers.TPESampler(seed=7),
        storage=optuna.storages.RDBStorage(f"sqlite:///{database}"),
    )
    return ConcurrencyLimiter(search, limit) if limit else search


def run(path: Path, search: Any, callbacks: list[Any], **how: Any) -> Any:
    with install_simulated_actors():
        return tune.run(
            make_trainable(1, 0),
            config=search_space(),
            num_samples=TRIALS,
            search_alg=search,
            name=path.name,
            storage_path=str(path.parent),
            callbacks=callbacks,
            verbose=0,
            **how,
        )


@pytest.mark.slow
@pytest.mark.parametrize("limit", [0, 3])
def test_a_study_in_a_database_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setenv("TUNE_GLOBAL_CHECKPOINT_S", "1000")
    optuna = pytest.importorskip("optuna", reason="optuna is not installed")
    database, killed = tmp_path / "study.db", tmp_path / "killed"

    def kill() -> None:
        copied(tmp_path / "sweep", killed)
        shutil.copy(database, killed / "study.db")

    run(tmp_path / "sweep", searcher(database, limit), [MemGuard(), At(12, kill)])
    # What has happened since the kill has not happened.
    shutil.copy(killed / "study.db", database)

    analysis = run(killed / "sweep", searcher(database, limit), [MemGuard()], resume=True)
    assert len(analysis.trials) == TRIALS
    study = optuna.load_study(study_name="optuna", storage=f"sqlite:///{database}")
    states = Counter(trial.state.name for trial in study.get_trials())
    assert states["COMPLETE"] == TRIALS
    assert states["FAIL"] == 0
    told = {trial.value for trial in study.get_trials() if trial.state.is_finished()}
    assert told == {trial.last_result[METRIC] for trial in analysis.trials}
