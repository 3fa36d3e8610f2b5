"""Profiles one trial by memray, in the trial's process. The functions are sent there by value.

:func:`start` and :func:`stop` take the trial's actor first, as Ray's ``__ray_call__`` passes it, and
return a dictionary; they raise nothing. ``problem`` in it says why there is no profile.

A process can have one tracker of memray. If the trial's code has imported memray before, ours is not
started, because the code may be about to use it; if the code starts a tracker later, ours is stopped
first. Otherwise memray would raise an error in the trial's code.

A profile that survives a kill has a record of each allocation and can fill the disk. A thread
stops it when its file is as large as allowed, or when the disk is nearly full.
"""

from __future__ import annotations

import atexit
import glob
import os
import shutil
import sys
import tempfile
import threading
from types import ModuleType
from typing import Any

#: Problems of which the driver says more.
MISSING = "memray is not installed"
IN_USE = "the trial's code uses memray itself, and a process can have one tracker only"
TOO_LARGE = "its file had reached max_size"
DISK_FULL = "the disk was nearly full"

#: The attribute of the module memray that holds the running profile. Functions that are sent by
#: value share no globals.
_ATTRIBUTE = "_memguard_profile"
# Of the graph of memory over time; memray's own, 10 ms, is much for a trial of hours.
_INTERVAL_MS = 100
_WATCH_EVERY_S = 0.5
_MIN_FREE_SHARE = 0.05


class Profile:
    """A running profile.

    Args:
        memray: the module.
        path: the file.
        options: see :func:`start`.
    """

    def __init__(self, memray: ModuleType, path: str, options: dict[str, Any]) -> None:
        self.path = path
        self._memray = memray
        self._original = memray.Tracker
        self._lock = threading.Lock()
        self._is_stopped = threading.Event()
        self._early = ""
        survives = options["survive_kill"]
        kinds = memray.FileFormat
        self._tracker = self._original(
            destination=memray.FileDestination(path, overwrite=True),
            native_traces=options["native"],
            follow_fork=options["follow_fork"],
            memory_interval_ms=_INTERVAL_MS,
            file_format=kinds.ALL_ALLOCATIONS if survives else kinds.AGGREGATED_ALLOCATIONS,
        )
        if survives:
            watch = threading.Thread(target=self._watch, args=(options["max_size"],), daemon=True)
            watch.start()
        # Memray hides as many frames of the thread that begins as there are now. Of the trial's own
        # thread it would hide the trial's.
        beginning = threading.Thread(target=self._tracker.__enter__)
        beginning.start()
        beginning.join()
        memray.Tracker = _stopping_first(self._original, self)
        setattr(memray, _ATTRIBUTE, self)
        # An actor that ends without being asked to stop.
        atexit.register(self.end, "")

    def end(self, reason: str) -> None:
        """Stop tracking, unless that was done.

        Args:
            reason: why it is stopped before the trial ends; empty at its end.
        """
        with self._lock:
            if self._is_stopped.is_set():
                return
            self._is_stopped.set()
            self._early = reason
            self._memray.Tracker = self._original
            self._tracker.__exit__(None, None, None)
        atexit.unregister(self.end)

    def result(self) -> dict[str, Any]:
        """What :func:`stop` returns."""
        with self._memray.FileReader(self.path) as reader:
            peak = reader.metadata.peak_memory
        return {"peak": peak, "early": self._early}

    def _watch(self, max_size: int) -> None:
        while not self._is_stopped.wait(_WATCH_EVERY_S):
            disk = shutil.disk_usage(os.path.dirname(self.path))
            if sum(map(os.path.getsize, files_of(self.path))) > max_size:
                self.end(TOO_LARGE)
            elif disk.free < _MIN_FREE_SHARE * disk.total:
                self.end(DISK_FULL)


def _stopping_first(original: Any, profile: Profile) -> Any:
    """Memray's ``Tracker``, as the trial's code gets it while ours is active."""

    class Tracker(original):
        def __enter__(self) -> Any:
            profile.end(IN_USE)
            return super().__enter__()

    return Tracker


def files_of(path: str) -> list[str]:
    """The file of a profile, and those of forked processes that were followed, as far as there."""
    return [*glob.glob(glob.escape(path)), *sorted(glob.glob(f"{glob.escape(path)}.*"))]


def start(actor: object, name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Begin to profile this process.

    Args:
        actor: the trial's actor.
        name: of the file, which is put into the directory of the Ray session's logs.
        options: ``native``, ``follow_fork``, ``survive_kill``, and ``max_size`` in bytes.

    Returns:
        ``node``, ``address`` and ``pid`` of the process, and the ``path`` of the file; or
        ``problem``.
    """
    import ray

    place: dict[str, Any] = {
        "node": ray.get_runtime_context().get_node_id(),
        "address": ray.util.get_node_ip_address(),
        "pid": os.getpid(),
    }
    try:
        loaded = sys.modules.get("memray")
        if loaded is not None and not hasattr(loaded, _ATTRIBUTE):
            return {**place, "problem": IN_USE}
        import memray

        setattr(memray, _ATTRIBUTE, None)
        path = os.path.join(_logs_directory(), name)
        for old in files_of(path):
            os.unlink(old)
        Profile(memray, path, options)
    except ImportError as error:
        is_missing = error.name == "memray"
        return {**place, "problem": MISSING if is_missing else f"memray cannot be used ({error})"}
    except Exception as error:
        return {**place, "problem": f"{type(error).__name__}: {error}"}
    return {**place, "path": path}


def stop(actor: object) -> dict[str, Any]:
    """End the profile of this process.

    Args:
        actor: the trial's actor.

    Returns:
        ``peak`` in bytes, and ``early``: why it was stopped before the trial ended; or ``problem``.
    """
    try:
        memray = sys.modules["memray"]
        profile = getattr(memray, _ATTRIBUTE)
        setattr(memray, _ATTRIBUTE, None)
        profile.end("")
        found: dict[str, Any] = profile.result()
        return found
    except Exception as error:
        return {"problem": f"{type(error).__name__}: {error}"}


def _logs_directory() -> str:
    from ray._private import worker

    node = getattr(worker, "_global_node", None)
    return tempfile.gettempdir() if node is None else str(node.get_logs_dir_path())
