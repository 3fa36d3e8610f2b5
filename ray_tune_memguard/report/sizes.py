"""Writes amounts of memory for people."""

from __future__ import annotations

_UNITS = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))


def size(count: float) -> str:
    """Bytes with the unit that suits them, in three digits or so.

    Examples:
        >>> size(1.5 * 2**30), size(812 * 2**20), size(17)
        ('1.5 GiB', '812 MiB', '17 B')
    """
    for unit, limit in _UNITS:
        if abs(count) >= limit:
            amount = count / limit
            return f"{amount:.{1 if abs(amount) < 100 else 0}f} {unit}"
    return f"{count:.0f} B"
