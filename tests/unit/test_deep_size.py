"""Sizes of objects: near to pympler's and to the allocator's, and no code of anybody's runs."""

from __future__ import annotations

import gc
import sys
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pympler import asizeof

from ray_tune_memguard.diagnostics.deep_size import DeepSizer, Size, TimeBudgetExceededError
from ray_tune_memguard.diagnostics.detail import DETAILS, SAMPLE, WHOLE, Detail
from ray_tune_memguard.system.pymalloc import pymalloc_use


class Plain:
    def __init__(self, number: int) -> None:
        self.number = number + 10**6
        self.text = f"{number} " * 5
        self.table = {"a": [float(number)] * 3}


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


MADE: dict[str, Callable[[int], Any]] = {
    "lists": lambda n: [[i + 10**6] * 4 for i in range(n)],
    "dictionaries": lambda n: {str(i): {"x": float(i)} for i in range(n)},
    "nested": lambda n: {"a": {"b": [{"c": (float(i), str(i))} for i in range(n)]}},
    "slots": lambda n: [Slotted(f"{i} " * 9) for i in range(n)],
    "bytes": lambda n: [bytes(1000 + i % 3) for i in range(n)],
    "sets": lambda n: {(i, float(i)) for i in range(n)},
    "ordered": lambda n: OrderedDict((i, [i]) for i in range(n)),
}


@pytest.mark.parametrize("count", [10, WHOLE, WHOLE + 1, 5000])
@pytest.mark.parametrize("made", MADE)
def test_as_pympler_says(made: str, count: int) -> None:
    found = MADE[made](count)
    assert DeepSizer().measure(found).total == pytest.approx(
        asizeof.asizeof(found), rel=0.15, abs=200
    )


def test_deques_are_walked_into() -> None:
    found = deque([bytes(1000)] for _ in range(5000))
    assert DeepSizer().measure(found).total == pytest.approx(5000 * 1110, rel=0.05)


@pytest.mark.parametrize("count", [200, 5000])
def test_objects_as_the_allocator_says(count: int) -> None:
    gc.collect()
    before = pymalloc_use()
    found = [Plain(i) for i in range(count)]
    after = pymalloc_use()
    assert before is not None
    assert after is not None
    size = DeepSizer().measure(found)
    small = size.total - size.large
    assert small == pytest.approx(after.used - before.used, rel=0.15, abs=20_000)


def test_large_blocks_and_native_buffers_are_told_apart() -> None:
    blob, array = bytes(100_000), np.ones(10_000)
    size = DeepSizer().measure([blob, array])
    assert size.large == pytest.approx(100_000, rel=0.01)
    assert size.native == pytest.approx(80_000, rel=0.01)
    assert size.total == pytest.approx(180_000, rel=0.01)


def test_a_view_has_the_buffer_of_its_base() -> None:
    array = np.ones(10_000)
    assert DeepSizer().measure(array[:100]).total == pytest.approx(80_000, rel=0.01)
    sizer = DeepSizer()
    sizer.measure(array)
    assert sizer.measure(array[:100]).total < 500


def test_shared_objects_count_once_for_the_first() -> None:
    shared = [bytes(10_000)]
    first, second = {"mine": shared}, {"mine": shared}
    sizer = DeepSizer()
    assert sizer.measure(first).total > 10_000
    assert sizer.measure(second).total < 1000


def test_what_entries_of_a_sampled_container_share_counts_once() -> None:
    shared = [float(i) for i in range(200)] + [bytes(1_000_000)]
    container = [{"own": bytes(100), "shared": shared} for _ in range(WHOLE * 10)]
    expected = asizeof.asizeof(container)
    assert DeepSizer().measure(container).total == pytest.approx(expected, rel=0.1)


def test_the_same_entries_are_sampled_in_two_containers() -> None:
    ids = [f"trial {i}" for i in range(5000)]
    values = {name: [bytes(500)] for name in ids}
    again = {name: values[name] for name in reversed(ids)}
    sizer = DeepSizer()
    first = sizer.measure(values)
    second = sizer.measure(again)
    # Its own table; none of the values.
    assert second.total == pytest.approx(sys.getsizeof(again), rel=0.01)
    assert first.total > 5000 * 500


def test_a_big_container_is_not_walked_whole() -> None:
    sizer = DeepSizer()
    sizer.measure([[i] for i in range(100_000)])
    assert sizer.visited < 10 * SAMPLE


def test_barriers_are_not_walked_into() -> None:
    other = [bytes(50_000)]
    holder = {"other": other, "own": bytes(1000)}
    assert DeepSizer({id(other)}).measure(holder).total < 2000
    assert DeepSizer({id(other)}).measure(other).total > 50_000, "a barrier is itself measured"
    sizer = DeepSizer()
    sizer.exclude([other])
    assert sizer.measure(holder).total < 2000


def test_modules_classes_and_globals_are_nobodys() -> None:
    def function() -> None:
        gc.collect()

    assert DeepSizer().measure([sys, Plain, function, Plain.__init__]).total < 2000


