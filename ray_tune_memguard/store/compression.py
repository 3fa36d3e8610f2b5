"""Compresses states and state records, each with an earlier one like it as the dictionary."""

from __future__ import annotations

import threading

import zstandard

#: The size of the dictionary in bytes; it stays in memory.
DICTIONARY_BYTES = 64 * 1024
# Level 3 compresses better than levels 1 and 2 in the same time; level 5 takes twice as long.
_LEVEL = 3


class DictionaryCompressor:
    """Compresses similar states with the first of them as the dictionary.

    The states of a run's trials are nearly equal. With one earlier state as the dictionary a state
    shrinks to a few hundred bytes, without one to a few thousand.
    """

    def __init__(self, dictionary: bytes) -> None:
        self.dictionary = dictionary[-DICTIONARY_BYTES:]
        shared = zstandard.ZstdCompressionDict(
            self.dictionary, dict_type=zstandard.DICT_TYPE_RAWCONTENT
        )
        shared.precompute_compress(level=_LEVEL)
        self._compressor = zstandard.ZstdCompressor(level=_LEVEL, dict_data=shared)
        self._decompressor = zstandard.ZstdDecompressor(dict_data=shared)
        # No two threads may use them at once. Reentrant, for signal handlers in the same thread.
        self._lock = threading.RLock()

    def pack(self, raw: bytes) -> bytes:
        with self._lock:
            return self._compressor.compress(raw)

    def unpack(self, packed: bytes) -> bytes:
        """Undo :meth:`pack`.

        Raises:
            ValueError: the bytes are damaged.
        """
        try:
            with self._lock:
                return self._decompressor.decompress(packed)
        except (zstandard.ZstdError, MemoryError) as error:
            raise ValueError(f"it cannot be decompressed: {error}") from error


def pack(raw: bytes) -> bytes:
    """Compress bytes without a dictionary."""
    return zstandard.compress(raw, 1)


def unpack(packed: bytes) -> bytes:
    """Undo :func:`pack`."""
    return zstandard.decompress(packed)
