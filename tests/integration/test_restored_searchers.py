"""A restored searcher has the state, and is told the results, that it has with Ray alone."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from ray import cloudpickle, tune
from ray.tune import ExperimentAnalysis, Tuner
from ray.tune.experiment import Trial
from ray.tune.experiment.config_parser import _create_trial_from_spec, _make_parser
from ray.tune.search import Repeater, SearchAlgorithm

from ray_tune_memguard import MemGuard
from tests.integration.test_restore import At, Counted, begin, copied, interrupt, ran, restore

pytestmark = pytest.mark.usefixtures("spilled_in_their_step")

TOTAL = 14


class Steps(SearchAlgorithm):
    """A user's own search algorithm; its state file has the same name in every run."""

    def __init__(self) -> None:
        self._finished = False
        self.made = 0
        self.told: list[str] = []
        self.spec: dict[str, Any] = {}

    def add_configurations(self, experiments: Any) -> None:
        [experiment] = experiments if isinstance(experiments, list) else [experiments]
        self.spec = experiment.spec

    def next_trial(self) -> Trial | None:
        self._finished = self.made >= TOTAL
        if self._finished or self.made - len(self.told) > 3:
            return None
        number = 10 * self.made
        self.made += 1
        return _create_trial_from_spec(
            {**self.spec, "config": {"number": number, "layers": (8, 8)}},
            _make_parser(),
            evaluated_params={"number": number},
            experiment_tag=str(number),
            trial_id=f"{Trial.generate_id()}{number}",
        )

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        self.told.append(trial_id)

    def has_checkpoint(self, dirpath: str) -> bool:
        return Path(dirpath, "steps.pkl").exists()

    def save_to_dir(self, dirpath: str, **_: Any) -> None:
        state = cloudpickle.dumps([self.made, self.told, self.spec])
        Path(dirpath, "steps.pkl").write_bytes(state)

    def restore_from_dir(self, dirpath: str) -> None:
        state = Path(dirpath, "steps.pkl").read_bytes()
        self.made, self.told, self.spec = cloudpickle.loads(state)


@pytest.mark.slow
@pytest.mark.parametrize("end", ["interrupted", "killed"])
def test_own_search_algorithm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    path = tmp_path / "sweep"
    if end == "interrupted":
        begin(tmp_path, [MemGuard(), At(7, interrupt)], Steps())
    else:
        monkeypatch.setenv("TUNE_GLOBAL_CHECKPOINT_S", "1000")
        killed = tmp_path / "killed"
        begin(tmp_path, [MemGuard(), At(7, lambda: copied(path, killed))], Steps())
        path = killed / "sweep"
    trials = ExperimentAnalysis(str(path)).trials
    done = {trial.config["number"] for trial in trials if trial.is_finished()}
    assert len(done) >= 7
    grid = restore(path, True, tmp_path / "ran").fit()
    assert sorted(result.config["number"] for result in grid) == list(range(0, 10 * TOTAL, 10))
    assert not set(ran(tmp_path / "ran")) & done


class Telling(Counted):
    """Remembers how often it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        self.calls.append(trial_id)

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).write_text(json.dumps([self.dealt, self.calls]))

    def restore(self, checkpoint_path: str) -> None:
        self.dealt, self.calls = json.loads(Path(checkpoint_path).read_text())


def test_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a trial too that finished before the last checkpoint and was spilled after it."""
    monkeypatch.setenv("TUNE_GLOBAL_CHECKPOINT_S", "0")
    killed = tmp_path / "killed"
    kill = At(9, lambda: copied(tmp_path / "sweep", killed))
    begin(tmp_path, [MemGuard(), kill], Telling(), samples=TOTAL)
    tuner = restore(killed / "sweep", True, tmp_path / "ran")
    searcher = tuner._local_tuner._tune_config.search_alg
    tuner.fit()
    assert set(Counter(searcher.calls).values()) == {1}
    assert len(searcher.calls) == TOTAL


def test_a_repeater(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNE_GLOBAL_CHECKPOINT_S", "1000")
    killed = tmp_path / "killed"
    kill = At(5, lambda: copied(tmp_path / "sweep", killed))
    begin(tmp_path, [MemGuard(), kill], Repeater(Counted(), repeat=2), samples=TOTAL)
    path = killed / "sweep"
    done = sum(trial.is_finished() for trial in ExperimentAnalysis(str(path)).trials)
    assert done >= 5
    tuner = restore(path, True, tmp_path / "ran")
    searcher = tuner._local_tuner._tune_config.search_alg
    grid = tuner.fit()
    numbers = Counter(result.config["number"] for result in grid)
    assert numbers == {10 * group: 2 for group in range(TOTAL // 2)}
    assert len(ran(tmp_path / "ran")) == TOTAL - done
    # The searcher is told the mean of each group, once.
    assert sorted(searcher.searcher.told.values()) == sorted(map(float, numbers))


def fails_first(log: Path) -> Any:
    def train(config: dict[str, Any]) -> None:
        with log.open("a") as file:
            file.write(f"{config['number']}\n")
        if ran(log).count(config["number"]) == 1:
            raise RuntimeError("planned failure of the first try")
        tune.report({"score": float(config["number"])})

    return train


@pytest.mark.slow
def test_retried_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNE_GLOBAL_CHECKPOINT_S", "1000")
    killed, log = tmp_path / "killed", tmp_path / "tries"
    before: list[int] = []

    def kill() -> None:
        copied(tmp_path / "sweep", killed)
        before.extend(ran(log))

    run_config = tune.RunConfig(
        name="sweep",
        storage_path=str(tmp_path),
        verbose=0,
        callbacks=[MemGuard(), At(5, kill)],
        failure_config=tune.FailureConfig(max_failures=2),
    )
    numbers = list(range(TOTAL))
    Tuner(
        fails_first(log),
        param_space={"number": tune.grid_search(numbers)},
        tune_config=tune.TuneConfig(metric="score", mode="max", reuse_actors=True),
        run_config=run_config,
    ).fit()
    path = killed / "sweep"
    done = [t.config["number"] for t in ExperimentAnalysis(str(path)).trials if t.is_finished()]
    assert len(done) >= 5
    log.write_text("".join(f"{number}\n" for number in before))
    tuner = Tuner.restore(str(path), trainable=fails_first(log))
    tuner._local_tuner._run_config.callbacks = [MemGuard()]
    grid = tuner.fit()
    assert grid.num_terminated == len(grid) == TOTAL
    tries = Counter(ran(log))
    assert all(tries[number] == 2 for number in done)
    assert sorted(tries) == numbers
    assert sorted(result.metrics["score"] for result in grid) == numbers
