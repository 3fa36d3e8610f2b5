"""Ray prints the same last table, and takes no memory for the whole of it."""

from __future__ import annotations

import io
import tracemalloc
from collections.abc import Iterator
from contextlib import redirect_stdout
from typing import Any

import pytest
from ray._private.thirdparty.tabulate import tabulate as rays
from ray.tune.experimental import output

from ray_tune_memguard.adapter.analysis import last_table

HEADERS = ["Trial name", "status", "lr", "iter", "loss"]


def rows(count: int) -> list[list[Any]]:
    return [
        [f"train_{number:05d}", "TERMINATED", 10.0 ** -(number % 6), 1, number / 7]
        for number in range(count)
    ]


def printed(table: list[list[Any]], tabulate: Any, **how: Any) -> str:
    """What Ray's own code would print of it."""
    with redirect_stdout(io.StringIO()) as out:
        print(
            tabulate(
                table,
                headers=HEADERS,
                tablefmt=output.AIR_TABULATE_TABLEFMT,
                showindex=False,
                **how,
            )
        )
    return out.getvalue()


@pytest.fixture
def is_spilling() -> Iterator[None]:
    token = last_table._is_spilling.set(True)
    yield
    last_table._is_spilling.reset(token)


@pytest.mark.usefixtures("is_spilling")
@pytest.mark.parametrize("colalign", [None, ["left", "right", "left", "right", "left"]])
@pytest.mark.parametrize("count", [10, 999, 1000, 2500])
def test_it_is_the_same_text(count: int, colalign: list[str] | None) -> None:
    how = {} if colalign is None else {"colalign": colalign}
    assert printed(rows(count), output.tabulate, **how) == printed(
        rows(count), rays.tabulate, **how
    )


@pytest.mark.usefixtures("is_spilling")
@pytest.mark.parametrize("odd", ["naïve", "\x1b[1mbold\x1b[0m", "two\nlines"])
def test_so_is_what_ray_renders_itself(odd: str) -> None:
    table = rows(1200)
    table[1100][0] = odd
    assert printed(table, output.tabulate) == printed(table, rays.tabulate)


@pytest.mark.usefixtures("is_spilling")
@pytest.mark.parametrize("how", [{"floatfmt": ".2f"}, {"missingval": "?"}])
def test_arguments_that_ray_does_not_use_today_are_left_to_it(how: dict[str, Any]) -> None:
    table = rows(1200)
    table[7][2] = None
    assert printed(table, output.tabulate, **how) == printed(table, rays.tabulate, **how)


def test_nothing_is_printed_in_a_run_that_does_not_spill() -> None:
    with redirect_stdout(io.StringIO()) as out:
        text = output.tabulate(
            rows(1200), headers=HEADERS, tablefmt=output.AIR_TABULATE_TABLEFMT, showindex=False
        )
    assert out.getvalue() == ""
    assert text.count("TERMINATED") == 1200


class Nowhere(io.StringIO):
    def write(self, text: str) -> int:
        return len(text)


@pytest.mark.usefixtures("is_spilling")
def test_memory_is_that_of_a_block() -> None:
    table = rows(20_000)
    tracemalloc.start()
    try:
        with redirect_stdout(Nowhere()):
            print(
                output.tabulate(
                    table,
                    headers=HEADERS,
                    tablefmt=output.AIR_TABULATE_TABLEFMT,
                    showindex=False,
                )
            )
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # Ray's own takes 20 million.
    assert peak < 4_000_000


@pytest.mark.usefixtures("is_spilling")
def test_an_error_while_printing_is_ray_s_own() -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError("no space left on device")

    with redirect_stdout(Full()), pytest.raises(OSError, match="no space"):
        print(
            output.tabulate(
                rows(2500),
                headers=HEADERS,
                tablefmt=output.AIR_TABULATE_TABLEFMT,
                showindex=False,
            )
        )
