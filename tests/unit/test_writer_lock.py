"""A file that a run writes is locked for other processes, whatever its own process does with it."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ray_tune_memguard.store.histories import HistoryStore
from ray_tune_memguard.store.result_values import ResultEncoder
from ray_tune_memguard.store.trial_store import TrialStore
from ray_tune_memguard.store.writer_lock import SUFFIX, WriterLock, is_taken

_OTHER = """
import pathlib, sqlite3, sys
from ray_tune_memguard.store.{module} import {kind}
for method in sys.argv[2:]:
    try:
        getattr({kind}, method)(pathlib.Path(sys.argv[1])).close()
        print("opened")
    except sqlite3.OperationalError as error:
        print(error)
"""
encode = ResultEncoder(replace=str).encode


def opened_elsewhere(path: Path, kind: type, *methods: str) -> list[str]:
    """What another process gets that opens the file."""
    module = kind.__module__.rpartition(".")[2]
    code = _OTHER.format(module=module, kind=kind.__name__)
    command = [sys.executable, "-c", code, str(path), *methods]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_a_trial_store_stays_locked_when_its_process_reads_the_file(tmp_path: Path) -> None:
    store = TrialStore.create(tmp_path / "here", "trials")
    with store.transaction():
        pass
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    assert opened_elsewhere(store.path, TrialStore, "open") == ["database is locked"]
    store.finalize()
    assert not is_taken(store.path)
    store.close()
    assert not list(tmp_path.glob(f"here/*{SUFFIX}"))


@pytest.mark.parametrize("is_resumed", [False, True])
def test_histories_are_locked_in_each_run(tmp_path: Path, is_resumed: bool) -> None:
    path = tmp_path / "histories.sqlite"
    store = HistoryStore.open_to_write(path)
    if is_resumed:
        store.append({"t": [encode({"a": 1})]})
        store.finalize()
        store.close()
        store = HistoryStore.open_to_write(path)
    store.append({"t": [encode({"a": 2})]})
    path.read_bytes()
    both = opened_elsewhere(path, HistoryStore, "open", "open_to_write")
    assert both == ["database is locked"] * 2
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        HistoryStore.open_to_write(path)
    store.finalize()
    assert opened_elsewhere(path, HistoryStore, "open_to_write") == ["opened"]
    store.close()


def test_what_a_killed_process_left_does_not_lock(tmp_path: Path) -> None:
    code = (
        "import pathlib, os, signal, sys; from ray_tune_memguard.store.trial_store import "
        "TrialStore; store = TrialStore.create(pathlib.Path(sys.argv[1]), 'trials'); "
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    [left] = tmp_path.glob(f"*{SUFFIX}")
    path = left.with_name(left.name.removesuffix(SUFFIX))
    assert not is_taken(path)
    lock = WriterLock.take(path)
    assert lock is not None
    assert is_taken(path)
    lock.release()
    assert not left.exists()


def test_a_forked_process_does_not_hold_the_lock(tmp_path: Path) -> None:
    lock = WriterLock.take(tmp_path / "file")
    assert lock is not None
    ready, go = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(ready[1], b"x")
        os.read(go[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    try:
        assert is_taken(tmp_path / "file")
        # As a kill does it.
        number: Any = lock._number
        os.close(number)
        lock._number = None
        assert not is_taken(tmp_path / "file")
    finally:
        os.write(go[1], b"x")
        os.waitpid(pid, 0)


def test_a_lock_whose_file_was_removed_is_not_shared(tmp_path: Path) -> None:
    first = WriterLock.take(tmp_path / "file")
    (tmp_path / f"file{SUFFIX}").unlink()
    second = WriterLock.take(tmp_path / "file")
    assert first is not None
    assert second is not None
    first.release()
    assert is_taken(tmp_path / "file")
    second.release()
    second.release()
    assert not is_taken(tmp_path / "file")
