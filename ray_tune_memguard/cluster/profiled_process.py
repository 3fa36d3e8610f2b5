"""Profiles one trial by memray, in the trial's process. The functions are sent there by value.

:func:`start` and :func:`stop` take the trial's actor first, as Ray's ``__ray_call__`` passes it.
A result with a ``problem`` says why there is no profile.

A process can have one tracker of memray. If the trial's code has imported memray before, ours is
not started, because the code may be about to use it; if the code starts a tracker later, ours is
stopped first. Otherwise memray would raise an error in the trial's code. Nor is it started where
the code has set a profile function (``sys.setprofile``), which memray would replace.

A profile that survives a kill, or that follows forked processes, has a record of each allocation
and can fill the disk. A thread in each process stops it there when all its files together are as
large as allowed, or when the disk is nearly full.
"""

from __future__ import annotations

import atexit
import glob
import mmap
import os
import shutil
import sys
import tempfile
import threading
from types import ModuleType
from typing import TypedDict

#: Problems of which the driver says more.
MISSING = "memray is not installed"
IN_USE = "the trial's code uses memray itself, and a process can have one tracker only"
HAS_PROFILE_FUNCTION = "its code has set a profile function, which memray would replace"
TOO_LARGE = "its file had reached max_size"
DISK_FULL = "the disk was nearly full"
_NO_ROOM = ("", TOO_LARGE, DISK_FULL)

#: The attribute of the module memray that holds the running profile. Functions that are sent by
#: value share no globals.
_ATTRIBUTE = "_memguard_profile"
# Of the graph of memory over time; memray's own, 10 ms, is much for a trial of hours.
_INTERVAL_MS = 100
_WATCH_EVERY_S = 0.5
_MIN_FREE_SHARE = 0.05
# Memray reads all of such a file for its peak: 2 s for 18 MiB.
_MAX_READ_BYTES = 4 * 2**20


class Settings(TypedDict):
    """How to profile; ``max_size`` is in bytes."""

    native: bool
    follow_fork: bool
    survive_kill: bool
    max_size: int


class Started(TypedDict, total=False):
    """What :func:`start` returns: where the process is, and the file or the problem."""

    node: str
    address: str
    pid: int
    path: str
    problem: str


class Stopped(TypedDict, total=False):
    """What :func:`stop` returns: the peak and why it was stopped early, or the problem.

    The peak is in bytes, and 0 if it would take long to find.
    """

    peak: int
    early: str
    problem: str


class Profile:
    """A running profile.

    Args:
        memray: the module.
        path: the file.
        settings: how to profile.
    """

    def __init__(self, memray: ModuleType, path: str, settings: Settings) -> None:
        self.path = path
        self._memray = memray
        self._original = memray.Tracker
        self._lock = threading.Lock()
        self._is_stopped = threading.Event()
        self._early = ""
        # An index of `_NO_ROOM`. Forked processes share it: one whose profile had to end has closed
        # its file, which is smaller then, so that its size does not tell.
        self._no_room = mmap.mmap(-1, 1)
        # The other form is written when the process ends, which forked ones end without.
        records_all = settings["survive_kill"] or settings["follow_fork"]
        kinds = memray.FileFormat
        self._tracker = memray.Tracker(
            destination=memray.FileDestination(path, overwrite=True),
            native_traces=settings["native"],
            follow_fork=settings["follow_fork"],
            memory_interval_ms=_INTERVAL_MS,
            file_format=kinds.ALL_ALLOCATIONS if records_all else kinds.AGGREGATED_ALLOCATIONS,
        )
        self._begin()
        self._records_all = records_all
        self._max_size = settings["max_size"]
        if records_all:
            self._begin_to_watch()
        if settings["follow_fork"]:
            os.register_at_fork(after_in_child=self._begin_in_child)
        vars(memray)["Tracker"] = _stopping_first(self._original, self)
        # For an actor that ends without being asked to stop.
        atexit.register(self.end, "")

    def _begin(self) -> None:
        errors: list[Exception] = []

        def enter() -> None:
            try:
                self._tracker.__enter__()
            except Exception as error:
                errors.append(error)

        # Memray hides as many frames of the thread that begins as there are now. Of the trial's own
        # thread it would hide the trial's.
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        for error in errors:
            raise error

    def _begin_to_watch(self) -> None:
        threading.Thread(target=self._watch, daemon=True).start()

    def _begin_in_child(self) -> None:
        # Memray goes on in the child with a file of its own; this object is a copy of the parent's.
        if not self._is_stopped.is_set():
            self._lock = threading.Lock()
            self._is_stopped = threading.Event()
            self._begin_to_watch()

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
            if reason in _NO_ROOM[1:]:
                self._no_room[0] = _NO_ROOM.index(reason)
            vars(self._memray)["Tracker"] = self._original
            self._tracker.__exit__(None, None, None)
        atexit.unregister(self.end)

    def result(self) -> Stopped:
        """What :func:`stop` returns."""
        peak = 0
        if not self._records_all or os.path.getsize(self.path) <= _MAX_READ_BYTES:
            with self._memray.FileReader(self.path) as reader:
                peak = reader.metadata.peak_memory
        return {"peak": peak, "early": self._early or _NO_ROOM[self._no_room[0]]}

    def _watch(self) -> None:
        while not self._is_stopped.wait(_WATCH_EVERY_S):
            try:
                disk = shutil.disk_usage(os.path.dirname(self.path))
                if sum(map(os.path.getsize, files_of(self.path))) > self._max_size:
                    self.end(TOO_LARGE)
                elif disk.free < _MIN_FREE_SHARE * disk.total:
                    self.end(DISK_FULL)
            except OSError:  # A file that was removed meanwhile, say.
                continue


