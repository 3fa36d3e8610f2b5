"""Where this driver's Ray session is."""

from __future__ import annotations

from pathlib import Path


def session_directory() -> Path | None:
    """The directory of the session on this machine; None for a driver that is not on a node.

    ``/tmp/ray/session_latest`` may be the session of another cluster.
    """
    from ray._private import worker

    node = getattr(worker, "_global_node", None)
    return None if node is None else Path(node.get_session_dir_path())


def logs_directory() -> Path | None:
    """The directory of the session's log files; None for a driver that is not on a node."""
    directory = session_directory()
    return None if directory is None else directory / "logs"
