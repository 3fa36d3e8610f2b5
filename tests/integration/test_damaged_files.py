"""A restore goes on whichever of the files that it reads is missing or damaged."""

from __future__ import annotations

import functools
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray import tune
from ray.tune import Tuner

from benchmarks.problem import METRIC
from benchmarks.simulated import install_simulated_actors
from ray_tune_memguard import MemGuard, open_experiment
from ray_tune_memguard.store.trial_store import TrialStore
from tests.integration import resumed_sweeps
from tests.integration.test_restore import At, Counted, copied, forget_staging, interrupt

pytestmark = [pytest.mark.latest_only, pytest.mark.usefixtures("spilled_in_their_step")]

SAMPLES = 8
SPACE = {"number": tune.grid_search(list(range(SAMPLES)))}

DAMAGES: dict[str, Callable[[Path], object]] = {
    "missing": lambda file: file.unlink(),
    "halved": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "garbled": lambda file: file.write_bytes(b"\x00garbled" * 64 + file.read_bytes()[512:]),
}
#: By pattern: the searcher of the sweep, and whether its driver was killed.
FILES = {
    "tuner.pkl": ("variants", False),
    "experiment_state-*.json": ("variants", False),
    "basic-variant-state-*.json": ("variants", False),
    "search_gen_state-*.json": ("own", False),
    "searcher-state-*.pkl": ("own", False),
    "callback-states-*.pkl": ("own", False),
    ".memguard/trials-*.sqlite": ("own", False),
    ".memguard/trials-*.sqlite-wal": ("variants", True),
}


class Dealer(Counted):
    """Deals each number once."""

    def suggest(self, trial_id: str) -> Any:
        self.dealt += 1
        return {"number": self.dealt - 1}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        self.told[trial_id] = result and result[METRIC]


class Remembers(tune.Callback):
    """Has a state, which Ray saves."""

    def get_state(self) -> dict[str, Any]:
        return {"some": "state"}

    def set_state(self, state: dict[str, Any]) -> None:
        assert state == self.get_state()


def train(config: dict[str, Any]) -> None:
    raise AssertionError("a simulated actor runs in its place")


