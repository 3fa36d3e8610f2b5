"""Prints Ray's last tables of all trials, and of those that failed, a block of lines at a time.

Ray makes each of them as one text, which takes 2 KB a trial. Each function here replaces one of
Ray's, which is its first argument (``patches``).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.experimental.output import AIR_TABULATE_TABLEFMT, TuneTerminalReporter

from ray_tune_memguard.adapter.boundary import RaysOwn
from ray_tune_memguard.lazy.trial_list import SpilledTrials
from ray_tune_memguard.report import long_table
from ray_tune_memguard.report.long_table import Frame, Row, UnusualTableError
from ray_tune_memguard.system.collector import no_collection

#: Arguments that are taken into account.
_KNOWN = {"colalign", "showindex"}
# Shorter tables take no memory that anybody would miss.
_MIN_ROWS = 1000
#: Whether Ray is printing about a run that spills.
_is_spilling: ContextVar[bool] = ContextVar("is_spilling", default=False)


def print_heartbeat(
    rays: RaysOwn,
    reporter: TuneTerminalReporter,
    trials: list[Trial],
    *args: object,
    **kwargs: object,
) -> object:
    if not isinstance(trials, SpilledTrials):
        return rays(reporter, trials, *args, **kwargs)
    token = _is_spilling.set(True)
    try:
        # A row of the last table is a list. Collections would walk over them again and again.
        with no_collection():
            return rays(reporter, trials, *args, **kwargs)
    finally:
        _is_spilling.reset(token)


def table(
    rays: RaysOwn,
    rows: Sequence[Row],
    headers: Sequence[str] = (),
    tablefmt: object = "simple",
    **others: Any,
) -> object:
    """Print all blocks of a long table but the last, and return that, which Ray prints next."""

    def original() -> object:
        return rays(rows, headers=headers, tablefmt=tablefmt, **others)

    if not _is_spilling.get() or len(rows) < _MIN_ROWS:
        return original()
    if others.keys() - _KNOWN or others.get("showindex") is not False:
        return original()
    try:
        blocks = long_table.blocks(rows, headers, _frame(tablefmt), others.get("colalign"))
    except UnusualTableError:
        return original()
    last = next(blocks)
    for block in blocks:
        rays.call(print, last)
        last = block
    return last


def _frame(tablefmt: Any) -> Frame:
    """The lines around the cells of Ray's tables.

    Raises:
        UnusualTableError: they are other ones.
    """
    if type(tablefmt) is not type(AIR_TABULATE_TABLEFMT):
        raise UnusualTableError("a format by name")
    lines = (
        tablefmt.lineabove,
        tablefmt.linebelowheader,
        tablefmt.linebelow,
        tablefmt.headerrow,
        tablefmt.datarow,
    )
    is_plain = all(isinstance(line, tuple) for line in lines)
    if not is_plain or tablefmt.linebetweenrows or tablefmt.with_header_hide:
        raise UnusualTableError("another frame")
    return Frame(*lines, tablefmt.padding)
