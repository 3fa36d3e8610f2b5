"""Collects results column by column, in typed chunks, for a DataFrame or an Arrow table.

A result takes 8 bytes a number in it, where a dictionary takes some 60.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas
    import pyarrow

_CHUNK_ROWS = 4096
_FIRST = "trial_id"


class ResultTable:
    """Rows of results that need not have the same keys.

    Args:
        columns: the keys to keep, in their order; None for all, in the order of their appearance.
    """

    def __init__(self, columns: Sequence[str] | None = None) -> None:
        self._is_open = columns is None
        self._columns = {name: _Column(name) for name in columns or (_FIRST,)}
        self._rows = 0
        self._pending: list[Mapping[str, object]] = []

    def add(self, result: Mapping[str, object]) -> None:
        self._pending.append(result)
        if len(self._pending) >= _CHUNK_ROWS:
            self._pack()

    def _pack(self) -> None:
        rows, self._pending = self._pending, []
        if self._is_open:
            for name in dict.fromkeys(key for row in rows for key in row):
                if name not in self._columns:
                    self._columns[name] = _Column(name, missing=self._rows)
        self._rows += len(rows)
        for name, column in self._columns.items():
            column.add([row.get(name) for row in rows])

    def arrow(self) -> pyarrow.Table:
        import pyarrow

        self._pack()
        return pyarrow.table({name: column.arrow() for name, column in self._columns.items()})

    def pandas(self) -> pandas.DataFrame:
        import pandas

        self._pack()
        return pandas.DataFrame({name: column.pandas() for name, column in self._columns.items()})


class _Column:
    """The values of one column: chunks that Arrow can type, and others as lists."""

    def __init__(self, name: str, missing: int = 0) -> None:
        import pyarrow

        self._name = name
        self._chunks: list[Any] = [pyarrow.nulls(missing)] if missing else []

    def add(self, values: list[object]) -> None:
        import pyarrow

        try:
            self._chunks.append(pyarrow.array(values))
        except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError, OverflowError):
            self._chunks.append(values)

    def _typed(self) -> pyarrow.ChunkedArray | None:
        """All values as one typed column; None if they have no type in common."""
        import pyarrow

        if any(isinstance(chunk, list) for chunk in self._chunks):
            return None
        tables = [pyarrow.table({self._name: chunk}) for chunk in self._chunks]
        try:
            whole = pyarrow.concat_tables(tables, promote_options="permissive")
        except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError):
            return None
        return whole.column(0)

    def _values(self) -> list[object]:
        return [
            value
            for chunk in self._chunks
            for value in (chunk if isinstance(chunk, list) else chunk.to_pylist())
        ]

    def arrow(self) -> pyarrow.ChunkedArray | pyarrow.Array:
        import pyarrow

        typed = self._typed()
        if typed is not None:
            return typed
        return pyarrow.array(
            None if value is None else json.dumps(value) for value in self._values()
        )

    def pandas(self) -> pandas.Series:
        import pandas

        typed = self._typed()
        if typed is not None:
            return typed.to_pandas()
        return pandas.Series(self._values(), dtype=object)
