"""A restored experiment runs again what it runs again with Ray alone, and gives the same."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import tune
from ray.tune import Callback, ExperimentAnalysis, ResultGrid, Tuner
from ray.tune.experiment import Trial
from ray.tune.search import ConcurrencyLimiter, Searcher
from ray.tune.search.basic_variant import BasicVariantGenerator
from ray.tune.tune_config import ResumeConfig

from ray_tune_memguard import MemGuard, open_experiment
from ray_tune_memguard.lazy.trial_list import SpilledTrials
from tests.integration import sweeps

pytestmark = pytest.mark.usefixtures("spilled_in_their_step")

SAMPLES = 12
FAILING = (1, 4)


def train_and_log(log: Path) -> Callable[[dict[str, Any]], None]:
    """A trainable that writes down which trials run."""

    def train(config: dict[str, Any]) -> None:
        with log.open("a") as ran:
            ran.write(f"{config['number']}\n")
        number = config["number"]
        tune.report({"score": float(number), "info": {"loss": -1.0 * number}})
        if number in FAILING:
            raise RuntimeError(f"planned failure of {number}")

    return train


def ran(log: Path) -> list[int]:
    return sorted(int(line) for line in log.read_text().split()) if log.exists() else []


class At(Callback):
    """Does something once so many trials are over."""

    def __init__(self, finished: int, act: Callable[[], object]) -> None:
        self.left = finished
        self.act = act

    def __reduce__(self) -> Any:  # A restored sweep goes on to its end.
        return Callback, ()

    def over(self) -> None:
        self.left -= 1

    def on_trial_complete(self, **_: Any) -> None:
        self.over()

    def on_trial_error(self, **_: Any) -> None:
        self.over()

    def on_step_end(self, **_: Any) -> None:
        if self.left <= 0:
            self.left = 10**9
            self.act()


def begin(
    storage: Path,
    callbacks: list[Callback],
    search_alg: Any = None,
    train: Any = None,
    samples: int = SAMPLES,
) -> ResultGrid:
    grid = {"number": tune.grid_search(list(range(samples))), "layers": (8, 8)}
    return Tuner(
        train or train_and_log(storage / "first"),
        param_space=grid if search_alg is None else {"layers": (8, 8)},
        tune_config=tune.TuneConfig(
            num_samples=1 if search_alg is None else samples,
            metric="score",
            mode="max",
            search_alg=search_alg or BasicVariantGenerator(random_state=1),
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="sweep", storage_path=str(storage), verbose=0, callbacks=callbacks
        ),
    ).fit()


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(scope="module", params=["begun by Ray alone", "begun with MemGuard"])
def interrupted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep that was stopped after seven trials, two of which failed."""
    storage = tmp_path_factory.mktemp("interrupted")
    guards = [MemGuard()] if "MemGuard" in request.param else []
    begin(storage, [*guards, At(7, interrupt)])
    return storage / "sweep"


def copied(experiment: Path, to: Path) -> Path:
    """The experiment in another place."""
    # An upload may be under way, with files that come and go.
    shutil.copytree(experiment, to / "sweep", ignore=shutil.ignore_patterns(".*.part"))
    return to / "sweep"


@pytest.fixture(autouse=True)
def _own_staging() -> None:
    forget_staging()


def forget_staging() -> None:
    """Two restores of the same experiment would write to the same one."""
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    shutil.rmtree(session / "artifacts", ignore_errors=True)


def restore(path: Path, guarded: bool, log: Path, **how: Any) -> Tuner:
    forget_staging()
    tuner = Tuner.restore(str(path), trainable=train_and_log(log), **how)
    run_config = tuner._local_tuner._run_config
    run_config.callbacks = [MemGuard()] if guarded else []
    return tuner


