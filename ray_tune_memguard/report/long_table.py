"""Renders a long table as ``tabulate`` does, a block of lines at a time.

Reason: ``tabulate`` keeps several copies of each cell until the whole text is made. Ray's last
table, of 100,000 trials with eight columns, took 5 s and 200 MB, which nothing else in a driver
needed. This module takes a tenth of the time, and memory for one block. It renders what such tables
have: numbers and printable ASCII text in a plain frame. It refuses any other table before the first
block.

``tests/unit/test_long_table.py`` compares it with ``tabulate`` on tables of every kind.
"""

from __future__ import annotations

import enum
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Number
from typing import Any

Row = Sequence[Any]

_BLOCK_ROWS = 1000
#: ``tabulate`` makes each column wider than its header by so much.
_MIN_PADDING = 2


@dataclass(frozen=True)
class Frame:
    """The lines around the cells.

    Attributes:
        above, below_header, below: the text on the left of a horizontal line, the character that
            fills it, what is between two columns, and the text on the right.
        header, row: the text before the first cell, between two cells, and behind the last.
        padding: the spaces on both sides of each cell.
    """

    above: tuple[str, str, str, str]
    below_header: tuple[str, str, str, str]
    below: tuple[str, str, str, str]
    header: tuple[str, str, str]
    row: tuple[str, str, str]
    padding: int


class UnusualTableError(Exception):
    """The table has something that this module might render differently from ``tabulate``."""


def blocks(
    rows: Sequence[Row],
    headers: Sequence[str],
    frame: Frame,
    colalign: Sequence[str] | None = None,
) -> Iterator[str]:
    """The text of a table, in blocks of whole lines without the last line feed.

    Args:
        rows: the cells, at least one row; they are read three times.
        headers: the header of each column.
        frame: the lines around the cells.
        colalign: for each column "left" or "right"; None: columns of numbers are aligned by their
            decimal points, others to the left.

    Raises:
        UnusualTableError: the table is left to ``tabulate``.
    """
    _check_text("".join(headers))
    sides = colalign or itertools.repeat(None, len(headers))
    columns = [_Column(*one) for one in zip(headers, sides, strict=True)]
    for some in _by_column(rows, len(columns)):
        for column, cells in zip(columns, some, strict=True):
            column.note_kinds(cells)
    for some in _by_column(rows, len(columns)):
        for column, cells in zip(columns, some, strict=True):
            column.note_widths(cells)
    return _rendered(rows, columns, frame)


def _rendered(rows: Sequence[Row], columns: Sequence[_Column], frame: Frame) -> Iterator[str]:
    widths = [column.width + 2 * frame.padding for column in columns]
    lines = [
        _rule(frame.above, widths),
        *_lines(frame.header, frame.padding, [[column.heading()] for column in columns]),
        _rule(frame.below_header, widths),
    ]
    for some in _by_column(rows, len(columns)):
        texts = [column.aligned(cells) for column, cells in zip(columns, some, strict=True)]
        lines += _lines(frame.row, frame.padding, texts)
        yield "\n".join(lines)
        lines = []
    yield _rule(frame.below, widths)


def _by_column(rows: Sequence[Row], count: int) -> Iterator[list[Row]]:
    """Some rows after the other, as columns of cells."""
    for start in range(0, len(rows), _BLOCK_ROWS):
        some = rows[start : start + _BLOCK_ROWS]
        if set(map(len, some)) != {count}:
            raise UnusualTableError("rows without a cell for each header")
        yield list(zip(*some, strict=True))


def _lines(around: tuple[str, str, str], padding: int, columns: Sequence[list[str]]) -> list[str]:
    pad = " " * padding
    start, between, end = around[0] + pad, pad + around[1] + pad, pad + around[2]
    return [f"{start}{between.join(cells)}{end}".rstrip() for cells in zip(*columns, strict=True)]


def _rule(line: tuple[str, str, str, str], widths: Sequence[int]) -> str:
    start, fill, between, end = line
    return f"{start}{between.join(fill * width for width in widths)}{end}".rstrip()


class _Kind(enum.IntEnum):
    """The types of ``tabulate``. A column has the highest of its cells', and at least BOOL."""

    NONE = 0
    BOOL = 1
    INT = 2
    FLOAT = 3
    TEXT = 4


_KINDS: dict[type, _Kind] = {
    type(None): _Kind.NONE,
    bool: _Kind.BOOL,
    int: _Kind.INT,
    float: _Kind.FLOAT,
}


