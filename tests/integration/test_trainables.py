"""A trainable that carries data is in the driver once, whoever asks Ray for it how often."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from ray import tune
from ray.tune import registry
from ray.tune.registry import register_trainable

from ray_tune_memguard import MemGuard
from ray_tune_memguard.adapter.run.trainables import cache_trainables

TRIALS = 12
# In this process: who unpickles the data, and in which.
_LOADED: list[int] = []


class Data:
    """What a closure carries, and a count of its copies in this process."""

    def __init__(self, offset: float = 0.0) -> None:
        self.offset = offset

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        _LOADED.append(os.getpid())


def carrying(data: Data) -> Any:
    def trainable(config: dict[str, Any]) -> None:
        tune.report({"score": config["a"] + data.offset})

    return trainable


def fit(trainable: Any, storage: Path, *callbacks: tune.Callback, reuse: bool = True) -> list[Any]:
    grid = tune.Tuner(
        trainable,
        param_space={"a": tune.grid_search(list(range(TRIALS)))},
        tune_config=tune.TuneConfig(metric="score", mode="max", reuse_actors=reuse),
        run_config=tune.RunConfig(storage_path=str(storage), verbose=0, callbacks=[*callbacks]),
    ).fit()
    return [result.metrics["score"] for result in grid]


@pytest.mark.slow
@pytest.mark.parametrize("reuse", [True, False])
def test_it_is_unpickled_once(storage: Path, reuse: bool) -> None:
    _LOADED.clear()
    scores = fit(carrying(Data(0.5)), storage, MemGuard(), reuse=reuse)
    assert scores == [number + 0.5 for number in range(TRIALS)]
    # Before the sweep, Ray asks for it by itself.
    assert len(_LOADED) <= 3


class Anew(tune.Callback):
    """Registers another trainable under the same name in mid-sweep."""

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        if trial.config["a"] == 4:
            register_trainable("carried", carrying(Data(100.0)))


@pytest.mark.slow
def test_one_that_is_registered_anew_counts_from_then_on(
    storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So that there are trials that Ray makes later.
    monkeypatch.setenv("TUNE_MAX_PENDING_TRIALS_PG", "1")

    def run(place: str, *callbacks: tune.Callback) -> list[Any]:
        register_trainable("carried", carrying(Data()))
        return fit("carried", storage / place, Anew(), *callbacks, reuse=False)

    alone, guarded = run("alone"), run("guarded", MemGuard())
    for scores in (alone, guarded):
        assert scores[0] == 0
        assert scores[-1] == 100 + TRIALS - 1


def test_afterwards_the_registry_is_as_it_was(storage: Path) -> None:
    before = type(registry._global_registry), dict(vars(registry._global_registry))
    fit(carrying(Data()), storage, MemGuard())
    assert type(registry._global_registry) is before[0]
    assert vars(registry._global_registry).keys() == before[1].keys()


def test_two_sweeps_at_a_time(storage: Path) -> None:
    plain = type(registry._global_registry)
    register_trainable("carried", carrying(Data()))
    first, second = cache_trainables(Data()), cache_trainables(holder := Data())
    registry.get_trainable_cls("carried")
    first()
    registry.get_trainable_cls("carried")
    _LOADED.clear()
    registry.get_trainable_cls("carried")
    assert not _LOADED
    second()
    assert type(registry._global_registry) is plain
    _LOADED.clear()
    registry.get_trainable_cls("carried")
    assert _LOADED
    assert holder


class Ending:
    """Ends a sweep while it is being pickled, as another thread or the collector may."""

    def __init__(self, end: Any) -> None:
        self.end = end

    def __reduce__(self) -> Any:
        self.end()
        return int, ()


def test_a_sweep_that_ends_while_another_registers() -> None:
    plain = type(registry._global_registry)
    ending = Ending(cache_trainables(owner := Data()))
    register_trainable("carried", carrying(ending))  # type: ignore[arg-type]
    assert type(registry._global_registry) is plain
    registry.get_trainable_cls("carried")
    assert owner


def test_a_registry_of_another_kind_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    other = object()
    monkeypatch.setattr(registry, "_global_registry", other)
    owner = Data()
    cache_trainables(owner)()
    assert type(other) is object
    monkeypatch.delattr(registry, "_global_registry")
    cache_trainables(owner)()
