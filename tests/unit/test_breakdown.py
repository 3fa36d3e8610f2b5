"""The split of RSS: its parts add up, follow what is done, and are absent where not known."""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ray_tune_memguard.diagnostics import breakdown
from ray_tune_memguard.diagnostics.breakdown import MemoryBreakdown, memory_breakdown
from ray_tune_memguard.system import allocator, mappings, pymalloc
from ray_tune_memguard.system.mappings import resident_mappings
from ray_tune_memguard.system.process import rss_bytes
from ray_tune_memguard.system.pymalloc import pymalloc_use

MIB = 2**20
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
glibc = pytest.mark.skipif(not allocator.counters(), reason="needs glibc's mallinfo2")


@pytest.fixture(autouse=True)
def no_garbage() -> None:
    """What other tests left is not collected while this one measures."""
    gc.collect()


@linux
@glibc
def test_parts_add_up_to_rss() -> None:
    found = memory_breakdown()
    assert not found.absent
    parts = (found.python, found.malloc, found.slack, found.stacks, found.other, found.shared)
    # A chunk that malloc has in use need not be resident: calloc's fresh pages are not.
    assert sum(part or 0 for part in parts) == pytest.approx(found.rss, abs=4 * MIB)
    assert found.rss == pytest.approx(rss_bytes(), abs=4 * MIB)


@linux
@glibc
def test_each_part_shows_what_was_done_to_it() -> None:
    before = memory_breakdown()
    small = [[float(i)] for i in range(200_000)]
    after = memory_breakdown()
    assert after.python is not None
    assert before.python is not None
    # A list of 56 bytes with its collector's head, its block of 16, and a float of 24.
    assert 16 * MIB < after.python - before.python < 32 * MIB
    large = [b"x" * 100_000 for _ in range(200)]
    third = memory_breakdown()
    assert third.malloc is not None
    assert after.malloc is not None
    assert third.malloc - after.malloc == pytest.approx(20_000_000, rel=0.05)
    del small, large


@linux
@glibc
def test_slack_is_what_a_trim_gives_back() -> None:
    library = ctypes.CDLL(None)
    library.malloc.restype = ctypes.c_void_p
    library.malloc.argtypes = [ctypes.c_size_t]
    library.free.argtypes = [ctypes.c_void_p]
    allocator.trim()
    blocks = []
    for _ in range(5000):
        blocks.append(library.malloc(4000))
        ctypes.memset(blocks[-1], 1, 4000)
    pin = library.malloc(4000)
    for block in blocks:
        library.free(block)
    kept = memory_breakdown()
    allocator.trim()
    trimmed = memory_breakdown()
    library.free(pin)
    assert kept.slack is not None
    assert trimmed.slack is not None
    assert kept.slack - trimmed.slack == pytest.approx(kept.rss - trimmed.rss, abs=MIB)
    assert kept.slack - trimmed.slack > 10 * MIB


def test_what_a_system_does_not_tell_is_absent_and_never_zero(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(mappings, "_SMAPS", tmp_path / "no such file")
    monkeypatch.setattr(allocator, "counters", dict)
    monkeypatch.setattr(breakdown, "pymalloc_use", lambda: None)
    found = memory_breakdown()
    assert found == MemoryBreakdown(rss=found.rss)
    assert found.rss > 0
    assert set(found.absent) == {"python", "malloc", "slack", "stacks", "other", "shared"}
    assert all(found.absent.values())


def test_without_glibc_the_rest_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator, "counters", dict)
    found = memory_breakdown()
    assert {"malloc", "slack"} <= set(found.absent)
    assert "mallinfo2" in found.absent["slack"]
    assert found.python is not None


