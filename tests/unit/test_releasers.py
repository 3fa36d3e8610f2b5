from __future__ import annotations

import atexit
import gc
import subprocess
import sys
import weakref
from pathlib import Path

import pytest

from ray_tune_memguard.adapter.run import releasers as retainers

writer = pytest.importorskip("tensorboardX").writer


@pytest.fixture
def hooks() -> retainers.TensorboardExitHooks:
    found = retainers.tensorboard_exit_hooks()
    assert found is not None
    return found


def test_a_closed_writer_is_freed(hooks: retainers.TensorboardExitHooks, tmp_path: Path) -> None:
    first = writer.SummaryWriter(str(tmp_path / "first"))
    slots = atexit._ncallbacks()
    for number in range(5):
        other = writer.SummaryWriter(str(tmp_path / f"{number}"))
        closed = weakref.ref(other.file_writer)
        other.close()
        del other
        hooks.release_closed()
        gc.collect()
        assert closed() is None
    assert atexit._ncallbacks() == slots
    first.close()


def test_an_open_writer_is_flushed_at_exit(tmp_path: Path) -> None:
    script = f"""
from ray_tune_memguard.adapter.run import releasers as retainers
retainers.tensorboard_exit_hooks()
from tensorboardX import SummaryWriter
writer = SummaryWriter({str(tmp_path)!r}, flush_secs=1000)
for step in range(100):
    writer.add_scalar("score", step, step)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr == ""
    [events] = tmp_path.iterdir()
    assert events.stat().st_size > 100 * 20
