from __future__ import annotations

import sys

import psutil
import pytest

from ray_tune_memguard.system import allocator
from ray_tune_memguard.system.process import rss_bytes


def test_without_glibc_nothing_is_reported_and_nothing_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    allocator._glibc.cache_clear()
    try:
        assert allocator.slack_bytes() is None
        allocator.trim()
    finally:
        monkeypatch.undo()
        allocator._glibc.cache_clear()


@pytest.mark.skipif(allocator.slack_bytes() is None, reason="only glibc trims")
def test_trim_returns_slack_to_the_system() -> None:
    # Blocks below the mmap threshold, with one kept behind each so that nothing coalesces away.
    kept = []
    filler = [bytearray(60_000) for _ in range(2000)]
    kept = filler[1::2]
    del filler
    before, rss_before = allocator.slack_bytes(), rss_bytes()
    assert before is not None
    assert before > 30 * 2**20
    allocator.trim()
    assert rss_bytes() < rss_before - 20 * 2**20
    assert len(kept) == 1000


@pytest.mark.skipif(not allocator.counters(), reason="needs glibc's mallinfo2")
@pytest.mark.skipif(not hasattr(psutil, "heap_info"), reason="needs psutil 7.2")
def test_counters_are_those_of_psutil() -> None:
    # Larger than what earlier tests have left free in the heap, so that glibc maps it.
    kept = [bytearray(400_000_000), *(bytearray(2000) for _ in range(1000))]
    ours, theirs = allocator.counters(), psutil.heap_info()
    assert ours["hblkhd"] == theirs.mmap_used >= 400_000_000
    assert ours["uordblks"] == pytest.approx(theirs.heap_used, abs=64 * 1024)
    del kept
