"""Rows of a DataFrame of all trials, against what Ray makes of the same files."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace
from typing import Any

import pandas
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ray.tune import ExperimentAnalysis

from ray_tune_memguard.adapter.analysis.result_rows import UnevenRecordsError, frame_of, row_of
from ray_tune_memguard.adapter.analysis.row_table import RowTable

keys = st.sampled_from(["score", "loss", "info", "text", "deep", "n", ""])
plain = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.integers(-3, 3)
    | st.floats(allow_nan=True, allow_infinity=True)
    | st.text(max_size=3)
    | st.lists(st.integers(0, 3) | st.just(2**70), max_size=2)
)
values = st.recursive(plain, lambda inner: st.dictionaries(keys, inner, max_size=3), max_leaves=4)
records = st.dictionaries(keys, values, max_size=5)


def rays_row(content: bytes, metric: str | None, mode: str | None) -> dict[str, Any] | None:
    lines = content.decode().rstrip("\n")
    if not lines:
        return None
    frame = pandas.json_normalize([json.loads(line) for line in lines.split("\n")], sep="/")
    analysis: Any = SimpleNamespace(trial_dataframes={"trial": frame})
    rows: dict[str, Any] = ExperimentAnalysis._retrieve_rows(analysis, metric, mode)
    return rows.get("trial")


def same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and math.isnan(one):
        return isinstance(other, float) and math.isnan(other)
    if isinstance(one, dict):
        return (
            isinstance(other, dict)
            and list(one) == list(other)
            and all(same(one[key], other[key]) for key in one)
        )
    return type(one) is type(other) and bool(one == other)


@settings(
    deadline=None,
    max_examples=300,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    st.lists(records, min_size=1, max_size=3),
    st.integers(1, 3),
    st.sampled_from([(None, None), ("score", None), ("score", "max"), ("info/loss", "min")]),
)
def test_a_row_is_rays_or_left_to_ray(
    some: list[dict[str, Any]], times: int, asked: tuple[str | None, str | None]
) -> None:
    # The same record several times, with other numbers, is what trials report.
    lines = [{**record, "trial_id": "1", "n": n} for record in some for n in range(times)]
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    try:
        ours = row_of(content, *asked)
    except UnevenRecordsError:
        return
    assert same(ours, rays_row(content, *asked))


@settings(deadline=None, max_examples=200, derandomize=True)
@given(st.lists(records, min_size=1, max_size=4))
def test_a_trials_frame_is_rays(some: list[dict[str, Any]]) -> None:
    content = "".join(json.dumps(record) + "\n" for record in some)
    rays = pandas.json_normalize([json.loads(line) for line in content.splitlines()], sep="/")
    pandas.testing.assert_frame_equal(frame_of(content.encode()), rays)


@settings(deadline=None, max_examples=200, derandomize=True)
@given(st.lists(st.dictionaries(keys, plain, max_size=4), min_size=1, max_size=5))
def test_a_table_of_rows_is_the_frame_of_dictionaries(rows: list[dict[str, Any]]) -> None:
    table = RowTable()
    for row in rows:
        table.add(row)
    assert len(table) == len(rows)
    pandas.testing.assert_frame_equal(table.frame(), pandas.DataFrame(rows))


def test_a_table_with_an_index() -> None:
    rows = [{"trial_id": "1", "loss": 0.5}, {"trial_id": "2", "text": "x", "loss": 1}]
    table = RowTable()
    for row in rows:
        table.add(row)
    expected = pandas.DataFrame.from_records(rows, index="trial_id")
    pandas.testing.assert_frame_equal(table.frame(index="trial_id"), expected)


@pytest.mark.parametrize(
    "content",
    [b'\n{"a": "x"}\n', b'{"a": "x"}\n\n{"a": "y"}\n', b'\xef\xbb\xbf{"a": "x"}\n', b'{"a": \n'],
)
def test_what_ray_does_not_read_is_left_to_ray(content: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        rays_row(content, None, None)
    with pytest.raises(UnevenRecordsError):
        row_of(content)


@pytest.mark.parametrize("content", [b"", b"\n\n", b'{"a": "x"}\n\n'])
def test_blank_lines_at_the_end_do_not_count(content: bytes) -> None:
    assert row_of(content) == rays_row(content, None, None)


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize(
    "scores", [[1, 3, 2], [1.5, math.nan, 1.5], [math.inf, -math.inf, 0.0], [2, 2, 2]]
)
def test_the_best_result_is_rays(scores: list[float], mode: str) -> None:
    lines = [{"score": score, "date": "today", "step": n} for n, score in enumerate(scores)]
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    assert same(row_of(content, "score", mode), rays_row(content, "score", mode))


def test_what_trials_report_is_not_left_to_ray() -> None:
    line = {"score": 1.5, "date": "today", "done": False, "config": {"a": 1}, "trial_id": "x"}
    assert row_of((json.dumps(line) + "\n").encode() * 3) == {
        "score": 1.5,
        "date": "today",
        "done": False,
        "trial_id": "x",
        "config/a": 1,
    }


def test_nothing_was_reported() -> None:
    assert row_of(b"") is None
    assert row_of(b"\n") is None
