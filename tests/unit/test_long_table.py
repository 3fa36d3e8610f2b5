"""A long table is what ``tabulate`` makes of it, to the letter, or is left to it."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from ray._private.thirdparty.tabulate.tabulate import tabulate
from ray.tune.experimental.output import AIR_TABULATE_TABLEFMT

from ray_tune_memguard.adapter.analysis.last_table import _frame
from ray_tune_memguard.report.long_table import UnusualTableError, blocks

FRAME = _frame(AIR_TABULATE_TABLEFMT)
_TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=9)
_NUMBER_LIKE = st.sampled_from(
    [
        "1",
        "-2",
        " 3",
        "4.5",
        "1e5",
        "1e999",
        "inf",
        "Infinity",
        "nan",
        "True",
        "1_000",
        "1,000",
        "0x1",
    ]
)
_NUMPY = st.one_of(
    st.floats(width=32).map(np.float32),
    st.integers(-9, 9).map(np.int64),
    st.floats().map(np.float64),
)
_ODD = st.sampled_from(
    [2**70, Fraction(1, 3), 1 + 2j, "ä", "\x1b[1mbold\x1b[0m", "\x01", "a\nb", "-"]
)
#: Columns are of one kind, of several, or of anything.
_CELLS: list[st.SearchStrategy[Any]] = [
    st.floats(),
    st.integers(),
    st.booleans(),
    _TEXT,
    _NUMBER_LIKE,
    _NUMPY,
    _TEXT | _ODD,
    st.none() | st.floats() | st.integers() | st.booleans(),
    st.none() | st.floats() | _NUMPY | _NUMBER_LIKE,
    st.none() | st.integers() | _TEXT | st.floats() | _NUMPY | _ODD,
    st.none(),
]


@st.composite
def tables(draw: Any) -> tuple[list[list[Any]], list[str]]:
    columns = draw(st.lists(st.sampled_from(_CELLS), min_size=1, max_size=4))
    rows = draw(st.lists(st.tuples(*columns).map(list), min_size=1, max_size=5))
    headers = draw(st.lists(_TEXT, min_size=len(columns), max_size=len(columns)))
    return rows, headers


def rendered_by_ray(rows: list[list[Any]], headers: list[str], **how: Any) -> str:
    return str(
        tabulate(rows, headers=headers, tablefmt=AIR_TABULATE_TABLEFMT, showindex=False, **how)
    )


@given(tables())
@example(([[0.5, "a"], [1e-05, ""], [None, None], [float("inf"), "b "]], ["", "h"]))
@example(([[True, 1], [False, 2.5]], ["a header", "x"]))
def test_a_table_is_that_of_tabulate(table: tuple[list[list[Any]], list[str]]) -> None:
    rows, headers = table
    try:
        made = "\n".join(blocks(rows, headers, FRAME))
    except UnusualTableError:
        return
    assert made == rendered_by_ray(rows, headers)


@given(tables(), st.lists(st.sampled_from(["left", "right"]), min_size=4, max_size=4))
def test_columns_are_aligned_as_told(
    table: tuple[list[list[Any]], list[str]], sides: list[str]
) -> None:
    rows, headers = table
    told = sides[: len(headers)]
    try:
        made = "\n".join(blocks(rows, headers, FRAME, told))
    except UnusualTableError:
        return
    assert made == rendered_by_ray(rows, headers, colalign=told)


USUAL = [f"trial_{number:05d}" for number in range(2500)]


def test_a_block_at_a_time_is_the_same_text() -> None:
    rows: list[list[Any]] = [[name, 10.0 ** (i % 7 - 3), i] for i, name in enumerate(USUAL)]
    rows[1700][1] = None
    rows[2100][1] = 123456.789
    made = list(blocks(rows, ["Trial name", "loss", "iter"], FRAME))
    assert len(made) > 2
    assert "\n".join(made) == rendered_by_ray(rows, ["Trial name", "loss", "iter"])


@pytest.mark.parametrize(
    "cell", ["ä", "\x1b[31mred\x1b[0m", "\x01", "two\nlines", b"bytes", [1], object()]
)
def test_what_may_take_another_width_is_left_to_tabulate(cell: Any) -> None:
    with pytest.raises(UnusualTableError):
        blocks([["a", 1.0], [cell, 2.0]], ["name", "loss"], FRAME)


@pytest.mark.parametrize("rows", [[["True"], [1.5]], [[2**2000], [1.5]], [["a"], ["b", "c"]]])
def test_what_tabulate_refuses_is_left_to_it(rows: Any) -> None:
    with pytest.raises(UnusualTableError):
        blocks(rows, ["x"], FRAME)
