"""Names, copies and removes the files of a trial store.

A store is one SQLite file. While its run writes it, and after a kill, its newest rows are in a
second file beside it, the write-ahead log ``…-wal``. A kill while the log is moved into the file
can leave a ``…-journal``. Without these the file is incomplete, so all of them are copied, renamed
and removed together.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

from ray_tune_memguard.store.writer_lock import SUFFIX as LOCK_SUFFIX

SUFFIX = ".sqlite"
# Files that SQLite needs to read a database completely. It creates `-shm` from the log.
_LOG_SUFFIXES = ("-wal", "-journal")
_COMPANION_SUFFIXES = (*_LOG_SUFFIXES, "-shm")
# A file beside a finished store with its size and checksum.
_SEAL_SUFFIX = ".crc32"
# In memory, in case the disk of the temporary directory is full.
_SHARED_MEMORY = "/dev/shm"
_READ_BYTES = 1 << 20


class NoPlaceForCopyError(OSError):
    """A store must be copied to be read, and no temporary directory can be made."""


def claim_new_file(directory: Path, name: str) -> Path:
    """Create an empty file ``<name>.sqlite``, or ``<name>-1.sqlite``, … if that name is taken.

    A name is also taken if there is a log of that name, which SQLite would apply or delete.
    """
    number = 0
    while True:
        path = directory / (f"{name}-{number}{SUFFIX}" if number else f"{name}{SUFFIX}")
        number += 1
        if any(companion.exists() for companion in _companions(path)):
            continue
        try:
            # O_EXCL instead of a check beforehand, which would be a race.
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644))
            return path
        except FileExistsError:
            continue


def remove(path: Path) -> None:
    """Delete the files of an unused store, if they exist."""
    for file in (path, *_companions(path), _seal_path(path), _lock_path(path)):
        file.unlink(missing_ok=True)


def set_aside(path: Path) -> Path:
    """Rename the files of a damaged store, so that no search finds it.

    Returns:
        Its new path, which ends in ``.damaged``.

    Raises:
        OSError: a file cannot be read or renamed. A store that cannot be read completely keeps its
            name, because it may be intact.
    """
    present = [file for file in (path, *_companions(path)) if file.exists()]
    for file in present:
        _checksum_file(file)
    aside = path.with_suffix(".damaged")
    number = 0
    while aside.exists():
        number += 1
        aside = path.with_suffix(f".damaged-{number}")
    for file in present:
        file.rename(aside.with_name(aside.name + file.name.removeprefix(path.name)))
    _seal_path(path).unlink(missing_ok=True)
    _lock_path(path).unlink(missing_ok=True)
    return aside


def copy_privately(path: Path) -> Path:
    """Copy a store that no run writes, with its log, to a new temporary directory.

    Returns:
        The path of the copy; the caller removes its directory.

    Raises:
        OSError: a file cannot be read, or the disk has no room for the copy.
    """
    present = [path, *(file for file in _logs(path) if file.exists())]

    def write(copy: Path) -> None:
        for file in present:
            shutil.copyfile(file, copy.with_name(file.name))

    return write_privately(path, write)


def write_privately(path: Path, write: Callable[[Path], None]) -> Path:
    """Let ``write`` make a file like a store in a new temporary directory.

    Args:
        path: the path of the store.
        write: is called with the path of the new file, until it succeeds or no place is left.

    Returns:
        The path of the file; the caller removes its directory.

    Raises:
        OSError: the last of those that ``write`` has raised, or there is no place.
    """
    refused: OSError | None = None
    # Beside the store last: what is only looked at should stay as it is.
    for place in (tempfile.gettempdir(), _SHARED_MEMORY, path.parent):
        try:
            directory = Path(tempfile.mkdtemp(prefix="memguard-", dir=place))
        except OSError as error:
            # Not of its class: that a temporary directory is missing does not mean the store is.
            refused = refused or NoPlaceForCopyError(f"no temporary directory for a copy: {error}")
            continue
        try:
            write(directory / path.name)
            return directory / path.name
        except OSError as error:
            shutil.rmtree(directory, ignore_errors=True)
            refused = error
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise
    assert refused is not None
    raise refused


def copy_to(path: Path, target: Path) -> None:
    """Copy a store that no run writes, with its log, to another path; whole, or not at all.

    Raises:
        OSError: a file cannot be read or written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    remove(target)
    present = [path, *(file for file in _logs(path) if file.exists())]
    names = [target.with_name(target.name + file.name.removeprefix(path.name)) for file in present]
    parts = [name.with_name(f"{name.name}.part") for name in names]
    for file, part in zip(present, parts, strict=True):
        shutil.copyfile(file, part)
    # The log first: without it, the file under its name would be incomplete.
    for part, name in reversed(list(zip(parts, names, strict=True))):
        part.replace(name)


def write_seal(path: Path) -> None:
    """Write the size and the checksum of a complete store to a file beside it."""
    _seal_path(path).write_text(_checksum_file(path))


def remove_seal(path: Path) -> None:
    """Remove the checksum of a store that is going to change."""
    _seal_path(path).unlink(missing_ok=True)


def has_valid_seal(path: Path) -> bool:
    """Whether every byte of the file is as its run has left it."""
    try:
        seal = _seal_path(path).read_text()
        return seal.split()[0] == str(path.stat().st_size) and seal == _checksum_file(path)
    except (OSError, ValueError, IndexError):
        return False


def _logs(path: Path) -> list[Path]:
    return [path.with_name(path.name + suffix) for suffix in _LOG_SUFFIXES]


def _companions(path: Path) -> list[Path]:
    return [path.with_name(path.name + suffix) for suffix in _COMPANION_SUFFIXES]


def _lock_path(path: Path) -> Path:
    """The file that a killed run has left."""
    return path.with_name(path.name + LOCK_SUFFIX)


def _seal_path(path: Path) -> Path:
    return path.with_name(path.name + _SEAL_SUFFIX)


def _checksum_file(path: Path) -> str:
    size = checksum = 0
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            size += len(block)
            checksum = zlib.crc32(block, checksum)
    return f"{size} {checksum:08x}\n"
