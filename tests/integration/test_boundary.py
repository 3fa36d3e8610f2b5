"""An unexpected error in any place where Ray calls us, and the run is as Ray alone makes it."""

from __future__ import annotations

import importlib
import logging
import pkgutil
from collections import Counter
from collections.abc import Callable, Iterator
from json import dumps, loads
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import tune
from ray.train._internal.storage import _FilesystemSyncer
from ray.tune.analysis import ExperimentAnalysis
from ray.tune.execution import tune_controller
from ray.tune.search.basic_variant import BasicVariantGenerator

import ray_tune_memguard
from benchmarks.problem import METRIC, MODE, make_trainable, search_space
from benchmarks.simulated import SimulatedActorManager, install_simulated_actors
from ray_tune_memguard import MemGuard, TrialPruner
from ray_tune_memguard.adapter import contract
from ray_tune_memguard.adapter.boundary import ENTRIES, Entry
from ray_tune_memguard.adapter.installation import Installation, installation_of
from ray_tune_memguard.adapter.paths import calling_controller
from ray_tune_memguard.adapter.run import spiller
from ray_tune_memguard.adapter.serialization.trial_json import StateWriter
from ray_tune_memguard.lazy.trial_list import SpilledTrials
from ray_tune_memguard.private_names import PrivateName
from ray_tune_memguard.store.trial_store import TrialStore
from tests.integration import sweeps
from tests.integration.equality import normal

pytestmark = [pytest.mark.latest_only, pytest.mark.usefixtures("spilled_in_their_step")]

TRIALS = 5
#: Called where this sweep does not go: failed trials, the old console output, a notebook, exits.
ELSEWHERE = {
    "CountingCallback.on_trial_error",
    "JupyterNotebookReporter._progress_html",
    "MemGuard.on_trial_error",
    # Of leak tests, which fail then.
    "GrowthMeter.on_experiment_end",
    "GrowthMeter.on_step_begin",
    "GrowthMeter.on_step_end",
    "GrowthMeter.on_trial_complete",
    "GrowthMeter.on_trial_error",
    "GrowthMeter.on_trial_result",
    "GrowthMeter.on_trial_start",
    # Not part of MemGuard, and simulated actors have no process.
    "MemrayProfiler.on_experiment_end",
    "MemrayProfiler.on_step_end",
    "MemrayProfiler.on_trial_complete",
    "MemrayProfiler.on_trial_error",
    "MemrayProfiler.on_trial_start",
    "MemrayProfiler.remove",
    "MemrayProfiler.save",
    "TuneController._schedule_trial_stop",
    # Called by Prometheus.
    "MetricsExporter.scrape",
    # Simulated actors have no process.
    "TrialMemoryReporter.look",
    "TrialMemoryReporter.on_trial_error",
    # Called by Ray for trials that are not spilled.
    "ExperimentAnalysis._fetch_trial_dataframe",
    # MemGuard commits results itself.
    "ResultHistories.on_step_end",
    "RayActorManager._actor_start_failed",
    "RayActorManager._actor_task_failed",
    "TuneController._process_trial_failure",
    "TuneController.get_trial",
    "TuneReporterBase._progress_str",
    "_Registry.register",
    "_Registry.unregister",
    # Called by Ray only where it resumes by itself.
    "ray.tune.execution.tune_controller._find_newest_experiment_checkpoint",
    "ray.tune.progress_reporter._get_trials_by_state",
    "tensorboardX at exit",
}

#: Called with results in a store only.
OF_HISTORIES = {
    "HistoryLogger.commit",
    "HistoryLogger.log_trial_end",
    "HistoryLogger.log_trial_result",
    "HistoryLogger.log_trial_start",
    "ResultHistories.on_experiment_end",
}

for _module in pkgutil.walk_packages(ray_tune_memguard.__path__, "ray_tune_memguard."):
    importlib.import_module(_module.name)


class UnexpectedError(Exception):
    """A bug of ours."""


@pytest.fixture(autouse=True)
def _simulated() -> Iterator[None]:
    with install_simulated_actors():
        yield


