"""Sweeps elsewhere than in a driver's main thread, and with Ray Train: as by Ray alone."""

from __future__ import annotations

import tempfile
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import tune

from ray_tune_memguard import MemGuard
from tests.integration.equality import was_guarded

pytestmark = pytest.mark.slow

NUMBERS = [0, 1, 2]


def fit(
    trainable: Callable[[dict[str, Any]], None], storage: Path, *callbacks: tune.Callback
) -> tune.ResultGrid:
    return tune.Tuner(
        tune.with_resources(trainable, {"cpu": 0.5}),
        param_space={"number": tune.grid_search(NUMBERS)},
        tune_config=tune.TuneConfig(metric="score", mode="max", max_concurrent_trials=1),
        run_config=tune.RunConfig(
            name="sweep", storage_path=str(storage), verbose=0, callbacks=[*callbacks]
        ),
    ).fit()


def squares(config: dict[str, Any]) -> None:
    for step in (0, 1):
        tune.report({"score": config["number"] ** 2 + step})
    if config["number"] == 1:
        raise RuntimeError("planned failure")


def read(grid: tune.ResultGrid) -> dict[str, Any]:
    """What a user reads in a grid, and whether trials were spilled."""
    frame = grid.get_dataframe()
    return {
        "configs": [result.config for result in grid],
        "last": [result.metrics["score"] for result in grid],
        "all": [list(result.metrics_dataframe["score"]) for result in grid],
        "errors": [bool(result.error) for result in grid],
        "best": grid.get_best_result().config,
        "frame": frame[["score", "config/number", "training_iteration"]].to_dict("list"),
        "guarded": was_guarded(grid),
    }


def compare(
    run: Callable[[Path, list[tune.Callback]], tune.ResultGrid], storage: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same by Ray alone, and with MemGuard."""
    return read(run(storage / "alone", [])), read(run(storage / "guarded", [MemGuard()]))


def assert_equal(both: tuple[dict[str, Any], dict[str, Any]]) -> None:
    alone, guarded = both
    assert guarded.pop("guarded")
    assert not alone.pop("guarded")
    assert guarded == alone
    assert len(alone["configs"]) == len(NUMBERS)


def plain_sweep(storage: Path, guards: list[tune.Callback]) -> tune.ResultGrid:
    return fit(squares, storage, *guards)


def test_in_a_remote_task(storage: Path) -> None:
    task = ray.remote(num_cpus=0)(compare)
    assert_equal(ray.get(task.remote(plain_sweep, storage)))


class Began(tune.Callback):
    """Says when the first trial starts: only then may another thread begin, for Ray's registry."""

    def __init__(self) -> None:
        self.event = threading.Event()

    def __reduce__(self) -> Any:
        return tune.Callback, ()

    def on_trial_start(self, **info: Any) -> None:
        self.event.set()


@pytest.mark.parametrize("guarded", [False, True], ids=["Ray alone", "MemGuard"])
def test_in_two_threads_at_a_time(storage: Path, guarded: bool) -> None:
    guards = [MemGuard(), MemGuard()] if guarded else []
    began = Began()
    with ThreadPoolExecutor(2) as threads:
        one = threads.submit(fit, squares, storage / "one", *guards[:1], began)
        assert began.event.wait(120)
        two = threads.submit(fit, squares, storage / "two", *guards[1:])
        found = [read(one.result()), read(two.result())]
    alone = read(fit(squares, storage / "alone"))
    assert [each.pop("guarded") for each in [*found, alone]] == [guarded, guarded, False]
    assert found == [alone, alone]


def test_within_a_trial(storage: Path) -> None:
    def nested(storage: Path, guards: list[tune.Callback]) -> tune.ResultGrid:
        def sweeps_itself(config: dict[str, Any]) -> None:
            inner = fit(squares, storage / f"inner {config['number']}", *guards)
            best = inner.get_best_result().metrics["score"]
            tune.report({"score": config["number"] * 100 + best})

        return fit(sweeps_itself, storage, *guards)

    alone, guarded = compare(nested, storage)
    assert alone["last"] == [number * 100 + 5 for number in NUMBERS]
    assert_equal((alone, guarded))
    stores = storage.glob("guarded/inner */sweep/.memguard/trials-*.sqlite")
    assert len(list(stores)) == len(NUMBERS)


class SweepsOnce(tune.Callback):
    """Runs a sweep of its own when the second trial has finished."""

    def __init__(self, storage: Path, guards: list[tune.Callback]) -> None:
        self._inner = storage, guards
        self.finished = 0
        self.found: dict[str, Any] = {}

    def on_trial_complete(self, **info: Any) -> None:
        self.finished += 1
        if self.finished == 2:
            storage, guards = self._inner
            self.found = read(fit(squares, storage, *guards))


def test_within_a_callback(storage: Path) -> None:
    inner = [SweepsOnce(storage / "inner alone", []), SweepsOnce(storage / "inner", [MemGuard()])]
    grids = [
        fit(squares, storage / "alone", inner[0]),
        fit(squares, storage / "guarded", MemGuard(), inner[1]),
    ]
    assert_equal((read(grids[0]), read(grids[1])))
    assert_equal((inner[0].found, inner[1].found))


def test_ray_train_in_a_trial(storage: Path) -> None:
    train = pytest.importorskip("ray.train")
    # Ray has two, and its environment decides which one the public names belong to.
    version = "v2.api." if hasattr(train, "UserCallback") else ""
    trainers = pytest.importorskip(f"ray.train.{version}data_parallel_trainer")

    def one_worker(config: dict[str, Any]) -> None:
        # Ray's newer one keeps metrics only with a checkpoint.
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = train.Checkpoint.from_directory(folder)
            train.report({"score": config["number"] + 0.5}, checkpoint=checkpoint)

    def with_train(storage: Path, guards: list[tune.Callback]) -> tune.ResultGrid:
        def trains(config: dict[str, Any]) -> None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                result = trainers.DataParallelTrainer(
                    one_worker,
                    train_loop_config=config,
                    scaling_config=train.ScalingConfig(
                        num_workers=1, resources_per_worker={"CPU": 0.5}
                    ),
                    run_config=train.RunConfig(
                        storage_path=str(storage), name=f"train {config['number']}"
                    ),
                ).fit()
            tune.report({"score": result.metrics["score"]})

        return fit(trains, storage, *guards)

    both = compare(with_train, storage)
    assert both[0]["last"] == [number + 0.5 for number in NUMBERS]
    assert_equal(both)
