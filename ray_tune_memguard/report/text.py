"""A diagnosis as a person reads it in a terminal."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping

from ray_tune_memguard.memory.growth import SHORTEST_SPAN
from ray_tune_memguard.report.findings import GrowingHolder, Quantity, TypeGrowth

_WIDTH = 100
_MOST_ROWS = 10


def size(count: float) -> str:
    """Bytes, with the unit that suits."""
    if not math.isfinite(count):
        return "?"
    for unit, limit in (("MiB", 2**20), ("KiB", 2**10)):
        if abs(count) >= limit:
            return f"{count / limit:.1f} {unit}"
    return f"{count:.0f} B"


def slope(value: float | None, uncertainty: float | None) -> str:
    """Bytes per trial, with its uncertainty, in one unit."""
    if value is None:
        return "?"
    unit, name = (1024.0, "KiB") if abs(value) >= 1024 else (1.0, "B")
    digits = 1 if unit > 1 else 0
    text = f"{value / unit:+.{digits}f}"
    if uncertainty is not None:
        text += f" ± {uncertainty / unit:.{digits}f}"
    return f"{text} {name}"


def line(holder: GrowingHolder, trials: int) -> str:
    """One line about one holder that begins to show."""
    figure = slope(holder.bytes_per_trial, None)
    told = f"trial#{trials}  {holder.name} grows by {figure} per trial"
    told += f"  ({holder.path or holder.part})"
    return told if len(told) <= _WIDTH else f"{told[: _WIDTH - 2]} …"


def parts(trials: int, results: int, found: list[Quantity], absent: Mapping[str, str]) -> list[str]:
    """The parts of RSS, and what is not known of them."""
    lines = [f"Memory of the driver after {trials:,} trials and {results:,} results"]
    lines += _quantities("", found)
    if results > 2 * trials:
        slopes = [f"{part.name} {slope(part.per_result, None)}" for part in found]
        lines.append(f"  per result: {', '.join(slopes)}")
    lines += [f"  {name:<28} not known: {reason}" for name, reason in absent.items()]
    return lines


def growth(holders: list[GrowingHolder], types: list[TypeGrowth], span: int) -> list[str]:
    """What grows, or that nothing does."""
    if holders:
        lines = ["What grows, by bytes per trial:"]
        for holder in holders[:_MOST_ROWS]:
            figure = slope(holder.bytes_per_trial, holder.uncertainty)
            lines.append(f"  {figure:>22}  {holder.name} ({holder.part}, {size(holder.bytes)})")
            for told in (holder.path, holder.advice):
                lines += textwrap.wrap(
                    told, _WIDTH, initial_indent=" " * 26, subsequent_indent=" " * 26
                )
        if len(holders) > _MOST_ROWS:
            lines.append(f"  … and {len(holders) - _MOST_ROWS} more")
    elif span < SHORTEST_SPAN:
        lines = [
            f"Too few trials to tell what grows: {max(0, span)} since warm-up, of "
            f"{SHORTEST_SPAN} that it takes."
        ]
    else:
        lines = ["Nothing grows steadily with trials."]
    if types:
        lines.append("Types of which there are more with every trial:")
        lines += [
            f"  {kind.per_trial:>+16.2f} a trial  {kind.name}  {kind.path}"[:_WIDTH]
            for kind in types[:_MOST_ROWS]
        ]
    return lines


def processes(found: list[Quantity]) -> list[str]:
    """Ray's other processes."""
    return _quantities("Ray's other processes on this machine:", found)


def _quantities(title: str, rows: list[Quantity]) -> list[str]:
    lines = [title] if title and rows else []
    for row in rows:
        figure = slope(row.per_trial, row.uncertainty)
        lines.append(f"  {row.name:<28}{size(row.bytes):>12}  {figure:>22} per trial")
        if row.advice:
            lines += textwrap.wrap(
                row.advice, _WIDTH, initial_indent=" " * 30, subsequent_indent=" " * 30
            )
    return lines
