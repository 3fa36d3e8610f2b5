"""What happens in the process of a profiled trial, each time in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("memray", reason="profiles need memray")

from ray_tune_memguard.cluster import profiled_process
from ray_tune_memguard.report.memray_file import read_peak

MIB = 2**20
#: Without a cluster, the logs are in the working directory.
SCRIPT = """
import importlib.util, json, os, sys, time
from types import SimpleNamespace
sys.modules["ray"] = SimpleNamespace(
    get_runtime_context=lambda: SimpleNamespace(get_node_id=lambda: "n"),
    util=SimpleNamespace(get_node_ip_address=lambda: "10.0.0.5"),
)
spec = importlib.util.spec_from_file_location("sent", sys.argv[1])
sent = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sent)
sent._logs_directory = os.getcwd
sent._WATCH_EVERY_S = 0.05
settings = dict(native=False, follow_fork=False, survive_kill=False, max_size=2**30)
told = []
def start(**changes):
    told.append(sent.start(None, "one.bin", {**settings, **changes}))
def stop():
    told.append(sent.stop(None))
"""


def run(code: str, folder: Path) -> list[dict[str, Any]]:
    """What the calls told of a process that executes ``code``; nothing if it killed itself."""
    script = f"{SCRIPT}\n{code}\nprint(json.dumps(told))\n"
    command = [sys.executable, "-c", script, profiled_process.__file__]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode == -9:
        return []
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def test_what_the_main_thread_and_others_allocate(tmp_path: Path) -> None:
    code = """
import threading
start()
held = []
def in_main(): held.append(bytearray(60 * 2**20))
def in_thread(): held.append(bytearray(30 * 2**20))
in_main()
thread = threading.Thread(target=in_thread)
thread.start(); thread.join()
stop()
"""
    started, stopped = run(code, tmp_path)
    assert (started["node"], started["address"]) == ("n", "10.0.0.5")
    assert Path(started["path"]) == tmp_path / "one.bin"
    peak = read_peak(tmp_path / "one.bin")
    assert stopped["peak"] == peak.bytes
    first, second = peak.lines[:2]
    assert (first.function, second.function) == ("in_main", "in_thread")
    assert (first.bytes, second.bytes) == (60 * MIB + 1, 30 * MIB + 1)
    assert first.share == pytest.approx(60 / 90, abs=0.02)


def test_a_later_profile_replaces_the_files_of_the_one_before(tmp_path: Path) -> None:
    (tmp_path / "one.bin.99").touch()
    code = "start(); stop(); start(); held = bytearray(9 * 2**20); stop()"
    told = run(code, tmp_path)
    assert [list(one) for one in told[1::2]] == [["peak", "early"]] * 2
    assert [file.name for file in tmp_path.iterdir()] == ["one.bin"]
    assert read_peak(tmp_path / "one.bin").bytes > 9 * MIB


def test_a_tracker_of_the_trials_own_stops_ours(tmp_path: Path) -> None:
    code = """
start()
import memray
with memray.Tracker("own.bin"):
    held = bytearray(9 * 2**20)
stop()
with memray.Tracker("again.bin"):
    pass
