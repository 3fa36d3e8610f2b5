"""Compression of states and entries: each is compressed against an earlier one like it."""

from __future__ import annotations

import threading

import zstandard

#: How much of the first one the others are compressed against; it stays in memory.
DICTIONARY_BYTES = 64 * 1024
# Level 3 packs a trial smaller than levels 1 and 2 in the same time; level 5 takes twice as long.
_LEVEL = 3


class DictionaryCompressor:
    """Compresses states that look alike against the first of them.

    A trial's state repeats nearly the same text every time; with one earlier state as the
    dictionary it shrinks to a few hundred bytes, without one to a few thousand.
    """

    def __init__(self, dictionary: bytes) -> None:
        self.dictionary = dictionary[-DICTIONARY_BYTES:]
        shared = zstandard.ZstdCompressionDict(
            self.dictionary, dict_type=zstandard.DICT_TYPE_RAWCONTENT
        )
        shared.precompute_compress(level=_LEVEL)
        self._compressor = zstandard.ZstdCompressor(level=_LEVEL, dict_data=shared)
        self._decompressor = zstandard.ZstdDecompressor(dict_data=shared)
        # Neither may be used by two threads at once; a signal's handler is in the same one.
        self._lock = threading.RLock()

    def pack(self, raw: bytes) -> bytes:
        with self._lock:
            return self._compressor.compress(raw)

    def unpack(self, packed: bytes) -> bytes:
        """Undo :meth:`pack`. Raises ValueError if it is not what that returned."""
        try:
            with self._lock:
                return self._decompressor.decompress(packed)
        except (zstandard.ZstdError, MemoryError) as error:
            raise ValueError(f"it cannot be unpacked: {error}") from error


def pack(raw: bytes) -> bytes:
    """Compress what has nothing before it that is like it."""
    return zstandard.compress(raw, 1)


def unpack(packed: bytes) -> bytes:
    """Undo :func:`pack`."""
    return zstandard.decompress(packed)
