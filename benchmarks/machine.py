"""The machine and the software that a benchmark ran on."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

import psutil


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed, run from the source tree"


def _commit() -> str:
    """The commit that is checked out, with a ``+`` if files differ from it."""
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    here = Path(__file__).parent
    try:
        return subprocess.check_output(command, cwd=here, text=True).strip()
    except (OSError, subprocess.CalledProcessError):
        return "not in a repository"


def machine_line(machine: Mapping[str, str]) -> str:
    """Return what :func:`describe_machine` has returned, in one line."""
    return ", ".join(f"{key} {value}" for key, value in machine.items())


def describe_machine() -> dict[str, str]:
    """Return what the figures depend on: ``load`` by other work, ``allocator`` settings for RSS."""
    prefixes = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
    allocator = {name: os.environ[name] for name in os.environ if name.startswith(prefixes)}
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "cores": str(os.cpu_count()),
        "memory": f"{psutil.virtual_memory().total / 2**30:.1f} GiB",
        "load, 1 min": f"{psutil.getloadavg()[0]:.1f}",
        "kernel": f"{platform.system()} {platform.release()}",
        "libc": " ".join(platform.libc_ver()),
        "python": platform.python_version(),
        "ray": _version("ray"),
        "ray-tune-memguard": _version("ray-tune-memguard"),
        "commit": _commit(),
        "allocator": str(allocator) if allocator else "no setting",
    }
