"""The machine and the software that a benchmark ran on."""

from __future__ import annotations

import os
import platform
from importlib import metadata

import psutil


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed, run from the source tree"


def describe_machine() -> dict[str, str]:
    """Return what the figures depend on: ``load`` by other work, ``allocator`` settings for RSS."""
    prefixes = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
    allocator = {name: os.environ[name] for name in os.environ if name.startswith(prefixes)}
    return {
        "cores": str(os.cpu_count()),
        "memory": f"{psutil.virtual_memory().total / 2**30:.1f} GiB",
        "load, 1 min": f"{psutil.getloadavg()[0]:.1f}",
        "kernel": f"{platform.system()} {platform.release()}",
        "libc": " ".join(platform.libc_ver()),
        "python": platform.python_version(),
        "ray": _version("ray"),
        "ray-tune-memguard": _version("ray-tune-memguard"),
        "allocator": str(allocator) if allocator else "no setting",
    }
