"""Compresses the results of a trial column by column, to a few bytes each.

Results of one trial have the same keys, and most values change little or not at all from one to
the next: the config, the host, counters, clocks. In columns they are a constant, a range or small
differences. What is left are the digits of the metrics themselves.

The content of a chunk is one byte for its layout, then compressed data:

- ``R``: the encoded results in a row (``result_values``), with the store's dictionary;
- ``S``: the same without a dictionary, for many results that have no common columns, or keys that
  are neither texts nor integers of 64 bits;
- ``C``: columns, for each run of neighbouring results with the same keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import zstandard

from ray_tune_memguard.store.result_values import (
    Result,
    ResultEncoder,
    decode,
    pack_parts,
    unpack_parts,
)

Compress = Callable[[bytes], bytes]
# The keys of a value, from the outermost to its own: texts, or integers of 64 bits.
Path = tuple[Any, ...]
Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
#: A column as it is written: its kind, then its parameters.
Spec = list[Any]

_ROWS, _STREAM, _COLUMNS = b"R", b"S", b"C"
#: Fewer results are smaller with a dictionary than in columns.
MIN_COLUMN_RESULTS = 16
# Results with the same keys in a row, on average; with fewer, the headers are larger than the data.
_MIN_RUN = 8
_LEVEL = 9
_TRIAL_LEVEL = 1
# Clocks since 2004 are multiples of this power of two, and so are their differences.
_CLOCK = 2.0**22
_MAX_DECIMALS = 6
# Beyond it, not every integer is a float.
_MAX_EXACT = 2.0**53
_MIN_INT64, _MAX_INT64 = -(2**63), 2**63 - 1

_CONSTANT, _SAME, _RANGE, _SUM = "=", "~", "+", "s"
_INTEGERS, _FLOATS, _SCALED, _NUMPY = "i", "f", "k", "n"
_TEXTS, _VALUES = "t", "v"

# What is encoded here was encoded before, so nothing has to be replaced.
_ENCODER = ResultEncoder(replace=str)


def pack(rows: Sequence[bytes], compress: Compress) -> bytes:
    """The content of a chunk.

    Args:
        rows: encoded results, at least one.
        compress: compresses with the store's dictionary.
    """
    joined = b"".join(rows)
    if len(rows) < MIN_COLUMN_RESULTS:
        return _ROWS + compress(joined)
    try:
        runs = list(_runs(decode(joined)))
    except (TypeError, RecursionError):  # Of keys, or of values that are nested very deeply.
        runs = []
    if not runs or len(runs) * _MIN_RUN > len(rows):
        return _STREAM + zstandard.compress(joined, _LEVEL)
    parts = [[len(found), paths, _pack_columns(found)] for paths, found in runs]
    return _COLUMNS + zstandard.compress(pack_parts(parts), _LEVEL)


def unpack(content: bytes, decompress: Compress) -> list[Result]:
    """The results in a chunk.

    Args:
        content: the content of a chunk.
        decompress: decompresses with the store's dictionary.

    Raises:
        ValueError: the bytes are damaged.
    """
    layout, packed = content[:1], content[1:]
    if layout == _COLUMNS:
        results: list[Result] = []
        for count, paths, specs in unpack_parts(_decompress(packed)):
            results += _nested(paths, _unpack_columns(specs, count), count)
        return results
    if layout not in (_ROWS, _STREAM):
        raise ValueError(f"unknown layout {layout!r}")
    return decode(decompress(packed) if layout == _ROWS else _decompress(packed))


def encoded_rows(content: bytes, decompress: Compress) -> list[bytes]:
    """The results in a chunk, encoded one by one.

    Raises:
        ValueError: the bytes are damaged.
    """
    return [_ENCODER.encode(result) for result in unpack(content, decompress)]


def _decompress(packed: bytes) -> bytes:
    try:
        return zstandard.decompress(packed)
    except (zstandard.ZstdError, MemoryError) as error:
        raise ValueError(f"it cannot be decompressed: {error}") from error


# Between rows and columns.


def _runs(results: Sequence[Result]) -> Iterator[tuple[list[Path], list[list[object]]]]:
    """Neighbouring results with the same keys: the paths of the values, and those of each."""
    shape: list[Path] | None = None
    found: list[list[object]] = []
    for result in results:
        paths: list[Path] = []
        values: list[object] = []
        _flatten(result, (), paths, values)
        if paths != shape:
            if shape is not None:
                yield shape, found
            shape, found = paths, []
        found.append(values)
    if shape is not None:
        yield shape, found


def _flatten(value: dict[Any, Any], above: Path, paths: list[Path], values: list[object]) -> None:
    for key, inner in value.items():
        # Paths hold no others, and True is equal to 1.
        if type(key) is not str and not (type(key) is int and _MIN_INT64 <= key <= _MAX_INT64):
            raise TypeError(f"a column has no key {key!r}")
        if type(inner) is dict and inner:
            _flatten(inner, (*above, key), paths, values)
        else:
            paths.append((*above, key))
            values.append(inner)


def _nested(paths: Sequence[Path], columns: Sequence[Sequence[object]], count: int) -> list[Result]:
    results: list[Result] = [{} for _ in range(count)]
    for (*above, name), column in zip(paths, columns, strict=True):
        for result, value in zip(results, column, strict=True):
            at = result
            for part in above:
                at = at.setdefault(part, {})
            at[name] = value
    return results


def _pack_columns(rows: list[list[object]]) -> list[Spec]:
    specs: list[Spec] = []
    first_with: dict[tuple[type, bytes], int] = {}
    last_floats: tuple[int, Array] | None = None
    for index, values in enumerate(zip(*rows, strict=True)):
        kind = _common_type(values)
        array = _array_of(values, kind)
        if array is None:
            specs.append(_pack_values(values, kind))
            continue
        same = first_with.setdefault((kind, array.tobytes()), index)
        if bool((_bits(array) == _bits(array)[0]).all()):
            specs.append([_CONSTANT, _ENCODER.encode(values[0])])
        elif same != index:
            specs.append([_SAME, same])
        elif kind is int:
            specs.append(_pack_integers(array))
        elif kind is float:
            specs.append(_pack_floats(array, last_floats))
            last_floats = index, array
        else:
            specs.append([_NUMPY, array.dtype.str, _transposed(array)])
    return specs


def _unpack_columns(specs: Sequence[Spec], count: int) -> list[Sequence[object]]:
    columns: list[Sequence[object]] = []
    for kind, *parameters in specs:
        if kind == _CONSTANT:
            found = decode(parameters[0])
            # One value for each, since a caller may change one of them.
            is_shared = type(found[0]) in (str, int, float, bool, type(None))
            columns.append(found * count if is_shared else decode(parameters[0] * count))
        elif kind == _VALUES:
            columns.append(decode(parameters[0]))
        elif kind == _SAME:
            columns.append(columns[parameters[0]])
        elif kind == _RANGE:
            first, step = parameters
            columns.append([first + step * number for number in range(count)])
        elif kind == _TEXTS:
            columns.append(_unpack_texts(parameters[0], parameters[1], count))
        elif kind == _NUMPY:
            columns.append(list(_restored(parameters[1], parameters[0])))
        elif kind == _INTEGERS:
            columns.append(_undifferenced(parameters, count).tolist())
        elif kind in (_FLOATS, _SCALED, _SUM):
            columns.append(_unpack_floats(kind, parameters, columns, count).tolist())
        else:
            raise ValueError(f"unknown kind of column {kind!r}")
    return columns


def _common_type(values: Sequence[object]) -> type:
    kinds = set(map(type, values))
    return kinds.pop() if len(kinds) == 1 else object


def _array_of(values: Sequence[Any], kind: type) -> Array | None:
    """The numbers of a column; None if it has other values."""
    if kind is float:
        return np.array(values, np.float64)
    if kind is int:
        is_small = min(values) >= _MIN_INT64 and max(values) <= _MAX_INT64
        return np.array(values, np.int64) if is_small else None
    if issubclass(kind, np.generic) and values[0].dtype.kind in "iuf" and values[0].nbytes <= 8:
        return np.array(values, values[0].dtype)
    return None


def _bits(array: Array) -> Array:
    """The numbers as integers of the same bits: of NaN and of zeros with a sign, == says less."""
    return array.view(f"u{array.dtype.itemsize}")


# Texts and other values.


def _pack_values(values: Sequence[Any], kind: type) -> Spec:
    encoded = [_ENCODER.encode(value) for value in values]
    if encoded.count(encoded[0]) == len(encoded):
        return [_CONSTANT, encoded[0]]
    if kind is str:
        length = len(values[0])
        text = "".join(values)
        if length and text.isascii() and all(len(value) == length for value in values):
            letters = np.frombuffer(text.encode(), np.uint8).reshape(len(values), length)
            return [_TEXTS, length, letters.T.tobytes()]
    return [_VALUES, b"".join(encoded)]


def _unpack_texts(length: int, packed: bytes, count: int) -> list[str]:
    text = np.frombuffer(packed, np.uint8).reshape(length, count).T.tobytes().decode()
    return [text[at : at + length] for at in range(0, len(text), length)]


# Numbers.


def _pack_integers(array: Array) -> Spec:
    # Differences of large numbers wrap around, and back again.
    steps = np.diff(array)
    first, step = int(array[0]), int(steps[0])
    is_range = bool((steps == step).all()) and abs(first + step * len(array)) <= _MAX_INT64
    return [_RANGE, first, step] if is_range else [_INTEGERS, *_differenced(array)]


def _pack_floats(array: Array, before: tuple[int, Array] | None) -> Spec:
    """The shortest of several ways to write floats, each of which gives back the same bits."""
    if before is not None:
        index, parts = before
        if _is_equal(_summed(array[0], parts), array):
            return [_SUM, index, float(array[0])]
    ways: list[Spec] = [[_FLOATS, *_differenced(array.view(np.int64))]]
    with np.errstate(all="ignore"):
        for scale in (_CLOCK, *(10.0**decimals for decimals in range(_MAX_DECIMALS + 1))):
            scaled = np.rint(array * scale)
            if not (np.abs(scaled) < _MAX_EXACT).all():
                continue
            # As they will be read: integers have no zero with a sign.
            integers = scaled.astype(np.int64)
            if _is_equal(integers / scale, array):
                ways.append([_SCALED, scale, *_differenced(integers)])
                break
    return min(ways, key=lambda way: _compressed_size(way[-1]))


def _unpack_floats(
    kind: str, parameters: Spec, columns: Sequence[Sequence[object]], count: int
) -> Array:
    if kind == _SUM:
        index, first = parameters
        return _summed(first, np.array(columns[index], np.float64))
    if kind == _FLOATS:
        return _undifferenced(parameters, count).view(np.float64)
    return _undifferenced(parameters[1:], count) / parameters[0]


def _summed(first: float, parts: Array) -> Array:
    """The running sums of all but the first part, added one after the other."""
    with np.errstate(all="ignore"):
        return np.add.accumulate(np.concatenate(([first], parts[1:])))


def _is_equal(one: Array, other: Array) -> bool:
    return bool((_bits(one) == _bits(other)).all())


def _differenced(array: Array) -> tuple[bool, bytes]:
    """Integers as bytes, and whether they are differences, which are shorter if they are small."""
    plain, differences = (
        _transposed(array),
        _transposed(np.diff(array, prepend=array.dtype.type(0))),
    )
    is_shorter = _compressed_size(differences) < _compressed_size(plain)
    return is_shorter, differences if is_shorter else plain


def _undifferenced(parameters: Spec, count: int) -> Array:
    is_differenced, packed = parameters
    array = _restored(packed, "<i8")
    if len(array) != count:
        raise ValueError("a column has another length")
    return np.cumsum(array, dtype=np.int64) if is_differenced else array


def _transposed(array: Array) -> bytes:
    """All first bytes, all second bytes, …: the high ones of similar numbers are equal."""
    size = array.dtype.itemsize
    return np.ascontiguousarray(array).view(np.uint8).reshape(-1, size).T.tobytes()


def _restored(packed: bytes, dtype: str) -> Array:
    kind = np.dtype(dtype)
    flat = np.frombuffer(packed, np.uint8).reshape(kind.itemsize, -1).T
    return np.ascontiguousarray(flat).view(kind).reshape(-1)


def _compressed_size(content: bytes) -> int:
    return len(zstandard.compress(content, _TRIAL_LEVEL))
