"""Kept values outlive the trials that made them, and end with their keeper."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray import tune

from ray_tune_memguard import Keeper, Kept, KeptLostError, MemGuard, explain
from ray_tune_memguard.keeping import channel, lookup
from ray_tune_memguard.keeping import keeper as keeper_module

ROOT = Path(__file__).parents[2]
SIZE = 5 * 2**20


def until(is_so: Callable[[], bool]) -> bool:
    """Whether it comes true. Ray tells what is in the object store a moment later."""
    for _ in range(300):
        if is_so():
            return True
        time.sleep(0.1)
    return False


def stored() -> float:
    """What is in the object store, in values of SIZE; tests before may have left a little."""
    total = ray.cluster_resources()["object_store_memory"]
    return (total - ray.available_resources().get("object_store_memory", 0.0)) / SIZE


def named_actors(keeper: Keeper) -> list[str]:
    found = ray.util.list_named_actors(all_namespaces=True)
    return [one["name"] for one in found if one["namespace"] == f"memguard-{keeper._id}"]


@ray.remote(num_cpus=0.1)
class Trial:
    def pid(self) -> int:
        return os.getpid()

    def keep(self, keeper: Keeper, number: int) -> Kept:
        return keeper.keep(np.full(SIZE, number, dtype=np.uint8))

    def run(self, keeper: Keeper, number: int) -> Kept:
        return keeper.run(make, number, size=SIZE)


@ray.remote(num_cpus=0.1, max_calls=1)
def make(number: int, size: int) -> Any:
    return np.full(size, number, dtype=np.uint8)


@ray.remote(num_cpus=0.1, max_calls=1)
def keep(keeper: Keeper, number: int) -> Kept:
    return keeper.keep({"number": number, "array": np.full(SIZE, number, dtype=np.uint8)})


@ray.remote(num_cpus=0.1, num_returns=2)
def two() -> tuple[int, int]:
    return 1, 2


@ray.remote(num_cpus=0.1, max_retries=0)
def fails() -> None:
    raise KeyError("planned")


@ray.remote(num_cpus=0.1)
def waits() -> None:
    time.sleep(600)


@ray.remote(num_cpus=0.1)
def read(kept: Kept) -> int:
    return int(kept.get().sum())


@pytest.fixture
def keeper() -> Iterator[Keeper]:
    with Keeper() as one:
        yield one


@pytest.mark.slow
@pytest.mark.parametrize("method", ["keep", "run"])
def test_a_kept_value_outlives_a_killed_trial(keeper: Keeper, method: str) -> None:
    for number in range(5):
        trial = Trial.remote()
        pid = ray.get(trial.pid.remote())
        kept = ray.get(getattr(trial, method).remote(keeper, number))
        os.kill(pid, signal.SIGKILL)
        array = kept.get(timeout_s=60)
        assert array.nbytes == SIZE
        assert set(array) == {number}
        assert not array.flags.writeable


def test_a_task_whose_worker_ends_after_it_can_keep(keeper: Keeper) -> None:
    all_kept = ray.get([keep.remote(keeper, number) for number in range(4)])
    for number, kept in enumerate(all_kept):
        found = kept.get()
        assert found["number"] == number
        assert set(found["array"]) == {number}
    # They began at the same time, and one actor was started.
    assert named_actors(keeper) == ["keeper-0"]
    assert not keeper.held()["pid"].duplicated().any()


def test_what_has_all_the_memory_can_keep(keeper: Keeper) -> None:
    """The keeper's process needs nothing that a trial may have reserved."""
    memory = ray.cluster_resources()["memory"]
    kept = ray.get(keep.options(memory=memory).remote(keeper, 3), timeout=120)
    assert set(kept.get()["array"]) == {3}


def test_a_lost_value_in_a_task_is_explained_in_sentences(keeper: Keeper) -> None:
    kept = keeper.keep(np.ones(1000, dtype=np.uint8))
    kept.release()
    with pytest.raises(KeptLostError) as info:
        ray.get(read.remote(kept))
    said = explain(info.value)
    assert said.startswith(f"{kept!r} cannot be read, because it was released. Compute it")
    assert "Traceback" not in said