def _stopping_first(original: type, profile: Profile) -> type:
    """Memray's ``Tracker``, as the trial's code gets it while ours is active."""

    def enter(tracker: object) -> object:
        profile.end(IN_USE)
        return original.__enter__(tracker)  # type: ignore[attr-defined]

    return type(original.__name__, (original,), {"__enter__": enter})


def files_of(path: str) -> list[str]:
    """The file of a profile, and those of forked processes that were followed, as far as there."""
    if not path:
        return []
    return [*glob.glob(glob.escape(path)), *sorted(glob.glob(f"{glob.escape(path)}.*"))]


def remove_files(path: str) -> None:
    """Remove the files of a profile on this node."""
    for file in files_of(path):
        os.unlink(file)


def start(_actor: object, name: str, settings: Settings) -> Started:
    """Begin to profile this process.

    Args:
        _actor: the trial's actor.
        name: of the file, which is put into the directory of the Ray session's logs.
        settings: how to profile.
    """
    import ray

    place: Started = {
        "node": ray.get_runtime_context().get_node_id(),
        "address": ray.util.get_node_ip_address(),
        "pid": os.getpid(),
    }
    try:
        loaded = sys.modules.get("memray")
        if loaded is not None and not hasattr(loaded, _ATTRIBUTE):
            return {**place, "problem": IN_USE}
        if sys.getprofile() is not None or threading.getprofile() is not None:
            return {**place, "problem": HAS_PROFILE_FUNCTION}
        import memray

        vars(memray)[_ATTRIBUTE] = None
        path = os.path.join(_logs_directory(), name)
        remove_files(path)
        try:
            vars(memray)[_ATTRIBUTE] = Profile(memray, path, settings)
        except BaseException:
            remove_files(path)
            raise
    except ImportError as error:
        is_missing = error.name == "memray"
        return {**place, "problem": MISSING if is_missing else f"memray cannot be used ({error})"}
    except Exception as error:
        return {**place, "problem": f"{type(error).__name__}: {error}"}
    return {**place, "path": path}


def stop(_actor: object) -> Stopped:
    """End the profile of this process.

    Args:
        _actor: the trial's actor.
    """
    try:
        names = vars(sys.modules["memray"])
        profile: Profile = names[_ATTRIBUTE]
        names[_ATTRIBUTE] = None
        profile.end("")
        return profile.result()
    except Exception as error:
        return {"problem": f"{type(error).__name__}: {error}"}


def _logs_directory() -> str:
    from ray._private import worker

    node = getattr(worker, "_global_node", None)
    return tempfile.gettempdir() if node is None else str(node.get_logs_dir_path())
