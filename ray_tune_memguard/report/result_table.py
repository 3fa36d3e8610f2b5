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
# How Arrow says that values have no type in common: ArrowInvalid and UnicodeEncodeError are a
# ValueError, ArrowTypeError is a TypeError.
_NO_COMMON_TYPE = (ValueError, TypeError, OverflowError, NotImplementedError)
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
        columns = self._columns.values()
        return pyarrow.table({column.arrow_name: column.arrow() for column in columns})

    def pandas(self) -> pandas.DataFrame:
        import pandas

        self._pack()
        columns = self._columns.values()
        frame = pandas.DataFrame({column.arrow_name: column.pandas() for column in columns})
        if list(frame.columns) != list(self._columns):  # pandas asks Arrow for the type.
            frame.columns = pandas.Index(list(self._columns), dtype=object)
        return frame


class _Column:
    """The values of one column: chunks of Arrow's where it keeps each value, others as lists."""

    def __init__(self, name: str, missing: int = 0) -> None:
        import pyarrow

        # Arrow's texts have no halves of surrogate pairs.
        self.arrow_name = _plain_text(name)
        self._chunks: list[Any] = [pyarrow.nulls(missing)] if missing else []
        # Whether there are lists or dictionaries, which pandas has as they are.
        self._is_nested = False

    def add(self, values: list[object]) -> None:
        is_nested = any(isinstance(value, (list, dict)) for value in values)
        self._is_nested |= is_nested
        array = _array_of(values)
        # Inside a list or a dictionary, Arrow gives numbers one type, and dictionaries all keys.
        if array is None or (is_nested and json.dumps(array.to_pylist()) != json.dumps(values)):
            self._chunks.append(values)
        else:
            self._chunks.append(array)

    def _typed(self) -> pyarrow.ChunkedArray | None:
        """All values as one typed column; None if they have no type in common."""
        import pyarrow

        chunks = [_array_of(one) if isinstance(one, list) else one for one in self._chunks]
        if any(chunk is None for chunk in chunks):
            return None
        tables = [pyarrow.table({"values": chunk}) for chunk in chunks]
        try:
            whole = pyarrow.concat_tables(tables, promote_options="permissive").column(0)
        except _NO_COMMON_TYPE:
            # Older versions of Arrow find a type for values that they find none for their types.
            whole = _array_of(self._values())
        return None if whole is None or _has_empty_struct(whole.type) else whole

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
        values = self._values()
        if all(value is None or isinstance(value, str) for value in values):
            return pyarrow.array(
                None if value is None else _plain_text(str(value)) for value in values
            )
        return pyarrow.array(None if value is None else json.dumps(value) for value in values)

    def pandas(self) -> pandas.Series:
        import pandas

        typed = None if self._is_nested else self._typed()
        if typed is not None:
            return typed.to_pandas()
        return pandas.Series(self._values(), dtype=object)


def _array_of(values: list[object]) -> pyarrow.Array | None:
    import pyarrow

    try:
        return pyarrow.array(values)
    except _NO_COMMON_TYPE:
        return None


def _plain_text(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()


def _has_empty_struct(kind: pyarrow.DataType) -> bool:
    """Whether there is a structure without fields in a type; Parquet has none."""
    import pyarrow

    if pyarrow.types.is_list(kind):
        return _has_empty_struct(kind.value_type)
    if not pyarrow.types.is_struct(kind):
        return False
    inner = [kind[number].type for number in range(kind.num_fields)]
    return not inner or any(map(_has_empty_struct, inner))
