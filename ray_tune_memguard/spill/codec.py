"""What a trial is turned into, as the spill room sees it.

The spill room stores and wakes objects without knowing what is inside them. Whoever knows the
object (for Ray's ``Trial``: ``tune_internals.trial_state``) hands in a :class:`TrialCodec`.
"""

from __future__ import annotations

import zlib
from typing import Any, Protocol

#: Deflate looks at most 32 KiB back, so a longer dictionary would not be used.
DICTIONARY_BYTES = 32 * 1024
# Level 3 packs a trial's state nearly as small as level 6 in 60 % of the time.
_LEVEL = 3
_RAW_DEFLATE = -zlib.MAX_WBITS
# What a compressor takes in memory, and so what a copy of it costs, is twice this, and little more.
_SMALLEST_WINDOW = 9
_MEMORY_LEVEL = 6


class TrialCodec(Protocol):
    """Takes a finished trial apart and puts it together again, in this process."""

    trial_class: type

    def dump(self, trial: Any) -> bytes:
        """The whole state of ``trial``. Raises whatever its parts raise when they do not pickle."""

    def has_error(self, trial: Any) -> bool:
        """Whether ``trial`` ever failed, though it may have ended well since."""

    def load(self, raw: bytes) -> dict[str, Any]:
        """The attributes that ``dump`` wrote."""

    def load_entry(self, entry: bytes) -> dict[str, Any]:
        """The attributes of a trial that another process wrote to the experiment state file."""


class Packer:
    """Compresses states that look alike against the first of them.

    A trial's state repeats nearly the same text every time; with one earlier state as the
    dictionary it shrinks to a few hundred bytes, without one to a few thousand.
    """

    def __init__(self, dictionary: bytes) -> None:
        self.dictionary = dictionary[-DICTIONARY_BYTES:]
        # Reading the dictionary takes longer than packing; a copy of who has read it does not.
        # Far enough back for a state of the same length to see all of the dictionary.
        window = min(max((2 * len(self.dictionary)).bit_length(), _SMALLEST_WINDOW), zlib.MAX_WBITS)
        self._ready = zlib.compressobj(
            _LEVEL, zlib.DEFLATED, -window, _MEMORY_LEVEL, zdict=self.dictionary
        )

    def pack(self, raw: bytes) -> bytes:
        deflate = self._ready.copy()
        return deflate.compress(raw) + deflate.flush()

    def unpack(self, packed: bytes) -> bytes:
        inflate = zlib.decompressobj(_RAW_DEFLATE, zdict=self.dictionary)
        return inflate.decompress(packed) + inflate.flush()
