"""A progress bar for whoever looks at it: on a terminal or in a notebook, not in a log file."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TypeVar

import tqdm

Item = TypeVar("Item")

SHOW_AFTER_S = 1.0


def progress_bar(
    items: Iterable[Item] | None = None,
    what: str = "",
    unit: str = "trial",
    size: int | None = None,
) -> tqdm.tqdm[Item]:
    """The items, with a progress bar if they take longer than a second.

    Args:
        items: what is walked over; None if the caller moves the bar.
        what: what is being done.
        unit: of which the items are.
        size: the number of items, or of bytes; None for the length of ``items``, if it has one.
    """
    is_seen = sys.stderr.isatty() or "ipykernel" in sys.modules
    return tqdm.tqdm(
        items,
        desc=what,
        total=size,
        unit=unit,
        unit_scale=unit == "B",
        delay=SHOW_AFTER_S,
        leave=False,
        disable=not is_seen,
    )