def outcome(storage: Path, guards: list[tune.Callback]) -> dict[str, Any]:
    """What a user sees of a sweep, of its directory, and of the sweep resumed."""
    grid = sweep(storage, guards)
    analysis = ExperimentAnalysis(grid.experiment_path)
    resumed = tune.Tuner.restore(grid.experiment_path, trainable=make_trainable(1, 0))
    return {
        "fit": seen(grid),
        "results": len(analysis.results_df),
        "opened": sorted((trial.trial_id, trial.status) for trial in analysis.trials),
        "restored": seen(resumed.get_results()),
        "resumed": seen(resumed.fit()),
    }


def sweep(storage: Path, guards: list[tune.Callback]) -> tune.ResultGrid:
    return sweeps.fit(
        make_trainable(1, 0),
        storage,
        guards,
        samples=TRIALS,
        space=search_space(),
        tune_config={
            "metric": METRIC,
            "mode": MODE,
            "search_alg": BasicVariantGenerator(random_state=sweeps.SEED, max_concurrent=1),
        },
        run_config={"verbose": 1},
    )


def seen(grid: tune.ResultGrid) -> Any:
    best = grid.get_best_result()
    found = sorted(
        (
            str(result.config),
            str(sweeps.stable({k: v for k, v in result.metrics.items() if k != "config"})),
            normal(Path(result.path).name),
            len(result.metrics_dataframe),
        )
        for result in grid
    )
    return found, str(best.config), len(grid.get_dataframe())


@pytest.fixture(scope="module")
def by_ray_alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    with install_simulated_actors():
        return outcome(tmp_path_factory.mktemp("plain"), [])


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> Counter[str]:
    """How often each entry is called in this sweep."""
    counted: Counter[str] = Counter()

    def counting(entry: Entry) -> Callable[..., Any]:
        ours = entry.ours

        def count(*args: Any, **kwargs: Any) -> Any:
            counted[entry.name] += 1
            return ours(*args, **kwargs)

        return count

    with pytest.MonkeyPatch.context() as patch, install_simulated_actors():
        for entry in ENTRIES.values():
            patch.setattr(entry, "ours", counting(entry))
        outcome(tmp_path_factory.mktemp("counted"), guards_for(""))
        first = counted.copy()
        counted.clear()
        outcome(tmp_path_factory.mktemp("counted"), guards_for(*OF_HISTORIES))
    return first + Counter({name: counted[name] - first[name] for name in OF_HISTORIES})


def guards_for(name: str, *_: str) -> list[tune.Callback]:
    """The callbacks of a sweep that goes through an entry."""
    return [MemGuard(histories="store" if name in OF_HISTORIES else "files", metrics_port=0)]


@pytest.mark.slow
def test_the_sweep_goes_through_every_entry_but_a_few(calls: Counter[str]) -> None:
    assert {name for name in ENTRIES if not calls[name]} == ELSEWHERE


def breaking(entry: Entry, at: int) -> Callable[..., Any]:
    """Like what is called there, but the call with this number raises."""
    ours = entry.ours
    called = 0

    def breaks(*args: Any, **kwargs: Any) -> Any:
        nonlocal called
        called += 1
        if called == at:
            raise UnexpectedError("a bug of ours")
        return ours(*args, **kwargs)

    return breaks


