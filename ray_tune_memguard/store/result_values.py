"""Encodes results as bytes without loss, and without code: no class is imported to read them.

A result is a dictionary of what training code reports. MessagePack holds most of it as it is. Four
extension types hold tuples, NumPy numbers and arrays, and integers of more than 64 bits, which a
JSON file would change. The caller replaces any other object.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np

Result = dict[str, Any]

_TUPLE, _SCALAR, _ARRAY, _INTEGER = 1, 2, 3, 4
# Booleans, integers, floats and complex numbers. Objects and times are replaced by the caller.
_KINDS = "biufc"
_ARRAY_KINDS = f"{_KINDS}US"
# Strings may contain halves of surrogate pairs, which JSON files allow.
_TEXT_ERRORS = "surrogatepass"
_MAX_DEPTH = 500


class ResultEncoder:
    """Encodes results. One thread may use it at a time.

    Args:
        replace: returns what is stored of an object of another type.

    Examples:
        >>> encoder = ResultEncoder(replace=str)
        >>> decode(encoder.encode({"shape": (2, 3), "path": 1j}))
        [{'shape': (2, 3), 'path': '1j'}]
    """

    def __init__(self, replace: Callable[[object], object]) -> None:
        self._replace = replace
        self._packer = msgpack.Packer(
            default=self._extension, strict_types=True, unicode_errors=_TEXT_ERRORS
        )

    def encode(self, value: object) -> bytes:
        """The bytes of a result; those of several results are those of each, in a row.

        Raises:
            ValueError, TypeError: it is nested too deeply, or refers to itself.
        """
        try:
            return self._packer.pack(value)
        except BaseException:
            self._packer.reset()
            raise

    def _extension(self, value: Any) -> object:
        kind = type(value)
        if kind is tuple:
            return msgpack.ExtType(_TUPLE, self._nested(list(value)))
        if kind is int:
            return msgpack.ExtType(_INTEGER, str(value).encode())
        if isinstance(value, np.generic) and value.dtype.kind in _KINDS:
            return msgpack.ExtType(_SCALAR, self._nested([value.dtype.str, value.tobytes()]))
        if kind is np.ndarray and value.dtype.kind in _ARRAY_KINDS and value.dtype.itemsize:
            parts = [value.dtype.str, list(value.shape), value.tobytes()]
            return msgpack.ExtType(_ARRAY, self._nested(parts))
        # JSON takes an object of a subclass for one of its base.
        if isinstance(value, tuple):
            return msgpack.ExtType(_TUPLE, self._nested(list(value)))
        if isinstance(value, str):
            return str.__str__(value)
        for base in (dict, list, int, float):
            if isinstance(value, base):
                made: object = base(value)  # type: ignore[arg-type]
                return made
        return self._replace(value)

    def _nested(self, value: object) -> bytes:
        packed: bytes = msgpack.packb(
            value, default=self._extension, strict_types=True, unicode_errors=_TEXT_ERRORS
        )
        return packed


def decode(content: bytes) -> list[Any]:
    """The results, or values, in some bytes, as they were encoded.

    Raises:
        ValueError: the bytes are damaged.
    """
    unpacker = msgpack.Unpacker(
        ext_hook=_extended,
        unicode_errors=_TEXT_ERRORS,
        max_buffer_size=max(1, len(content)),
        strict_map_key=False,
    )
    unpacker.feed(content)
    return list(unpacker)


def pack_parts(parts: object) -> bytes:
    """Pack lists, dictionaries, texts, bytes, numbers and tuples, which become lists."""
    packed: bytes = msgpack.packb(parts, unicode_errors=_TEXT_ERRORS)
    return packed


def unpack_parts(packed: bytes) -> Any:
    """Undo :func:`pack_parts`.

    Raises:
        ValueError: the bytes are damaged.
    """
    return msgpack.unpackb(packed, unicode_errors=_TEXT_ERRORS, strict_map_key=False)


def _extended(code: int, data: bytes) -> object:
    if code == _INTEGER:
        return int(data)
    parts = msgpack.unpackb(
        data, ext_hook=_extended, unicode_errors=_TEXT_ERRORS, strict_map_key=False
    )
    if code == _TUPLE:
        return tuple(parts)
    dtype = np.dtype(parts[0])
    if code == _SCALAR:
        return np.frombuffer(parts[1], dtype)[0]
    if code == _ARRAY:
        return np.frombuffer(parts[2], dtype).reshape(parts[1]).copy()
    raise ValueError(f"unknown extension type {code}")