@dataclass
class _Column:
    """How the cells of a column are aligned, by what was noted of all of them.

    Attributes:
        header: its header.
        side: "left", "right" or None, see :func:`blocks`.
        kind: its kind.
        decimals: the most characters behind a decimal point; -1 without a point, as ``tabulate``
            counts.
        wholes: the most characters up to the decimal point, or of a text, less those -1.
    """

    header: str
    side: str | None
    kind: _Kind = _Kind.BOOL
    decimals: int = -1
    wholes: int = 0

    def note_kinds(self, cells: Row) -> None:
        """Read the types of some cells.

        Raises:
            UnusualTableError: a cell is neither a number nor plain text.
        """
        kinds = set(map(type, cells))
        if str in kinds:
            texts = [cell for cell in cells if isinstance(cell, str)]
            _check_text("".join(texts))
            if self.kind is not _Kind.TEXT:
                self.kind = max(self.kind, *map(_kind_of_text, texts))
        for kind in kinds - {str}:
            known = _KINDS.get(kind)
            if known is None:
                known = max(_kind_of_number(cell) for cell in cells if type(cell) is kind)
            self.kind = max(self.kind, known)

    def note_widths(self, cells: Row) -> None:
        """Measure the texts of some cells, once the kinds of all are known.

        Raises:
            UnusualTableError: ``tabulate`` would raise an exception.
        """
        try:
            texts = self._texts(cells)
        except (TypeError, ValueError, OverflowError) as error:
            raise UnusualTableError(repr(error)) from error
        if self._has_points:
            decimals = list(map(_decimals, texts))
            self.decimals = max(self.decimals, *decimals)
            wholes = [len(text) - count for text, count in zip(texts, decimals, strict=True)]
            self.wholes = max(self.wholes, *wholes)
        else:
            self.wholes = max(self.wholes, *(len(text) + 1 for text in texts))

    @property
    def width(self) -> int:
        return max(self.wholes + self.decimals, len(self.header) + _MIN_PADDING)

    def heading(self) -> str:
        side = self.side or ("right" if self._is_decimal else "left")
        return self.header.rjust(self.width) if side == "right" else self.header.ljust(self.width)

    def aligned(self, cells: Row) -> list[str]:
        texts, width = self._texts(cells), self.width
        if self._has_points:
            most = self.decimals
            pads = [" " * count for count in range(most + 2)]
            return [f"{text}{pads[most - _decimals(text)]}".rjust(width) for text in texts]
        if self.side == "right" or self._is_decimal:
            return [text.rjust(width) for text in texts]
        return [text.ljust(width) for text in texts]

    @property
    def _is_decimal(self) -> bool:
        return self.side is None and self.kind in (_Kind.INT, _Kind.FLOAT)

    @property
    def _has_points(self) -> bool:
        return self.side is None and self.kind is _Kind.FLOAT

    def _texts(self, cells: Row) -> list[str]:
        if self.kind is _Kind.FLOAT:
            # In half the time of `f"{float(cell):g}"`, of which a table needs a million.
            numbers = [
                cell if cell is None or type(cell) is float else float(cell) for cell in cells
            ]
            return ["" if number is None else "%g" % number for number in numbers]  # noqa: UP031
        texts = ["" if cell is None else f"{cell}" for cell in cells]
        return texts if self._is_decimal else [text.strip() for text in texts]


def _kind_of_text(text: str) -> _Kind:
    if text in ("True", "False"):
        return _Kind.BOOL
    for kind, convert in ((_Kind.INT, int), (_Kind.FLOAT, float)):
        try:
            number = convert(text)
        except ValueError:
            continue
        if math.isfinite(number) or text.lower() in ("inf", "-inf", "nan"):
            return kind
    return _Kind.TEXT


def _kind_of_number(cell: Any) -> _Kind:
    """The kind of a number of a class that Python does not have, NumPy's for example."""
    if not isinstance(cell, Number):
        raise UnusualTableError(f"a cell of {type(cell)}")
    try:
        float(cell)  # type: ignore[arg-type] # A complex number raises.
    except (TypeError, ValueError):
        return _Kind.TEXT
    return _Kind.FLOAT


def _decimals(number: str) -> int:
    """Characters behind the decimal point or the ``e``; -1 without any."""
    size = len(number)
    return size - (number.rfind(".") + 1 or number.rfind("e") + 1 or size + 1)


def _check_text(text: str) -> None:
    """Check that each character takes one column, and that none is one of ``tabulate``'s own."""
    if not (text.isascii() and text.isprintable()):
        raise UnusualTableError("a character that is not printable ASCII")