def outcome(grid: ResultGrid) -> list[Any]:
    """All that may be compared of each trial, by its number."""
    return sorted(
        (
            trial.config["number"],
            trial.status,
            json.dumps(trial.config),
            json.dumps(result.config),
            json.dumps({**sweeps.stable(result.metrics), "trial_id": None}, sort_keys=True),
            sweeps.error_text(result.error),
            len(result.metrics_dataframe) if result.metrics_dataframe is not None else -1,
        )
        for result, trial in zip(grid, grid._experiment_analysis.trials, strict=True)
    )


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"resume_errored": True},
        {"restart_errored": True, "resume_unfinished": False},
    ],
    ids=lambda how: "+".join(how) or "default",
)
def test_what_runs_again_and_what_comes_out(
    interrupted: Path, tmp_path: Path, how: dict[str, bool]
) -> None:
    grids, logs = [], []
    for guarded in (False, True):
        place = tmp_path / str(guarded)
        path = copied(interrupted, place)
        assert Tuner.can_restore(str(path))
        logs.append(place / "ran")
        grids.append(restore(path, guarded, logs[-1], **how).fit())
    plain, guarded_grid = grids
    assert isinstance(guarded_grid._experiment_analysis.trials, SpilledTrials)
    assert ran(logs[1]) == ran(logs[0])
    assert outcome(guarded_grid) == outcome(plain)
    assert (guarded_grid.num_errors, guarded_grid.num_terminated) == (
        plain.num_errors,
        plain.num_terminated,
    )
    best = [grid.get_best_result("score", "min").metrics["score"] for grid in grids]
    assert best[0] == best[1]


def numbers_among(grid: ResultGrid, among: set[int]) -> list[int]:
    numbers = [trial.config["number"] for trial in grid._experiment_analysis.trials]
    return [number for number in numbers if number in among]


def test_finished_trials_come_in_rays_order(interrupted: Path, tmp_path: Path) -> None:
    orders = []
    for guarded in (False, True):
        path = copied(interrupted, tmp_path / str(guarded))
        before = ExperimentAnalysis(str(path))
        done = {t.config["number"] for t in before.trials if t.status == "TERMINATED"}
        grid = restore(path, guarded, tmp_path / "ran", resume_unfinished=False).fit()
        orders.append(numbers_among(grid, done))
        assert sorted(orders[-1]) == sorted(done)
    assert orders[1] == orders[0]
    assert len(orders[1]) >= 5