def test_closures_are_the_functions() -> None:
    seen = [bytes(100_000)]

    def function() -> Any:
        return seen

    assert DeepSizer().measure(function).total > 100_000


def test_weak_references_count_for_their_object() -> None:
    found = [Plain(i) for i in range(100)]
    without = DeepSizer().measure(found).total
    table = weakref.WeakValueDictionary(enumerate(found))
    assert DeepSizer().measure(found).total >= without + 100 * 64
    # Its dictionary, the boxed keys included, and nothing of what is in it.
    assert DeepSizer().measure(table).total < sys.getsizeof(table.data) + 100 * 32 + 2000


class Touchy:
    """Everything that may run code of its class fails."""

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(f"{name} was read")

    def __sizeof__(self) -> int:
        raise AssertionError("its size was asked for")

    def __len__(self) -> int:
        raise AssertionError("its length was asked for")

    def __iter__(self) -> Any:
        raise AssertionError("it was walked over")

    def __eq__(self, other: object) -> bool:
        raise AssertionError("it was compared")

    def __hash__(self) -> int:
        raise AssertionError("it was hashed")

    @property
    def property(self) -> Any:
        raise AssertionError("a property ran")


class TouchyList(list[Any]):
    def __len__(self) -> int:
        raise AssertionError("its length was asked for")

    def __iter__(self) -> Any:
        raise AssertionError("it was walked over")


@pytest.mark.parametrize("count", [1, 3 * WHOLE])
def test_no_code_of_the_objects_runs(count: int) -> None:
    touchy = TouchyList([Touchy() for _ in range(count)])
    object.__setattr__(list.__getitem__(touchy, 0), "payload", bytes(10_000))
    assert DeepSizer().measure({"it": touchy}).total > 10_000


def test_time_is_kept() -> None:
    chain: list[Any] = []
    for _ in range(200_000):
        chain = [chain]
    sizer = DeepSizer()
    with pytest.raises(TimeBudgetExceededError):
        sizer.measure(chain, seconds=0.001)
    # And others can be measured after it.
    assert sizer.measure([bytes(1000)], seconds=1.0).total > 1000


def test_nothing_is_kept() -> None:
    found = Plain(1)
    reference = weakref.ref(found)
    sizer = DeepSizer()
    sizer.measure([found])
    del found
    assert reference() is None


def test_sizes_add_up() -> None:
    size = Size(1, 2, 3)
    size.add(Size(10, 20, 30), times=2)
    assert size == Size(21, 42, 63)


def history(trials: int) -> dict[str, Any]:
    """What a user's callback may keep: a curve of 300 floats and a configuration for each trial."""
    return {
        f"trial {n}": {"curve": [float(i) * 1.1 for i in range(300)], "config": {"lr": n * 0.1}}
        for n in range(trials)
    }


@pytest.mark.parametrize("detail", DETAILS[1:])
def test_a_big_container_is_estimated_from_few_of_its_entries(detail: Detail) -> None:
    for trials in (40, 100, 256, 400, 20_000):
        found = history(trials)
        sizer = DeepSizer()
        size = sizer.measure(found, detail=detail)
        assert size.total == pytest.approx(trials * 12_705, rel=0.1)
        assert sizer.visited < 256 * 20


def test_an_estimate_says_that_it_is_one() -> None:
    coarse = DETAILS[1]
    assert DeepSizer().measure(history(400), detail=coarse).is_estimate
    assert not DeepSizer().measure(history(400)).is_estimate
    assert not DeepSizer().measure({"few": [1.5]}, detail=coarse).is_estimate


def test_estimates_grow_with_what_they_measure() -> None:
    found: dict[str, Any] = {}
    sizes = []
    for trials in (50, 100, 200, 400, 800):
        found |= history(trials)
        sizes.append(DeepSizer().measure(found, detail=DETAILS[1]).total / len(found))
    assert sizes == pytest.approx([12_705] * 5, rel=0.05)


@pytest.mark.parametrize("detail", DETAILS)
def test_an_estimate_counts_shared_parts_once(detail: Detail) -> None:
    shared = [float(i) for i in range(50)] + [bytes(1_000_000)]
    container = [{"own": bytes(100), "shared": shared} for _ in range(WHOLE * 10)]
    expected = asizeof.asizeof(container)
    assert DeepSizer().measure(container, detail=detail).total == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("detail", DETAILS[1:])
def test_two_estimated_containers_of_the_same_objects_count_them_once(detail: Detail) -> None:
    values = history(400)
    again = {name: values[name] for name in reversed(values)}
    sizer = DeepSizer()
    sizer.measure(values, detail=detail)
    second = sizer.measure(again, detail=detail)
    assert second.total == pytest.approx(sys.getsizeof(again), rel=0.02)


def test_what_was_visited_in_vain_does_not_count_as_counted() -> None:
    chain: list[Any] = [bytes(100_000)]
    deep = chain
    for _ in range(200_000):
        deep = [deep]
    sizer = DeepSizer()
    with pytest.raises(TimeBudgetExceededError):
        sizer.measure([chain, deep], seconds=0.001)
    assert sizer.measure(chain, seconds=1.0).total > 100_000