def test_a_value_is_kept_by_either_way(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    """By shared memory, and, where that cannot be had, by a call."""
    for limit in (channel.MAX_BYTES, 0):
        monkeypatch.setattr(channel, "MAX_BYTES", limit)
        array = np.asfortranarray(np.arange(120_000.0).reshape(300, 400))
        found = keeper.keep({"array": array, "none": np.empty(0)}).get()
        assert np.array_equal(found["array"], array)
        assert found["none"].size == 0
    by_channel = [place for place in lookup._channels if place[2] == keeper._id]
    assert len(by_channel) == 1


def test_a_process_of_the_keeper_that_ends_again_and_again_is_said(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended(*args: object) -> None:
        raise lookup.ActorEndedError("planned")

    monkeypatch.setattr(keeper_module, "keep", ended)
    with pytest.raises(RuntimeError, match=r"on node .* has ended 3 times: planned"):
        keeper.keep(1)


def test_any_process_can_read(keeper: Keeper) -> None:
    kept = keeper.keep(np.ones(1000, dtype=np.uint8))
    assert ray.get(read.remote(kept)) == 1000


def test_a_released_value_is_freed(keeper: Keeper) -> None:
    before = stored()
    kept = keeper.keep(np.zeros(SIZE, dtype=np.uint8))
    other = keeper.run(make, 7, SIZE)
    assert other.get()[0] == 7
    assert until(lambda: stored() > before + 1.5)
    kept.release()
    kept.release()
    with pytest.raises(
        KeptLostError, match=r"Kept\(.*5\.0 MiB\) cannot .* it was released"
    ) as info:
        kept.get()
    assert explain(info.value).startswith(f"{info.value} ")
    assert list(keeper.held()["kept"]) == [other]
    keeper.release_all()
    assert keeper.held().empty
    assert until(lambda: stored() < before + 0.5)


def test_everything_ends_with_the_block() -> None:
    before = stored()
    with Keeper() as keeper:
        kept = keeper.keep(np.zeros(SIZE, dtype=np.uint8))
        assert named_actors(keeper) == ["keeper-0"]
        assert until(lambda: stored() > before + 0.5)
    assert until(lambda: stored() < before + 0.5 and named_actors(keeper) == [])
    with pytest.raises(KeptLostError, match="its Keeper was closed"):
        kept.get()
    with pytest.raises(RuntimeError, match="has ended: it was closed"):
        keeper.keep(1)
    with pytest.raises(RuntimeError, match="has ended: it was closed"):
        keeper.run(two)
    kept.release()
    keeper.close()


def test_a_failed_task_raises_its_own_error(keeper: Keeper) -> None:
    with pytest.raises(KeyError, match="planned"):
        keeper.run(fails).get()
    with pytest.raises(TypeError, match="must return one object"):
        keeper.run(two)
    with pytest.raises(ray.exceptions.GetTimeoutError):
        keeper.run(waits).get(timeout_s=0.1)
    assert keeper.run(make.options(num_cpus=0.2), 3, 10).get().sum() == 30


def test_what_is_larger_than_the_store_is_refused(keeper: Keeper) -> None:
    capacity = ray.cluster_resources()["object_store_memory"]
    # Pages that nobody touches take no memory.
    memory = np.empty(int(capacity) + 1, dtype=np.uint8)
    with pytest.raises(ValueError, match="the object store of this node"):
        keeper.keep(memory)
    assert keeper.held().empty


def test_a_sweep_keeps_an_array_for_each_trial(storage: Path, keeper: Keeper) -> None:
    def train(config: dict[str, Any]) -> None:
        kept = keeper.keep(np.full(100_000, config["number"], dtype=np.int32))
        tune.report({"score": config["number"], "kept": kept})

    grid = tune.Tuner(
        train,
        param_space={"number": tune.grid_search(list(range(8)))},
        tune_config=tune.TuneConfig(reuse_actors=True),
        run_config=tune.RunConfig(
            name="kept", storage_path=str(storage), verbose=0, callbacks=[MemGuard()]
        ),
    ).fit()
    assert not grid.errors
    for result in grid:
        assert set(result.metrics["kept"].get()) == {result.metrics["score"]}
    held = keeper.held()
    assert set(held["trial"]) == {result.metrics["trial_id"] for result in grid}
    by_trial = held.groupby("trial")["bytes"].agg(["count", "sum"])
    assert set(by_trial["count"]) == {1}
    assert by_trial["sum"].min() >= 400_000
    assert held["since"].is_monotonic_increasing
    assert named_actors(keeper) == ["keeper-0"]


@pytest.mark.slow
def test_a_keeper_ends_with_the_process_that_made_it() -> None:
    script = (
        "import os, ray, sys\n"
        "from ray_tune_memguard import Keeper\n"
        "ray.init(address=sys.argv[1], log_to_driver=False, logging_level='ERROR')\n"
        "keeper = Keeper()\n"
        "kept = keeper.keep(bytes(1000))\n"
        "print(kept.keeper, kept.key, kept.node, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    address = ray.get_runtime_context().gcs_address
    done = subprocess.run(
        [sys.executable, "-c", script, address],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.stdout, done.stderr
    kept = Kept(*done.stdout.split())

    def is_lost() -> bool:
        try:
            kept.get()
        except KeptLostError as error:
            return "the process that made the Keeper has ended" in str(error)
        return False

    assert until(is_lost)