def test_restored_twice_over_and_then_without(
    interrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = copied(interrupted, tmp_path)
    grid = begin_again(path, tmp_path / "second", At(2, interrupt))
    assert len(ran(tmp_path / "second")) >= 2
    assert len(grid) == SAMPLES
    [store] = (path / ".memguard").glob("trials-*.sqlite")
    third = restore(path, True, tmp_path / "third").fit()
    assert len(third) == third.num_terminated + third.num_errors == SAMPLES
    assert not store.exists(), "what the newer store has, the older one need not keep"
    again = set(ran(tmp_path / "second")) & set(ran(tmp_path / "third"))
    assert len(again) <= 2  # Those that were running when it was interrupted.
    # And then Ray alone, on the same directory.
    last = restore(path, False, tmp_path / "last", resume_errored=True).fit()
    assert ran(tmp_path / "last") == list(FAILING)
    assert len(last) == SAMPLES


def begin_again(path: Path, log: Path, *callbacks: Callback) -> ResultGrid:
    tuner = restore(path, True, log)
    tuner._local_tuner._run_config.callbacks += callbacks
    return tuner.fit()


def test_results_without_running(interrupted: Path, tmp_path: Path) -> None:
    path = copied(interrupted, tmp_path)
    plain = ResultGrid(load_plainly(path))
    # Where there is a store it is used; where Ray ran alone, on request.
    for opened in (
        restore(path, True, tmp_path / "ran").get_results(),
        ResultGrid(ExperimentAnalysis(str(path))),
        open_experiment(path, metric="score", mode="max"),
        ResultGrid(ExperimentAnalysis(str(path))),
    ):
        assert outcome(opened) == outcome(plain)
        assert len(opened.errors) == len(plain.errors)
    assert isinstance(opened._experiment_analysis.trials, SpilledTrials)
    assert open_experiment(path, metric="score", mode="max").get_best_result().metrics[
        "score"
    ] == max(result.metrics.get("score", -1) for result in plain)


PLAIN_LOAD = ExperimentAnalysis._load_trials.__wrapped__


def load_plainly(path: Path) -> ExperimentAnalysis:
    analysis = ExperimentAnalysis.__new__(ExperimentAnalysis)
    analysis.__dict__.update(ExperimentAnalysis(str(path)).__dict__)
    analysis.trials = PLAIN_LOAD(analysis)
    analysis._trial_dataframes = analysis._fetch_trial_dataframes()
    analysis._configs = analysis.get_all_configs()
    return analysis


def test_a_run_of_ray_alone_makes_the_store_stale(interrupted: Path, tmp_path: Path) -> None:
    path = copied(interrupted, tmp_path)
    assert len(open_experiment(path)) == SAMPLES
    unfinished = [t for t in ExperimentAnalysis(str(path)).trials if not t.is_finished()]
    assert unfinished
    restore(path, False, tmp_path / "ran").fit()
    for grid in (ResultGrid(ExperimentAnalysis(str(path))), open_experiment(path)):
        assert grid.num_terminated == SAMPLES - len(FAILING)


def test_a_mode_that_is_none() -> None:
    with pytest.raises(ValueError, match="mode is 'up'; it must be 'min', 'max' or None"):
        open_experiment("/nowhere", mode="up")


def test_no_experiment(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="No experiment snapshot file"):
        open_experiment(tmp_path)


@pytest.mark.slow
@pytest.mark.latest_only
@pytest.mark.parametrize("guarded", [False, True], ids=["Ray alone", "MemGuard"])
@pytest.mark.parametrize("length", [0, 300])
def test_an_incomplete_newer_state_file_hides_nothing(
    interrupted: Path,
    tmp_path: Path,
    guarded: bool,
    length: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What a resume on a full disk leaves."""
    path = copied(interrupted, tmp_path)
    expected = outcome(ResultGrid(ExperimentAnalysis(str(path))))
    before = restore(copied(interrupted, tmp_path / "as it was"), guarded, tmp_path / "then").fit()
    [whole] = path.glob("experiment_state-*.json")
    newer = path / "experiment_state-2999-01-01_00-00-00.json"
    newer.write_bytes(whole.read_bytes()[:length])
    assert outcome(open_experiment(path)) == expected
    assert [line for line in caplog.messages if "is incomplete" in line] == [
        f"The experiment state file {newer} is incomplete; {whole.name} is used."
    ]
    grid = restore(path, guarded, tmp_path / "ran").fit()
    assert ran(tmp_path / "ran") == ran(tmp_path / "then")
    assert outcome(grid) == outcome(before)


def resumed_by_run(
    interrupted: Path, tmp_path: Path, guarded: bool, **how: Any
) -> tuple[list[int], Any]:
    """Who ran again and what came out, by ``tune.run``."""
    forget_staging()
    path = copied(interrupted, tmp_path / str(guarded))
    log = tmp_path / f"ran {guarded}"
    analysis = tune.run(
        train_and_log(log),
        name="sweep",
        storage_path=str(path.parent),
        metric="score",
        mode="max",
        verbose=0,
        raise_on_failed_trial=False,
        callbacks=[MemGuard()] if guarded else [],
        **how,
    )
    return ran(log), outcome(ResultGrid(analysis))


@pytest.mark.slow
def test_tune_run_resumes(interrupted: Path, tmp_path: Path) -> None:
    alone, guarded = (
        resumed_by_run(interrupted, tmp_path, guarded, resume="AUTO+ERRORED")
        for guarded in (False, True)
    )
    assert guarded == alone


@pytest.mark.slow
@pytest.mark.parametrize("finished", ["RESUME", "RESTART"])
def test_finished_trials_run_again_on_request(
    interrupted: Path, tmp_path: Path, finished: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As Ray makes them: other tests give trials numbers, and a trial that begins anew a new one.
    monkeypatch.setattr(Trial, "generate_id", classmethod(lambda cls: uuid.uuid4().hex[:8]))
    how = ResumeConfig(finished=ResumeConfig.ResumeType[finished])
    alone, guarded = (
        resumed_by_run(interrupted, tmp_path, guarded, resume_config=how, resume=True)
        for guarded in (False, True)
    )
    assert guarded == alone
    assert len(guarded[0]) >= SAMPLES - len(FAILING)


@pytest.mark.slow
def test_resumed_by_an_environment_variable(
    interrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``Tuner.restore`` has loaded everything by then; it does not keep it while the sweep runs."""
    path = copied(interrupted, tmp_path)
    monkeypatch.setattr(ExperimentAnalysis, "_load_trials", PLAIN_LOAD)
    tuner = restore(path, False, tmp_path / "ran")
    plain = tuner._local_tuner._experiment_analysis
    before = outcome(ResultGrid(plain))
    seen = []

    class Look(Callback):
        def setup(self, **_: Any) -> None:
            seen.append(type(plain.trials))
            seen.append(outcome(ResultGrid(plain)) == before)

    tuner._local_tuner._run_config.callbacks = [Look()]
    monkeypatch.setenv("RAY_TUNE_CALLBACKS", "ray_tune_memguard.MemGuard")
    grid = tuner.fit()
    assert seen == [SpilledTrials, True]
    assert isinstance(grid._experiment_analysis.trials, SpilledTrials)
    assert len(grid) == SAMPLES


def test_nothing_to_resume_is_said_by_ray(tmp_path: Path) -> None:
    analysis = tune.run(
        train_and_log(tmp_path / "ran"),
        config={"number": 7},
        name="sweep",
        storage_path=str(tmp_path),
        resume="AUTO",
        verbose=0,
        callbacks=[MemGuard()],
    )
    assert len(analysis.trials) == 1


# A kill at a given moment, by a copy of the files as they are then.


@pytest.fixture(autouse=True)
def _log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.INFO, logger="ray_tune_memguard"):
        yield


class Counted(Searcher):
    """Deals numbers in order, and remembers what it was told."""

    def __init__(self) -> None:
        super().__init__(metric="score", mode="max")
        self.dealt = 0
        self.told: dict[str, Any] = {}

    def suggest(self, trial_id: str) -> dict[str, Any]:
        self.dealt += 1
        return {"number": 10 * (self.dealt - 1)}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        self.told[trial_id] = result and result["score"]

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).write_text(json.dumps([self.dealt, self.told]))

    def restore(self, checkpoint_path: str) -> None:
        self.dealt, self.told = json.loads(Path(checkpoint_path).read_text())