"""
    _, stopped = run(code, tmp_path)
    assert stopped["early"] == profiled_process.IN_USE
    assert read_peak(tmp_path / "own.bin").bytes > 9 * MIB
    assert read_peak(tmp_path / "one.bin").bytes < 9 * MIB


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("import memray; start()", profiled_process.IN_USE),
        ("start(); stop(); memray = sys.modules['memray']\n"
         "with memray.Tracker('own.bin'): start()", profiled_process.HAS_PROFILE_FUNCTION),
        ("sys.modules['memray'] = None; start()", profiled_process.MISSING),
        ("sent._logs_directory = lambda: '/nowhere'; start()", "OSError: "),
        ("sys.setprofile(lambda *of: None); start()", profiled_process.HAS_PROFILE_FUNCTION),
        ("import threading; threading.setprofile(lambda *of: None); start()",
         profiled_process.HAS_PROFILE_FUNCTION),
    ],
)  # fmt: skip
def test_why_there_is_no_profile(tmp_path: Path, code: str, problem: str) -> None:
    started = run(code, tmp_path)[-1]
    assert started["problem"].startswith(problem)
    assert "path" not in started
    assert not list(tmp_path.glob("one.bin*")) or "stop()" in code


def test_no_path_has_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").touch()
    assert profiled_process.files_of("") == []


def test_a_stop_without_a_profile(tmp_path: Path) -> None:
    [stopped] = run("stop()", tmp_path)
    assert "KeyError" in stopped["problem"]


KILLED = """
start(survive_kill={})
held = bytearray(40 * 2**20)
os.kill(os.getpid(), 9)
"""


def test_a_kill(tmp_path: Path) -> None:
    assert run(KILLED.format(True), tmp_path) == []
    assert read_peak(tmp_path / "one.bin").lines[0].bytes == 40 * MIB + 1
    assert run(KILLED.format(False), tmp_path) == []
    with pytest.raises(OSError, match="memray"):
        read_peak(tmp_path / "one.bin")


def test_a_process_that_ends_by_itself(tmp_path: Path) -> None:
    run("start(); held = bytearray(9 * 2**20)", tmp_path)
    assert read_peak(tmp_path / "one.bin").bytes > 9 * MIB


def test_a_forked_process(tmp_path: Path) -> None:
    code = """
start(follow_fork=True)
child = os.fork()
if child == 0:
    held = bytearray(9 * 2**20)
    os._exit(0)
os.wait()
stop()
"""
    run(code, tmp_path)
    [_, forked] = profiled_process.files_of(str(tmp_path / "one.bin"))
    assert read_peak(forked).bytes > 9 * MIB


def test_a_forked_process_ends_its_profile_too(tmp_path: Path) -> None:
    code = """
start(follow_fork=True, max_size=100_000)
child = os.fork()
if child == 0:
    is_stopped = sys.modules["memray"]._memguard_profile._is_stopped
    until = time.monotonic() + 60
    while not is_stopped.is_set() and time.monotonic() < until:
        bytearray(600)
    size = os.path.getsize(f"one.bin.{os.getpid()}")
    for _ in range(50_000):
        bytearray(600)
    # It is closed, so its size stays as it is.
    os._exit(0 if size == os.path.getsize(f"one.bin.{os.getpid()}") else 1)
sys.modules["memray"]._memguard_profile._max_size = 10**9  # Only the child finds it too large.
told.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
stop()
"""
    _, child, stopped = run(code, tmp_path)
    assert child == 0
    assert stopped["early"] == profiled_process.TOO_LARGE


def test_the_peak_of_a_large_file_is_not_looked_for(tmp_path: Path) -> None:
    code = "start(survive_kill=True); held = bytearray(9 * 2**20); stop()"
    assert run(code, tmp_path)[1]["peak"] > 9 * MIB
    assert run(f"sent._MAX_READ_BYTES = 9\n{code}", tmp_path)[1] == {"peak": 0, "early": ""}


@pytest.mark.parametrize(
    ("setting", "before", "reason"),
    [
        ("max_size=1000", "", profiled_process.TOO_LARGE),
        ("max_size=2**40", "sent._MIN_FREE_SHARE = 1", profiled_process.DISK_FULL),
    ],
)
def test_a_profile_that_would_fill_the_disk_ends_early(
    tmp_path: Path, setting: str, before: str, reason: str
) -> None:
    code = f"""
{before}
start(survive_kill=True, {setting})
held = bytearray(9 * 2**20)
while not sys.modules["memray"]._memguard_profile._is_stopped.is_set():
    time.sleep(0.01)
stop()
"""
    _, stopped = run(code, tmp_path)
    assert stopped["early"] == reason
    assert read_peak(tmp_path / "one.bin").bytes > 9 * MIB
