"""Finds Ray's processes on this machine. psutil's `process_iter` would keep an object for each."""

from __future__ import annotations

import psutil


def local_raylets() -> dict[str, psutil.Process]:
    """The raylets on this machine, of all clusters, by the id of their node."""
    found = {}
    for process in named("raylet"):
        node_id = argument(process, "--node_id=")
        if node_id:
            found[node_id] = process
    return found


def local_addresses() -> list[str]:
    """The addresses of the clusters that have a node on this machine."""
    found = {argument(process, "--gcs-address=") for process in local_raylets().values()}
    return sorted(address for address in found if address)


def has_dashboard(session: str) -> bool:
    """Whether a session's dashboard is served; its process runs in any case."""
    for pid in psutil.pids():
        try:
            command = psutil.Process(pid).cmdline()
        except psutil.Error:
            continue
        if any(word.endswith("dashboard/dashboard.py") for word in command[:3]) and any(
            session in word for word in command
        ):
            return "--disable-frontend" not in command
    return False


def named(name: str) -> list[psutil.Process]:
    """The processes of this name."""
    found = []
    for pid in psutil.pids():
        try:
            process = psutil.Process(pid)
            if process.name() == name:
                found.append(process)
        except psutil.Error:
            continue
    return found


def children(process: psutil.Process) -> dict[int, psutil.Process]:
    """The processes that it has started, by their numbers."""
    try:
        return {child.pid: child for child in process.children()}
    except psutil.Error:
        return {}


def argument(process: psutil.Process, start: str) -> str:
    """What follows ``start`` in the word of the command line that begins so; or empty."""
    try:
        command = process.cmdline()
    except psutil.Error:
        return ""
    return next((word.removeprefix(start) for word in command if word.startswith(start)), "")


def is_titled(pid: int, title: str) -> bool:
    """Whether the process has the title (``ray::IDLE``)."""
    try:
        return psutil.Process(pid).cmdline()[:1] == [title]
    except psutil.Error:
        return False


def environment_of(process: psutil.Process) -> dict[str, str] | None:
    """The environment that it was started with; None if it belongs to another user."""
    try:
        return process.environ()
    except (psutil.Error, OSError):
        return None