SEARCHERS: dict[str, Callable[[], Any]] = {
    "variants": lambda: None,
    "limited variants": lambda: BasicVariantGenerator(max_concurrent=2, random_state=1),
    "own": Counted,
    "limited": lambda: ConcurrencyLimiter(Counted(), max_concurrent=2),
}


@pytest.mark.slow
@pytest.mark.parametrize("searcher", SEARCHERS)
def test_a_kill_long_after_the_last_checkpoint(
    tmp_path: Path, searcher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNE_GLOBAL_CHECKPOINT_S", "1000")
    killed = tmp_path / "killed"

    def kill() -> None:
        copied(tmp_path / "sweep", killed)

    made = SEARCHERS[searcher]()
    if searcher == "limited variants":
        grid = {"number": tune.grid_search(list(range(24)))}
        Tuner(
            train_and_log(tmp_path / "first"),
            param_space=grid,
            tune_config=tune.TuneConfig(search_alg=made, reuse_actors=True),
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=str(tmp_path),
                verbose=0,
                callbacks=[MemGuard(), At(9, kill)],
            ),
        ).fit()
    else:
        begin(tmp_path, [MemGuard(), At(9, kill)], made, samples=24)
    path = killed / "sweep"
    done = {
        trial.config["number"]
        for trial in ExperimentAnalysis(str(path)).trials
        if trial.is_finished()
    }
    assert len(done) >= 9
    grid = restore(path, True, tmp_path / "ran").fit()
    again = ran(tmp_path / "ran")
    assert not set(again) & done, "what had finished ran again"
    numbers = [result.config["number"] for result in grid]
    assert len(numbers) == len(set(numbers)) == 24
    assert sorted(numbers) == sorted(
        range(0, 240, 10) if made and "variants" not in searcher else range(24)
    )
    assert all(result.metrics["score"] == result.config["number"] for result in grid)
    assert len(again) == len(set(again)) == 24 - len(done)


