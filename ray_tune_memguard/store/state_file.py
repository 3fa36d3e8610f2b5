"""Writes the experiment state file: it is always complete, and only new trials are written.

Ray rewrites this JSON file completely at every experiment checkpoint. Here its front, the state
records of finished trials, only grows. The tail (unfinished trials, the controller's own state)
follows it::

    {"trial_data": [RECORD, RECORD, …, | UNFINISHED, …], "runner_data": …, "stats": …}
                    front              | tail

Three files take turns. The *spare* is completed first: it gets the records that it lacks from the
*published* file, and the tail behind them. Then it takes the name of the published file in one
atomic step. The old published file *rests* until the next publication, because a process may be
reading it; after that it is the next spare. A process that opens the name, for example Ray's own
restore, finds a complete file at any time, also after a kill.

Two of the files are kept open: the spare, and the published one, whose content is needed even if
another process replaces it. The spare is locked, so that another run in the same directory does not
remove it.

This module does not interpret the records.
"""

from __future__ import annotations

import fcntl
import io
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ray_tune_memguard.store.writer_lock import try_lock

HEAD = '{"trial_data": ['
_SPARE_SUFFIX = ".spare"
_RESTING_SUFFIX = ".resting"
_RETIRED_SUFFIX = ".retired"
_COPY_BYTES = 1 << 20


def can_take_turns(work_dir: Path, directory: Path) -> bool:
    """Whether files of these two directories can replace each other while they are open.

    They cannot across disks, nor on file systems without hard links.

    Raises:
        OSError: a directory cannot be written.
    """
    # Names that no other run uses, and that no run removes.
    name = f".turns-{os.getpid()}"
    spare, retired = work_dir / f"{name}.new", work_dir / f"{name}.old"
    shown = directory / f"{name}.new"
    paths = (spare, retired, shown)
    for path in paths:
        path.unlink(missing_ok=True)
    with shown.open("w"), spare.open("w"):
        try:
            os.link(shown, retired)
            os.replace(spare, shown)
            os.replace(retired, spare)
        except OSError:
            return False
        finally:
            for path in paths:
                path.unlink(missing_ok=True)
    return True


def remove_spares(directory: Path) -> None:
    """Remove the files that killed drivers have left, and none that a running driver uses."""
    in_use = {
        path.name.removesuffix(_SPARE_SUFFIX)
        for path in directory.glob(f"*{_SPARE_SUFFIX}")
        if _is_in_use(path)
    }
    for suffix in (_SPARE_SUFFIX, _RESTING_SUFFIX, _RETIRED_SUFFIX):
        for path in directory.glob(f"*{suffix}"):
            if path.name.removesuffix(suffix) not in in_use:
                path.unlink(missing_ok=True)


def _is_in_use(spare: Path) -> bool:
    try:
        with spare.open("rb") as file:
            # Where the file system has no locks it may be in use.
            return try_lock(file.fileno(), fcntl.LOCK_EX) is not True
    except FileNotFoundError:
        return False
    except OSError:
        return True


@dataclass
class _File:
    """An open file, and how many bytes of the front it has."""

    number: int
    has: int


@dataclass
class _RestingFile:
    """A file that is not open, and how many bytes of the front it has."""

    device: int
    inode: int
    has: int


