"""Results are the same, to the type and the last bit, after they were encoded and compressed."""

from __future__ import annotations

import math
import struct
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_tune_memguard.store import result_columns, result_values
from ray_tune_memguard.store.compression import DictionaryCompressor

MANY = 40
NUMBERS = st.one_of(
    st.integers(), st.floats(), st.booleans(), st.sampled_from([0.0, -0.0, 0, 2**63, -(2**63) - 1])
)
VALUES = st.recursive(
    st.one_of(st.none(), NUMBERS, st.text(), st.binary(max_size=3)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(st.one_of(st.text(max_size=3), st.integers()), inner, max_size=3),
    ),
    max_leaves=8,
)
RESULTS = st.dictionaries(st.text(max_size=4), VALUES, max_size=4)


def through_a_chunk(results: list[Any]) -> list[Any]:
    encoder = result_values.ResultEncoder(replace=str)
    rows = [encoder.encode(result) for result in results]
    compressor = DictionaryCompressor(rows[0])
    content = result_columns.pack(rows, compressor.pack)
    assert result_columns.encoded_rows(content, compressor.unpack) == rows
    return result_columns.unpack(content, compressor.unpack)


def exact(value: Any) -> Any:
    """A value that is equal only to one of the same types and bits, in the same order."""
    if isinstance(value, dict):
        return "dict", [((type(key), key), exact(inner)) for key, inner in value.items()]
    if isinstance(value, (list, tuple)):
        return type(value), [exact(inner) for inner in value]
    if isinstance(value, np.ndarray):
        return "array", value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, float):
        return type(value), struct.pack("<d", value)
    return type(value), value


@given(st.lists(RESULTS, min_size=1, max_size=MANY))
@settings(deadline=None, max_examples=60)
def test_any_results(results: list[Any]) -> None:
    assert exact(through_a_chunk(results)) == exact(results)


@given(st.lists(st.tuples(NUMBERS, st.floats(), st.integers(), st.text()), min_size=16))
@settings(deadline=None, max_examples=60)
def test_columns_of_any_values(rows: list[Any]) -> None:
    results = [{"a": a, "n": {"b": b, "c": c, "same": b}, "d": d} for a, b, c, d in rows]
    found = through_a_chunk(results)
    assert exact(found) == exact(results)


CLOCK = [1_790_000_000 + number * 0.37 for number in range(MANY)]
STEPS = [0.0, *(after - before for before, after in pairwise(CLOCK))]


@pytest.mark.parametrize(
    "column",
    [
        STEPS,
        CLOCK,
        list(np.add.accumulate(STEPS).tolist()),
        [round(math.sin(number), 3) for number in range(MANY)],
        [math.sin(number) for number in range(MANY)],
        [math.nan, -math.nan, math.inf, -math.inf, -0.0] * 8,
        [*(number / 4 for number in range(MANY - 1)), -0.0],
        [0.5, -0.0, 0.0, 1.5] * 10,
        [{2**70: number} for number in range(MANY)],
        [{np.int64(1): number} for number in range(MANY)],
        [{(1, 2): number, b"key": 0.5, None: 1} for number in range(MANY)],
        [{1: 0.5}, {True: 0.5}, {1.0: 0.5}, {"1": 0.5}] * 10,
        list(range(MANY)),
        [(-1) ** number * 2**62 for number in range(MANY)],
        [2**63 - 1, -(2**63)] * 20,
        [f"2026-11-26_09-40-{number:02d}" for number in range(MANY)],
        ["é", "ö"] * 20,
        ["", "a"] * 20,
        [True, False] * 20,
        [None, "checkpoint_000001"] * 20,
        [[number] for number in range(MANY)],
        [[1, 2]] * MANY,
        [np.float64(number) / 3 for number in range(MANY)],
        [np.float32(number) / 3 for number in range(MANY)],
        [np.int64(number) for number in range(MANY)],
        [np.bool_(number % 2) for number in range(MANY)],
        [np.arange(6.0).reshape(2, 3) + number for number in range(MANY)],
        [np.array([["a", f"\u00df{number}"]]) for number in range(MANY)],
        [np.array([b"a", b"%d" % number]) for number in range(MANY)],
        [(8, number) for number in range(MANY)],
        [2**70 + number for number in range(MANY)],
        [{}, {"a": 1}] * 20,
    ],
    ids=lambda column: f"{type(column[1]).__name__} {str(column[1])[:20]}",
)
@pytest.mark.parametrize("count", [1, MANY])
def test_a_column(column: list[Any], count: int) -> None:
    results = [{"step": step, "value": value} for step, value in zip(STEPS, column, strict=True)]
    assert exact(through_a_chunk(results[:count])) == exact(results[:count])


def test_a_value_of_a_result_can_be_changed_alone() -> None:
    found = through_a_chunk([{"list": [1], "nested": {"a": {}}} for _ in range(MANY)])
    found[0]["list"].append(2)
    found[0]["nested"]["a"]["b"] = 1
    assert found[1] == {"list": [1], "nested": {"a": {}}}


def test_a_long_history_takes_few_bytes() -> None:
    encoder = result_values.ResultEncoder(replace=str)
    total, now, rows = 0.0, 1_790_000_000.0, []
    for number in range(1000):
        before, now = now, now + 0.01 + math.sin(number) / 1000
        total += now - before
        result = {
            "loss": math.sin(number) / 3,
            "training_iteration": number + 1,
            "trial_id": "00000_00001",
            "timestamp": int(now),
            "time_this_iter_s": now - before,
            "time_total_s": total,
            "time_since_restore": total,
            "config": {"lr": 0.1, "layers": [8, 8]},
        }
        rows.append(encoder.encode(result))
    content = result_columns.pack(rows, DictionaryCompressor(rows[0]).pack)
    assert len(content) / len(rows) < 15


def test_damage_is_an_error() -> None:
    encoder = result_values.ResultEncoder(replace=str)
    rows = [encoder.encode({"a": number}) for number in range(MANY)]
    compressor = DictionaryCompressor(rows[0])
    for content in (result_columns.pack(rows, compressor.pack), b"", b"X"):
        with pytest.raises(ValueError):  # noqa: PT011 - of zstandard's many texts
            result_columns.unpack(content[: len(content) // 2], compressor.unpack)
