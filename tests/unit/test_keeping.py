"""What is kept: how it is packed, what a user has of it, and what errors say. Without Ray."""

from __future__ import annotations

import copy
import gc
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import ray
from ray import cloudpickle, exceptions

from ray_tune_memguard import Keeper, Kept, KeptLostError, explain
from ray_tune_memguard.by_value import by_value
from ray_tune_memguard.keeping import actor, channel
from ray_tune_memguard.keeping import keeper as keeper_module
from ray_tune_memguard.keeping.explanations import _EXPLANATIONS
from ray_tune_memguard.keeping.packing import pack, unpack

REFERENCE = ray.ObjectRef(b"1" * 28)


def elsewhere(keeper: str = "3f2a") -> Keeper:
    """A keeper as a trial has it."""
    return keeper_module._same_keeper(keeper)


@pytest.mark.parametrize(
    "value",
    [
        None,
        {"a": [1, (2, 3)], "text": "x" * 1000},
        np.arange(1000.0).reshape(10, 100).T,
        np.arange(1000.0)[::2],
        np.empty(0),
        np.array([{"a": 1}], dtype=object),
        pd.DataFrame({"a": range(100), "b": ["x"] * 100}),
        b"x" * 10**6,
    ],
)
def test_a_value_is_what_was_packed(value: object) -> None:
    found = unpack([memoryview(part).toreadonly() for part in pack(value)])
    assert type(found) is type(value)
    assert pickle.dumps(found) == pickle.dumps(copy.deepcopy(value)) or np.array_equal(found, value)


def test_a_collection_may_find_what_was_packed() -> None:
    """As with an error whose traceback refers to it, and that refers to itself."""
    for _ in range(10):
        cycle: list[object] = [pack(np.zeros(10))]
        cycle.append(cycle)
        del cycle
        gc.collect()


def test_packing_does_not_copy_arrays() -> None:
    array = np.zeros(1000)
    _, data = pack([array])
    array[3] = 7.0
    [found] = unpack(pack([array]))
    assert np.frombuffer(data)[3] == 7.0
    assert np.shares_memory(found, array)


def test_a_function_of_a_closure_can_be_packed() -> None:
    factor = 3
    assert unpack(pack(lambda number: factor * number))(2) == 6


@pytest.mark.parametrize("value", [[REFERENCE], {"a": (1, REFERENCE)}])
def test_a_reference_in_a_value_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match=r"contains an ObjectRef.*ray.get"):
        elsewhere().keep(value)


def test_what_cannot_be_kept_is_refused() -> None:
    with pytest.raises(TypeError, match=r"ray\.get\(reference\).*keeper\.run"):
        elsewhere().keep(REFERENCE)
    with pytest.raises(TypeError, match="kept already"):
        elsewhere().keep(Kept("3f2a", "0-1", "node", 8))
    with pytest.raises(TypeError, match=r"type lock cannot be kept: .*pickle"):
        elsewhere().keep(threading.Lock())


@pytest.mark.parametrize("task", [len, 1, None])
def test_what_cannot_be_run_is_refused(task: object) -> None:
    with pytest.raises(TypeError, match=r"@ray\.remote"):
        elsewhere().run(task)


def test_without_ray_nothing_is_started() -> None:
    kept = Kept("3f2a", "0-1", "node", 8)
    with pytest.raises(KeptLostError, match="Ray is not running in this process"):
        kept.get()
    kept.release()
    with pytest.raises(RuntimeError, match="has ended"):
        elsewhere().keep(1)
    with pytest.raises(RuntimeError, match="has ended"):
        elsewhere().held()
    with elsewhere():
        pass
    assert not ray.is_initialized()


def test_a_keeper_is_pickled_as_its_id() -> None:
    text = pickle.dumps(elsewhere())
    assert len(text) < 200
    assert repr(pickle.loads(text)) == repr(elsewhere())


def test_kept_is_pickled_by_key() -> None:
    kept = Kept("3f2a", "12-1", "c81b", 2**20)
    text = pickle.dumps(kept)
    found = pickle.loads(text)
    assert len(text) < 200
    assert (found.keeper, found.key, found.node, found.bytes) == ("3f2a", "12-1", "c81b", 2**20)
    assert {found, kept, Kept("3f2a", "12-1", "elsewhere")} == {kept}
    assert kept != Kept("3f2b", "12-1", "c81b")
    assert kept != "12-1"
    assert not hasattr(kept, "__dict__")


def test_an_error_of_ours_can_be_pickled() -> None:
    error = pickle.loads(pickle.dumps(KeptLostError("It was released.")))
    assert str(error) == "It was released."
    assert explain(error).startswith("It was released. Compute it and keep it again: ")


def of_ray(name: str) -> BaseException:
    kind = getattr(exceptions, name, None)
    if kind is None:
        pytest.skip(f"This Ray has no {name}")
    return kind("00ff", b"", "")


@pytest.mark.parametrize("name", _EXPLANATIONS)
def test_errors_of_ray_are_explained_in_two_sentences(name: str) -> None:
    said = explain(of_ray(name))
    assert said == _EXPLANATIONS[name]
    assert said.count(". ") == 1


def test_every_error_about_lost_objects_is_explained() -> None:
    kinds = [
        kind
        for kind in vars(exceptions).values()
        if isinstance(kind, type) and issubclass(kind, exceptions.ObjectLostError)
    ]
    assert {kind.__name__ for kind in kinds} <= set(_EXPLANATIONS)


def test_a_cause_is_explained() -> None:
    died = of_ray("OwnerDiedError")
    of_task = exceptions.RayTaskError("train", "traceback", died)
    outer = RuntimeError("outer")
    outer.__cause__ = of_task
    for error in (of_task, of_task.as_instanceof_cause(), outer):
        assert explain(error) == _EXPLANATIONS["OwnerDiedError"]


def test_what_is_none_of_these_is_said() -> None:
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert explain(first) == "ValueError is none of Ray's errors about lost objects."
    with pytest.raises(TypeError, match="must be an exception; got 'OwnerDiedError'"):
        explain("OwnerDiedError")  # type: ignore[arg-type]


def test_the_keepers_process_needs_nothing_of_this_package(tmp_path: Path) -> None:
    script = (
        "import pickle, sys\n"
        "assert pickle.loads(open(sys.argv[1], 'rb').read()).keep\n"
        "print(*sys.modules)\n"
    )
    sent = tmp_path / "class.pkl"
    with by_value(actor, channel):
        sent.write_bytes(cloudpickle.dumps(actor.KeeperActor))
    done = subprocess.run(
        [sys.executable, "-c", script, str(sent)], check=True, capture_output=True, text=True
    )
    assert "ray" in done.stdout.split()
    assert not [name for name in done.stdout.split() if name.startswith("ray_tune_memguard")]
    assert "ray.tune" not in done.stdout.split()