@pytest.mark.slow
@pytest.mark.parametrize("when", ["first", "later"])
@pytest.mark.parametrize("name", sorted(ENTRIES))
def test_an_unexpected_error_changes_nothing(
    name: str,
    when: str,
    tmp_path: Path,
    by_ray_alone: dict[str, Any],
    calls: Counter[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    at = 1 if when == "first" else 1 + calls[name] // 2
    if not calls[name] or (when == "later" and at == 1):
        pytest.skip("not called so often")
    entry = ENTRIES[name]
    monkeypatch.setattr(entry, "ours", breaking(entry, at))
    with caplog.at_level(logging.INFO, logger="ray_tune_memguard"):
        found = outcome(tmp_path, guards_for(name))
    assert found == by_ray_alone
    told = [r.getMessage() for r in caplog.records if "a bug of ours" in r.getMessage()]
    # How often hooks that measure are called is up to the clock.
    assert len(told) == 1 or (when == "later" and not told)


def test_a_run_that_cannot_be_taken_out_loses_no_trial(
    tmp_path: Path, by_ray_alone: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is short: checkpoints fail, and the spilled trials cannot be read back either."""
    entry = ENTRIES["TuneController.save_to_dir"]
    ours = entry.ours
    called = 0

    def breaks(*args: Any) -> Any:
        nonlocal called
        called += 1
        if called > 1:
            raise MemoryError
        return ours(*args)

    def fails(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(entry, "ours", breaks)
    monkeypatch.setattr(Installation, "take_out", fails)
    found = outcome(tmp_path, [MemGuard()])
    assert called > 2
    assert found == by_ray_alone


class Opaque:
    """Can be pickled, and not unpickled while the first checkpoint is compared with Ray's."""

    is_compared = False

    def __deepcopy__(self, _: Any) -> Opaque:
        return self

    def __reduce__(self) -> Any:
        return unpickled, ()


def unpickled() -> Opaque:
    if Opaque.is_compared:
        raise RuntimeError("only where there is a GPU")
    return Opaque()


def test_what_cannot_be_unpickled_in_the_driver_is_spilled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compare = spiller.difference

    def difference(*args: Any) -> str | None:
        monkeypatch.setattr(Opaque, "is_compared", True)
        try:
            return compare(*args)
        finally:
            monkeypatch.setattr(Opaque, "is_compared", False)

    monkeypatch.setattr(spiller, "difference", difference)
    space = {**search_space(), "opaque": tune.sample_from(lambda _: Opaque())}
    grid = sweeps.fit(
        make_trainable(1, 0),
        tmp_path,
        [MemGuard()],
        samples=TRIALS,
        space=space,
        tune_config={"metric": METRIC, "mode": MODE},
    )
    assert spilled(grid._experiment_analysis.trials) == TRIALS
    assert not said(caplog, "unexpected error")


def said(caplog: pytest.LogCaptureFixture, words: str) -> list[str]:
    return [r.getMessage() for r in caplog.records if words in r.getMessage()]


def spilled(trials: Any) -> int:
    assert isinstance(trials, SpilledTrials)
    return len(trials) - len(trials.resident())


@pytest.fixture
def hidden(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[PrivateName], None]]:
    """Lets the probe not find a name, from the import of the package on."""
    found = contract.is_there

    def hide(missing: PrivateName) -> None:
        monkeypatch.setattr(
            contract, "is_there", lambda row, part=None: row != missing and found(row, part)
        )
        ray_tune_memguard.uninstall()
        ray_tune_memguard.install()

    yield hide
    monkeypatch.undo()
    ray_tune_memguard.install()


@pytest.mark.slow
@pytest.mark.parametrize("capability", contract.WITHOUT)
def test_without_a_capability_the_results_are_equal(
    capability: str,
    tmp_path: Path,
    by_ray_alone: dict[str, Any],
    hidden: Callable[[PrivateName], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    needs = [row for row in contract.NAMES if capability in row.needed_by]
    missing = min(needs, key=lambda row: len(row.needed_by))
    hidden(missing)
    guard = MemGuard()
    with caplog.at_level(logging.INFO, logger="ray_tune_memguard"):
        assert outcome(tmp_path, [guard]) == by_ray_alone
    off = frozenset(contract.WITHOUT) - guard.run.capabilities.on
    assert off >= set(missing.needed_by)
    built_on = {base for bases in contract.BUILDS_ON.values() for base in bases}
    if not built_on.intersection(missing.needed_by):
        assert off == set(missing.needed_by)
    # Once in the first run, and once in the one that resumes it.
    warnings = said(caplog, f"lacks {missing}")
    assert len(warnings) == 2
    assert all(f"{name} (" in warnings[0] for name in missing.needed_by)


class StandIn:
    """An actor manager that does not have all that Ray's has."""

    def __init__(self, manager: SimulatedActorManager) -> None:
        self._manager = manager

    def __getattr__(self, name: str) -> Any:
        if name == "_pending_actors_to_attrs":
            raise AttributeError(name)
        return getattr(self._manager, name)


def test_an_actor_manager_that_lacks_one_name_costs_one_capability(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    simulated = tune_controller.RayActorManager
    with monkeypatch.context() as patch:
        patch.setattr(tune_controller, "RayActorManager", lambda **_: StandIn(simulated()))
        grid = sweep(tmp_path, [TrialPruner()])
    assert spilled(grid._experiment_analysis.trials) == TRIALS
    [warning] = said(caplog, "lacks")
    assert "RayActorManager._pending_actors_to_attrs" in warning
    assert "release_orphaned_tasks" in warning
    assert "release_futures" not in warning


def test_another_layout_of_rays_state_file_ends_no_sweep(
    tmp_path: Path,
    by_ray_alone: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with_a_blank = SimpleNamespace(dump=lambda state, f, cls: f.write(" " + dumps(state, cls=cls)))
    monkeypatch.setattr(tune_controller, "json", with_a_blank)
    assert outcome(tmp_path, [MemGuard()]) == by_ray_alone
    # In the first run, and in the one that resumes it.
    assert len(said(caplog, "TuneController.save_to_dir raised an unexpected error")) == 2


def test_a_checkpoint_unlike_rays_switches_spilling_off(
    tmp_path: Path,
    by_ray_alone: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    write = StateWriter.write

    def loses_a_number(*arguments: Any) -> tuple[str, str]:
        state, metadata = write(*arguments)
        return state, metadata.replace('"num_failures":0', '"num_failures":1')

    monkeypatch.setattr(StateWriter, "write", loses_a_number)
    grid = sweep(tmp_path, [MemGuard()])
    assert seen(grid) == by_ray_alone["fit"]
    assert type(grid._experiment_analysis.trials) is list
    [warning] = said(caplog, "Spilling is off in this run")
    assert "/num_failures" in warning


def test_what_finished_after_ray_went_on_alone_is_restored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store has what had finished by then, the experiment state file has all."""
    entry = ENTRIES["TrialPruner.on_step_end"]
    ours = entry.ours

    def breaks(pruner: Any, iteration: int, trials: Any) -> None:
        if sum(trial.is_finished() for trial in trials) == 3:
            raise UnexpectedError("a bug of ours")
        ours(pruner, iteration=iteration, trials=trials)

    monkeypatch.setattr(entry, "ours", breaks)
    grid = sweep(tmp_path, [MemGuard()])
    assert type(grid._experiment_analysis.trials) is list
    [store] = Path(grid.experiment_path).glob("*memguard/*.sqlite")
    stored = TrialStore.open(store)
    assert 0 < len(stored.rows(0, TRIALS)) < TRIALS
    stored.close()
    opened = ray_tune_memguard.open_experiment(grid.experiment_path)
    assert sorted(str(result.config) for result in opened) == sorted(
        str(result.config) for result in grid
    )
    assert opened.num_terminated == TRIALS


class TakesOut(tune.Callback):
    """Lets the run go on as Ray alone once three trials have finished, and looks what there is."""

    def __init__(self) -> None:
        self.kept: dict[str, Any] = {}

    def on_step_end(self, iteration: int, trials: Any, **_: Any) -> None:
        if self.kept or sum(trial.is_finished() for trial in trials) < 3:
            return
        controller: Any = calling_controller()
        installation = installation_of(controller)
        assert installation is not None
        before = spilled(trials)
        installation.take_out(controller)
        self.kept = {
            "spilled": before > 0,
            "class": type(controller) is tune_controller.TuneController,
            "list": type(controller._trials) is list and len(controller._trials) == len(trials),
            "records": controller._trial_metadata.keys()
            >= {trial.trial_id for trial in trials if trial.is_finished()},
            "sets": set(trials) - controller._live_trials == controller._stopped_trials,
            "syncer": type(controller._checkpoint_manager._storage.syncer) is _FilesystemSyncer,
            "readable": all(trial.config for trial in controller._trials),
        }

    def __reduce__(self) -> Any:
        return tune.Callback, ()


def test_ray_goes_on_alone_with_everything_that_is_its_own(tmp_path: Path) -> None:
    takes_out = TakesOut()
    # Who is told of a trial's death has a method of the controller as well, and stays.
    grid = sweep(tmp_path, [MemGuard(report_deaths=False), takes_out])
    assert takes_out.kept == dict.fromkeys(takes_out.kept, True)
    assert len(takes_out.kept) == 7
    assert len(grid) == TRIALS
    [state_file] = Path(grid.experiment_path).glob("experiment_state-*.json")
    state = loads(state_file.read_text())
    assert len(state["trial_data"]) == TRIALS
    assert state.keys() == {"trial_data", "runner_data", "stats"}