@pytest.fixture(autouse=True)
def _score(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.simulated.score", lambda config, step: float(config["number"]))
    monkeypatch.setattr(resumed_sweeps.tune_controller, "datetime", resumed_sweeps.Clock)


Begun = Callable[[str, bool, bool], Path]


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Begun:
    """Experiments that ended after half of their trials; each kind is run once."""
    return functools.cache(
        lambda searcher, is_killed, guarded: begin(
            tmp_path_factory.mktemp("begun"), searcher, is_killed, guarded
        )
    )


def begin(folder: Path, searcher: str, is_killed: bool, guarded: bool) -> Path:
    copy = At(SAMPLES // 2, lambda: copied(folder / "sweep", folder / "killed"))
    callbacks = [copy if is_killed else At(SAMPLES // 2, interrupt), Remembers()]
    if guarded:
        callbacks.insert(0, MemGuard())
    with install_simulated_actors():
        tuner(folder, searcher, callbacks).fit()
    return folder / "killed" / "sweep" if is_killed else folder / "sweep"


def killed_between_checkpoints(
    folder: Path, searcher: str, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Its store knows trials that finished after the last experiment checkpoint."""
    monkeypatch.setenv("TUNE_GLOBAL_CHECKPOINT_S", "1000")
    return begin(folder, searcher, is_killed=True, guarded=True)


def trials_in(path: Path) -> tuple[list[str], set[int]]:
    """The ids of all trials, and the numbers of those that have finished: half of them or more."""
    trials = open_experiment(str(path))._experiment_analysis.trials
    finished = {trial.config["number"] for trial in trials if trial.is_finished()}
    assert len(finished) >= SAMPLES // 2
    return [trial.trial_id for trial in trials], finished


def tuner(folder: Path, searcher: str, callbacks: list[tune.Callback]) -> Tuner:
    own = searcher == "own"
    return Tuner(
        train,
        param_space={} if own else SPACE,
        tune_config=tune.TuneConfig(
            search_alg=Dealer() if own else None, num_samples=SAMPLES if own else 1
        ),
        run_config=tune.RunConfig(
            name="sweep", storage_path=str(folder), verbose=0, callbacks=callbacks
        ),
    )


def resume(path: Path, searcher: str) -> tuple[list[int], list[int]] | str:
    """The numbers of all trials, and of those that ran; or what was raised."""
    forget_staging()
    ran: list[int] = []

    class Runs(tune.Callback):
        def on_trial_start(self, trial: Any, **_: Any) -> None:
            ran.append(trial.config["number"])

    space = {} if searcher == "own" else SPACE
    try:
        with install_simulated_actors():
            tuner = Tuner.restore(str(path), train, param_space=space)
            tuner._local_tuner._run_config.callbacks.append(Runs())
            grid = tuner.fit()
    except Exception as error:
        return repr(error)
    return sorted(result.config.get("number", -1) for result in grid), sorted(ran)


def no_room(*_: Any) -> None:
    raise sqlite3.OperationalError("database or disk is full")


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("pattern", FILES)
def test_a_restore_with_a_damaged_file(
    begun: Begun, tmp_path: Path, pattern: str, damage: str
) -> None:
    searcher, is_killed = FILES[pattern]
    outcomes = []
    for guarded in (False, True):
        path = copied(begun(searcher, is_killed, guarded), tmp_path / str(guarded))
        files = list(path.glob(pattern))
        assert files or not guarded, "there is no such file"
        for file in files:
            DAMAGES[damage](file)
        outcomes.append(resume(path, searcher))
    plain, (numbers, ran) = outcomes
    assert numbers == list(range(SAMPLES)), f"Ray alone: {plain}"
    if not is_killed:  # What finished last is only in the log.
        assert ran == list(range(SAMPLES // 2, SAMPLES)), f"Ray alone: {plain}"


def test_a_damaged_row_costs_its_own_trial_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others finished after the searcher's state was saved, and are not suggested again."""
    path = killed_between_checkpoints(tmp_path, "own", monkeypatch)
    [store] = path.glob(".memguard/trials-*.sqlite")
    connection = sqlite3.connect(store, isolation_level=None)
    connection.execute("UPDATE trial SET settled_at = 0 WHERE seq = 2")
    assert connection.execute("SELECT count(*) FROM trial").fetchone()[0] >= SAMPLES // 2
    connection.close()
    numbers, ran = resume(path, "own")
    assert numbers == list(range(SAMPLES))
    assert {0, 1, 3}.isdisjoint(ran)
    assert 2 in ran


def test_a_damaged_row_costs_no_other_trial_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were not uploaded: the killed driver's staging directory alone has them."""
    path = killed_between_checkpoints(tmp_path, "own", monkeypatch)
    [store] = path.glob(".memguard/trials-*.sqlite")
    connection = sqlite3.connect(store, isolation_level=None)
    connection.execute("UPDATE trial SET settled_at = 0 WHERE seq = 2")
    [(staging,)] = connection.execute("SELECT value FROM meta WHERE key = 'staging'").fetchall()
    elsewhere = tmp_path / "staging"
    shutil.copytree(staging, elsewhere)
    connection.execute("UPDATE meta SET value = ? WHERE key = 'staging'", (str(elsewhere),))
    connection.close()
    resume(path, "own")
    frames = [result.metrics_dataframe for result in open_experiment(str(path))]
    assert [len(frame) for frame in frames] == [1] * SAMPLES


@pytest.mark.parametrize("searcher", ["own", "variants"])
def test_a_damaged_store_of_a_run_without_a_state_file(
    tmp_path: Path, searcher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two kills: the second run was resumed from the first, and had not written a checkpoint."""
    path = killed_between_checkpoints(tmp_path, searcher, monkeypatch)
    trials, finished = trials_in(path)
    (path / ".memguard" / "trials-2999-01-01_00-00-00.sqlite").write_bytes(b"garbled" * 4096)
    opened = open_experiment(str(path))._experiment_analysis.trials
    assert [trial.trial_id for trial in opened] == trials
    numbers, ran = resume(path, searcher)
    assert numbers == list(range(SAMPLES))
    assert finished.isdisjoint(ran)


def test_a_history_that_cannot_be_read_costs_its_own_row_only(
    begun: Begun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    frames = []
    for guarded in (False, True):
        path = copied(begun("variants", False, guarded), tmp_path / str(guarded))
        first = min(path.glob("*/result.json"))
        first.unlink()
        first.mkdir()
        frames.append(open_experiment(str(path)).get_dataframe())
    plain, read = frames
    assert len(read) == len(plain) > 0
    assert not [record for record in caplog.records if "unexpected error" in record.getMessage()]


@pytest.mark.parametrize("searcher", ["own", "variants"])
def test_no_room_for_a_new_store_costs_no_trial(
    tmp_path: Path, searcher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = killed_between_checkpoints(tmp_path, searcher, monkeypatch)
    _, finished = trials_in(path)
    with monkeypatch.context() as patch:
        patch.setattr(TrialStore, "create", no_room)
        numbers, ran = resume(path, searcher)
    assert numbers == list(range(SAMPLES))
    assert finished.isdisjoint(ran)
    # The run without a store is the newest one, and has all trials as well.
    assert resume(path, searcher) == (list(range(SAMPLES)), [])


def test_without_a_copy_of_tuner_pkl_it_says_how_to_go_on(
    begun: Begun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = copied(begun("variants", False, False), tmp_path)
    (path / "tuner.pkl").write_bytes(b"")
    assert "EOFError" in resume(path, "variants")
    [said] = [record.getMessage() for record in caplog.records if "tuner.pkl" in record.message]
    assert "create the Tuner again with the same arguments" in said
    tuner(tmp_path, "variants", [MemGuard()])
    assert resume(path, "variants")[0] == list(range(SAMPLES))


def test_no_experiment_is_said_by_ray_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert "FileNotFoundError" in resume(tmp_path / "nothing", "variants")
    assert not [record for record in caplog.records if record.name == "ray_tune_memguard"]