def test_the_searcher_learns_what_it_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNE_GLOBAL_CHECKPOINT_S", "1000")
    killed = tmp_path / "killed"
    begin(
        tmp_path,
        [MemGuard(), At(9, lambda: copied(tmp_path / "sweep", killed))],
        Counted(),
        samples=16,
    )
    tuner = restore(killed / "sweep", True, tmp_path / "ran")
    searcher = tuner._local_tuner._tune_config.search_alg
    assert searcher.told == {}
    grid = tuner.fit()
    assert searcher.told == {
        result.metrics["trial_id"]: None if result.error else result.metrics["score"]
        for result in grid
    }


def flip(store: Path) -> None:
    """Change a byte in each part of the file."""
    content = bytearray(store.read_bytes())
    for place in range(len(content) // 2, len(content), len(content) // 16):
        content[place] ^= 0x55
    store.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a flipped byte": flip,
    "truncated": lambda store: os.truncate(store, store.stat().st_size * 2 // 3),
    "emptied": lambda store: os.truncate(store, 0),
    "overwritten": lambda store: store.write_bytes(b"nonsense" * 1000),
    "deleted": lambda store: store.unlink(),
}


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_store(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    begin(tmp_path, [MemGuard(), At(7, interrupt)])
    path = tmp_path / "sweep"
    expected = outcome(ResultGrid(ExperimentAnalysis(str(path))))
    [store] = (path / ".memguard").glob("trials-*.sqlite")
    DAMAGES[damage](store)
    assert outcome(ResultGrid(ExperimentAnalysis(str(path)))) == expected
    caplog.clear()
    grid = restore(path, True, tmp_path / "ran").fit()
    assert len(grid) == grid.num_terminated + grid.num_errors == SAMPLES
    done = {number for number, status, *_ in expected if status in ("TERMINATED", "ERROR")}
    assert not set(ran(tmp_path / "ran")) & done
    warnings = [r.getMessage() for r in caplog.records if " is damaged (" in r.getMessage()]
    assert len(warnings) == (0 if damage == "deleted" else 1), warnings
    if warnings:
        assert f"has {len(done)} finished trials" in warnings[0]
        assert list((path / ".memguard").glob("*.damaged"))


def test_a_trial_whose_process_has_died_stays_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray alone writes no more of it than before its death: that it runs."""
    monkeypatch.setenv("TUNE_GLOBAL_CHECKPOINT_S", "0")

    def train(config: dict[str, Any]) -> None:
        tune.report({"score": float(config["number"])})
        if config["number"] == 1:
            time.sleep(1)  # Until a checkpoint has it.
            os._exit(1)

    grid = begin(tmp_path, [MemGuard()], train=train, samples=3)
    assert grid.num_errors == 1
    path = tmp_path / "sweep"
    [state_file] = path.glob("experiment_state-*.json")
    records = json.loads(state_file.read_text())["trial_data"]
    statuses = sorted(json.loads(state)["status"] for state, _ in records)
    assert statuses == ["ERROR", "TERMINATED", "TERMINATED"]
    assert open_experiment(path).num_errors == 1
    again = restore(path, True, tmp_path / "again").fit()
    assert again.num_errors == 1
    assert ran(tmp_path / "again") == []
    restore(path, True, tmp_path / "restarted", restart_errored=True).fit()
    assert ran(tmp_path / "restarted") == [1]