SMAPS = b"""\
00400000-00500000 r-xp 00000000 08:01 131 /usr/bin/python3
Size:               1024 kB
Rss:                 900 kB
Pss:                 100 kB
Anonymous:             0 kB
01000000-02000000 rw-p 00000000 00:00 0          [heap]
Size:              16384 kB
Rss:                8000 kB
Anonymous:          8000 kB
7f0000000000-7f0000100000 rw-p 00000000 00:00 0
Size:               1024 kB
Rss:                 700 kB
Anonymous:           700 kB
7f0004000000-7f0004021000 rw-p 00000000 00:00 0
Size:                132 kB
Rss:                 100 kB
Anonymous:           100 kB
7f0004021000-7f0008000000 ---p 00000000 00:00 0
Size:              65404 kB
Rss:                   0 kB
Anonymous:             0 kB
7f0010000000-7f0010001000 ---p 00000000 00:00 0
Size:                  4 kB
Rss:                   0 kB
Anonymous:             0 kB
7f0010001000-7f0010801000 rw-p 00000000 00:00 0
Size:               8192 kB
Rss:                  12 kB
Anonymous:            12 kB
7f0020000000-7f0020100000 rw-s 00000000 00:05 9  /dev/shm/plasma
Size:               1024 kB
Rss:                  60 kB
Anonymous:             0 kB
7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0  [stack]
Size:                132 kB
Rss:                  40 kB
Anonymous:            40 kB
"""


def test_mappings_by_kind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "smaps"
    file.write_bytes(SMAPS)
    monkeypatch.setattr(mappings, "_SMAPS", file)
    found = resident_mappings()
    assert found is not None
    # 7f0000000000 is at a multiple of 64 MiB as well, as an arena of glibc's is.
    assert (found.shared, found.heaps, found.stacks, found.other) == (
        960 << 10,
        8800 << 10,
        52 << 10,
        0,
    )
    assert found.rss == 9812 << 10


def test_pymalloc_tells_what_is_in_use() -> None:
    before = pymalloc_use()
    kept = [float(i) for i in range(100_000)]
    after = pymalloc_use()
    assert before is not None
    assert after is not None
    # Floats of 24 bytes lie in blocks of 32.
    assert after.used - before.used == pytest.approx(3_200_000, rel=0.05)
    del kept


def test_stderr_is_left_alone_while_it_measures() -> None:
    """A native crash message, or what a child forked just then writes, reaches the real stderr."""
    code = (
        "import os, sys\n"
        "from ray_tune_memguard.system.pymalloc import pymalloc_use\n"
        "def watch(frame, event, called):\n"
        "    os.write(2, b'.')\n"
        "    if event in ('call', 'c_call'):\n"
        "        if not os.fork():\n"
        "            os.write(2, b'c')\n"
        "            os._exit(0)\n"
        "        os.wait()\n"
        "    counts[event] = counts.get(event, 0) + 1\n"
        "counts = {}\n"
        "sys.setprofile(watch)\n"
        "found = pymalloc_use()\n"
        "sys.setprofile(None)\n"
        "assert found.used > 0\n"
        "print(sum(counts.values()), counts['call'] + counts['c_call'])\n"
    )
    # Python 3.12 and later warn about a fork, on stderr.
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, check=True)
    writes, forks = map(int, done.stdout.split())
    assert forks > 5
    # Ending the profile is one event more.
    assert (done.stderr.count(b"."), done.stderr.count(b"c")) == (writes, forks)


def test_without_a_memory_stream_there_is_nothing_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pymalloc, "_libraries", lambda: None)
    assert pymalloc_use() is None


def test_without_pymalloc_there_is_nothing_to_tell() -> None:
    code = "from ray_tune_memguard.system.pymalloc import pymalloc_use; print(pymalloc_use())"
    environment = {**os.environ, "PYTHONMALLOC": "malloc"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, env=environment
    )
    assert done.stdout.strip() == b"None"


def test_a_closed_stderr_does_no_harm() -> None:
    code = (
        "import os\n"
        "from ray_tune_memguard.system.pymalloc import pymalloc_use\n"
        # Not before the imports: a file that one of them opens would get its number.
        "os.close(2)\n"
        "for _ in range(3): pymalloc_use()\n"
        "try: os.fstat(2)\n"
        "except OSError: print('still closed')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True)
    assert done.stdout.strip() == b"still closed"


def test_text_of_an_unknown_form_is_nothing() -> None:
    assert pymalloc._parse(b"") is None
    assert pymalloc._parse(b"# bytes in allocated blocks = 7\n") is None
