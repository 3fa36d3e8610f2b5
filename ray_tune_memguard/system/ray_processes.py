"""Measures the memory of Ray's other processes on this machine."""

from __future__ import annotations

import psutil

#: Reported by name; all others of a session are workers.
_SERVERS = ("gcs_server", "raylet")


class RayProcesses:
    """Finds the processes of one Ray session by its directory, which is in their command lines.

    Args:
        session: the name of the session's directory; with None no process is found.
    """

    def __init__(self, session: str | None) -> None:
        self._session = session
        self._servers: dict[str, psutil.Process] = {}

    def rss(self) -> dict[str, int]:
        """Resident bytes of ``gcs_server``, ``raylet`` and ``workers``, as far as they run.

        Workers are all children of the raylet; memory that they share counts for each.
        """
        if self._session is None:
            return {}
        if not self._servers:
            self._find()
        found: dict[str, int] = {}
        for name, process in list(self._servers.items()):
            try:
                found[name] = int(process.memory_info().rss)
                if name == "raylet":
                    workers = [_rss(worker) for worker in process.children()]
                    found["workers"] = sum(workers)
            except psutil.Error:
                del self._servers[name]
        return found

    def raylet_pid(self) -> int | None:
        """The raylet's process on this machine; None if there is none, or it cannot be seen."""
        if self._session is not None and not self._servers:
            self._find()
        return self._servers["raylet"].pid if "raylet" in self._servers else None

    def _find(self) -> None:
        assert self._session is not None
        # `process_iter` is not used, because it keeps an object for each process of the machine.
        for pid in psutil.pids():
            try:
                process = psutil.Process(pid)
                name = process.name()
                if name in _SERVERS and any(self._session in word for word in process.cmdline()):
                    self._servers[name] = process
            except psutil.Error:
                continue


def _rss(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0
