"""What was packed is unpacked to the same bytes."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from ray_tune_memguard.store.compression import DICTIONARY_BYTES, DictionaryCompressor, pack, unpack

_CHOOSE = random.Random(0)
LONG = _CHOOSE.randbytes(2 * DICTIONARY_BYTES)


@pytest.mark.parametrize("first", [b"", b"x", b"state " * 500, LONG])
@pytest.mark.parametrize("raw", [b"", b"y", b"state " * 501, LONG, LONG[:-1] + b"z"])
def test_it_comes_back(first: bytes, raw: bytes) -> None:
    packed = DictionaryCompressor(first).pack(raw)
    # As who opens the store does, by the dictionary alone.
    assert DictionaryCompressor(DictionaryCompressor(first).dictionary).unpack(packed) == raw
    assert unpack(pack(raw)) == raw


def test_what_is_like_the_first_takes_little_room() -> None:
    first = LONG[:5000]
    packed = DictionaryCompressor(first).pack(first[:2500] + b"another" + first[2507:])
    assert len(packed) < 100


@pytest.mark.parametrize("packed", [b"", b"x", b"\x28\xb5\x2f\xfd" + b"\xff" * 40])
def test_what_was_not_packed_is_refused(packed: bytes) -> None:
    with pytest.raises(ValueError, match="decompressed"):
        DictionaryCompressor(b"first").unpack(packed)


def test_several_threads_use_one() -> None:
    packer = DictionaryCompressor(b"state " * 500)
    states = [b"state " * 400 + bytes([number]) * 1000 for number in range(200)]
    with ThreadPoolExecutor(8) as pool:
        packed = list(pool.map(packer.pack, states))
        assert list(pool.map(packer.unpack, packed)) == states