class ExperimentStateFile:
    """Writes one run's experiment state file.

    Invariants: the published file, once it exists, is complete, and nothing is written to it before
    the second publication after its own. Each added record is in the spare, or in the published
    file, from which the spare is completed.

    Args:
        published: the path of the state file.
        work_dir: a directory for the two other files, on the same disk.
    """

    def __init__(self, published: Path, work_dir: Path) -> None:
        self.path = published
        self._spare_path = work_dir / f"{published.name}{_SPARE_SUFFIX}"
        self._resting_path = work_dir / f"{published.name}{_RESTING_SUFFIX}"
        self._retired_path = work_dir / f"{published.name}{_RETIRED_SUFFIX}"
        work_dir.mkdir(parents=True, exist_ok=True)
        self._spare: _File | None = None
        self._resting: _RestingFile | None = None
        self._public: _File | None = None
        self._front_end = len(HEAD)

    def add(self, records: Iterable[bytes]) -> None:
        """Append records of finished trials, all or none. The next :meth:`publish` shows them.

        Raises:
            OSError: for example, the disk is full. No record was added.
        """
        block = b",\n".join(records)
        if not block:
            return
        spare = self._ready_spare()
        block = self._separator() + block
        _write_all(spare.number, block, self._front_end)
        self._front_end += len(block)
        spare.has = self._front_end

    def mark(self) -> int:
        """The present end of the records, for :meth:`rewind`."""
        return self._front_end

    def rewind(self, mark: int) -> None:
        """Drop the records that were added after ``mark``; their bytes will be overwritten."""
        self._front_end = mark
        if self._spare is not None:
            self._spare.has = min(self._spare.has, mark)

    def publish(self, tail: str, *, keep_old: bool = False) -> None:
        """Publish all records, and ``tail`` behind them.

        Args:
            tail: the rest of the file; without records, the text after the opening ``[``.
            keep_old: whether a process may still read an earlier file, which must not become the
                next spare. The spare is then a copy of the whole new file.

        Raises:
            OSError: for example, the disk is full. The published file has not changed.
        """
        spare = self._ready_spare()
        separator = b"" if tail.lstrip().startswith("]") else self._separator()
        block = separator + tail.encode()
        _write_all(spare.number, block, self._front_end)
        os.ftruncate(spare.number, self._front_end + len(block))
        # Without it a power cut could leave the new name on a file without its bytes.
        os.fsync(spare.number)
        outgoing = self._public if self._link_public() else None
        try:
            os.replace(self._spare_path, self.path)
        except FileNotFoundError:
            # The work directory was removed. The file keeps its bytes while it is open.
            self._spare = None
            self._ready_spare(source=spare)
            os.close(spare.number)
            raise
        if outgoing is None and self._public is not None:
            os.close(self._public.number)
        self._public, self._spare = spare, None
        self._take_turns(outgoing, keep_old)

    def open_published(self) -> io.FileIO:
        """The published file, open for reading. The caller closes it.

        The records that the file has now do not change any more, whatever is published later.

        Raises:
            OSError: nothing was published, or there are too many open files.
        """
        if self._public is None:
            raise OSError(f"{self.path} was not published")
        return io.FileIO(os.dup(self._public.number), "rb")

    def _take_turns(self, outgoing: _File | None, keep_old: bool) -> None:
        """Make the file that has rested the next spare, and let ``outgoing`` rest."""
        rested, self._resting = self._resting, None
        # If one of them was removed, the next spare is a copy.
        if rested is not None and not keep_old:
            with suppress(OSError):
                self._spare = self._take_rested(rested)
        if outgoing is not None:
            with suppress(OSError):
                os.replace(self._retired_path, self._resting_path)
                status = os.fstat(outgoing.number)
                self._resting = _RestingFile(status.st_dev, status.st_ino, outgoing.has)
            os.close(outgoing.number)

    def _take_rested(self, rested: _RestingFile) -> _File | None:
        """The file that has rested, as the spare; None if it was replaced or has another name.

        Raises:
            OSError: it was removed.
        """
        number = os.open(self._resting_path, os.O_RDWR)
        try:
            status = os.fstat(number)
            # It may have another name (a hard link), under which its content must stay.
            is_ours = (status.st_dev, status.st_ino) == (rested.device, rested.inode)
            if not is_ours or status.st_nlink > 1:
                os.close(number)
                return None
            os.replace(self._resting_path, self._spare_path)
        except OSError:
            os.close(number)
            raise
        try_lock(number, fcntl.LOCK_EX)
        return _File(number, rested.has)

    def _separator(self) -> bytes:
        return b",\n" if self._front_end > len(HEAD) else b""

    def _link_public(self) -> bool:
        """Give the published file a second name, under which it outlives its replacement."""
        if self._public is None:
            return False
        try:
            self._retired_path.unlink(missing_ok=True)
            os.link(self.path, self._retired_path)
            # Another process may have replaced it.
            return os.path.samestat(os.stat(self._retired_path), os.fstat(self._public.number))
        except OSError:  # Some file systems have no links.
            return False

    def _ready_spare(self, source: _File | None = None) -> _File:
        """The spare, completed with the records that it lacks.

        Args:
            source: the file to copy them from; None for the published file.
        """
        if self._spare is None:
            self._spare_path.parent.mkdir(parents=True, exist_ok=True)
            # A new file, because another process may have the old one open.
            self._spare_path.unlink(missing_ok=True)
            number = os.open(self._spare_path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
            try_lock(number, fcntl.LOCK_EX)
            self._spare = _File(number, 0)
            _write_all(number, HEAD.encode(), 0)
            self._spare.has = len(HEAD)
        spare = self._spare
        while spare.has < self._front_end:
            source = self._public if source is None else source
            assert source is not None
            size = min(_COPY_BYTES, self._front_end - spare.has)
            block = os.pread(source.number, size, spare.has)
            if not block:
                raise OSError(f"{self.path} has fewer records than were written to it")
            _write_all(spare.number, block, spare.has)
            spare.has += len(block)
        return spare

    def close(self) -> None:
        """Close all files and remove the unpublished ones."""
        for file in (self._spare, self._public):
            if file is not None:
                os.close(file.number)
        self._spare = self._public = self._resting = None
        for path in (self._spare_path, self._resting_path, self._retired_path):
            path.unlink(missing_ok=True)


def _write_all(file: int, block: bytes, offset: int) -> None:
    view = memoryview(block)
    while view:
        written = os.pwrite(file, view, offset)
        view = view[written:]
        offset += written
