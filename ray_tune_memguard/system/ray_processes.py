"""Measures the memory of Ray's other processes on this machine."""

from __future__ import annotations

import os
import time

import psutil

from ray_tune_memguard.system.process import ProcessMemory, memory_of

#: Names of binaries.
_BINARIES = ("gcs_server", "raylet")
#: Ends of the scripts that Ray's Python processes run, and what the processes are called here.
_SCRIPTS = {
    "dashboard/dashboard.py": "dashboard",
    "autoscaler/_private/monitor.py": "autoscaler monitor",
    "autoscaler/v2/monitor.py": "autoscaler monitor",
    "_private/log_monitor.py": "log monitor",
}
#: Titles of a raylet's children that are no workers.
_AGENTS = {"ray::DashboardAgent": "dashboard agent", "ray::RuntimeEnvAgent": "runtime env agent"}
#: Processes are not searched again sooner than that after one has ended.
_SEARCH_EVERY_S = 30.0


class RayProcesses:
    """Finds the processes of one Ray session by its directory, which is in their command lines.

    Args:
        session: the name of the session's directory; with None no process is found.
        node: the id of the node, for a machine on which several nodes of a session run; None for
            any node.
    """

    def __init__(self, session: str | None, node: str | None = None) -> None:
        self._session = session
        self._node = node
        self._servers: dict[str, psutil.Process] = {}
        self._search_at = 0.0

    def rss(self) -> dict[str, int]:
        """Resident bytes of ``gcs_server``, ``raylet`` and ``workers``, as far as they run.

        Workers are all children of the raylet; memory that they share counts for each.
        """
        found = {name: memory.rss for name, memory in self.memory().items() if name in _BINARIES}
        raylet = self._servers.get("raylet")
        if raylet is not None:
            try:
                children = [memory_of(child.pid) for child in raylet.children()]
            except psutil.Error:
                return found
            found["workers"] = sum(memory.rss for memory in children if memory is not None)
        return found

    def memory(self) -> dict[str, ProcessMemory]:
        """The memory of Ray's own processes, as far as they run: by name.

        Names are ``gcs_server``, ``raylet``, ``dashboard``, ``dashboard agent``,
        ``runtime env agent``, ``log monitor`` and ``autoscaler monitor``.
        """
        if self._session is None:
            return {}
        if time.monotonic() >= self._search_at:
            self._find()
        found = {}
        for name, process in list(self._servers.items()):
            memory = memory_of(process.pid) if process.is_running() else None
            if memory is None:
                del self._servers[name]
                # Ray restarts some of them.
                self._search_at = time.monotonic() + _SEARCH_EVERY_S
            else:
                found[name] = memory
        return found

    def raylet_pid(self) -> int | None:
        """The raylet's process on this machine; None if there is none, or it cannot be seen."""
        if self._session is not None and not self._servers:
            self._find()
        return self._servers["raylet"].pid if "raylet" in self._servers else None

    def _find(self) -> None:
        agents: dict[str, list[int]] = {}
        for pid in psutil.pids():
            command = _command(pid)
            if command and command[0] in _AGENTS:
                agents.setdefault(_AGENTS[command[0]], []).append(pid)
                continue
            name = self._name_of(command)
            if name:
                self._keep(name, pid)
        raylet = self._servers.get("raylet")
        # Before Ray has started, and after it has stopped, nothing is there.
        self._search_at = time.monotonic() + 1.0 if raylet is None else float("inf")
        for name, pids in agents.items():
            for pid in pids:
                if raylet is not None and _parent(pid) == raylet.pid:
                    self._keep(name, pid)

    def _keep(self, name: str, pid: int) -> None:
        if name not in self._servers:
            try:
                self._servers[name] = psutil.Process(pid)
            except psutil.Error:
                pass  # It has just ended.

    def _name_of(self, command: list[str]) -> str | None:
        """The name of a process of this session and node; None for all others."""
        assert self._session is not None
        if not command or not any(self._session in word for word in command):
            return None
        binary = os.path.basename(command[0])
        if binary in _BINARIES:
            is_other = (
                binary == "raylet" and self._node and f"--node_id={self._node}" not in command
            )
            return None if is_other else binary
        for word in command[1:3]:
            for end, name in _SCRIPTS.items():
                if word.endswith(end):
                    return name
        return None


def _command(pid: int) -> list[str]:
    """The command line; empty if the process has ended. There are hundreds, and psutil is slow."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().decode(errors="replace").rstrip("\0").split("\0")
    except OSError:
        pass
    try:
        return psutil.Process(pid).cmdline()
    except psutil.Error:
        return []


def _parent(pid: int) -> int | None:
    try:
        return int(psutil.Process(pid).ppid())
    except psutil.Error:
        return None
