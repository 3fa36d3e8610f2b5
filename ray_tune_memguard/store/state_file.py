"""The experiment state file: complete at every moment, written at the cost of what is new.

Ray rewrites this JSON file whole at every experiment checkpoint. Here its front part, the entries
of finished trials, only ever grows, and the rest (unfinished trials, the controller's own state)
follows it::

    {"trial_data": [ENTRY, ENTRY, …, | UNFINISHED, …], "runner_data": …, "stats": …}
                    front            | tail

Three files take turns. The *spare* is brought up to date out of sight (the missing entries are
copied from the published one, the tail is written behind them) and then takes the published one's
name in one atomic step. That one *rests* until the next time, for whoever is just reading it, and
is the spare after that. So whoever opens the name, Ray's own restore included, at any moment, a
killed driver's too, finds one whole file.

Two of the files are held open: the spare, and the published one, which must not be lost if somebody
replaces it. The spare is locked, which tells another run in the same directory that it is in use.

Knows nothing of what an entry means.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

HEAD = '{"trial_data": ['
_SPARE_SUFFIX = ".spare"
_RESTING_SUFFIX = ".resting"
_RETIRED_SUFFIX = ".retired"
_COPY_BYTES = 1 << 20


def can_take_turns(work_dir: Path, directory: Path) -> bool:
    """Whether files of these two directories can take each other's places while they are open.

    Not across disks, and not on some that have no hard links.

    Raises:
        OSError: nothing can be written there.
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
    """Remove what drivers that were killed have left, and nothing that a running one uses."""
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
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:  # It is locked; or the file system has no locks, so it may be in use.
        return True
    return False


@dataclass
class _File:
    """An open file, and how much of the front it holds."""

    number: int
    has: int


@dataclass
class _RestingFile:
    """A file that is not open, and how much of the front it holds."""

    device: int
    inode: int
    has: int


class ExperimentStateFile:
    """Writes the state file ``published``; keeps the two others in ``work_dir``, on the same disk.

    Invariants: the published file, once there, is whole, and is not written to before the second
    publication after its own; what was added is in the spare, or in the published file from where
    the spare is brought up to date.
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

    def add(self, entries: Iterable[bytes]) -> None:
        """Append entries of finished trials, all or none. They show at the next :meth:`publish`.

        Raises:
            OSError: for example, no room. The entries are as before.
        """
        block = b",\n".join(entries)
        if not block:
            return
        spare = self._ready_spare()
        block = self._separator() + block
        _write_all(spare.number, block, self._front_end)
        self._front_end += len(block)
        spare.has = self._front_end

    def mark(self) -> int:
        """Where the entries end now, for :meth:`rewind`."""
        return self._front_end

    def rewind(self, mark: int) -> None:
        """Take back what was added after ``mark``; the surplus bytes are written over."""
        self._front_end = mark
        if self._spare is not None:
            self._spare.has = min(self._spare.has, mark)

    def publish(self, tail: str, *, keep_old: bool = False) -> None:
        """Show all entries, and ``tail`` behind them, under the name.

        ``tail`` is the rest of the file after the opening ``[``. ``keep_old``: somebody has been
        reading an earlier file for long, so it must not become the next spare; a copy of the new
        one will, at the cost of its whole size.

        Raises:
            OSError: for example, no room. The published file is as before.
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
            # Somebody removed the work directory. The bytes are there as long as it is open.
            self._spare = None
            self._ready_spare(source=spare)
            os.close(spare.number)
            raise
        if outgoing is None and self._public is not None:
            os.close(self._public.number)
        self._public, self._spare = spare, None
        self._take_turns(outgoing, keep_old)

    def _take_turns(self, outgoing: _File | None, keep_old: bool) -> None:
        """The file that has rested is the next spare, and ``outgoing`` rests."""
        rested, self._resting = self._resting, None
        # Where somebody has removed one of them, the next spare is a copy.
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
        """The file that has rested, as the spare; None if it is another one, or not ours alone.

        Raises:
            OSError: it is gone.
        """
        number = os.open(self._resting_path, os.O_RDWR)
        try:
            status = os.fstat(number)
            # Somebody may have given it another name, under which its content must stay.
            is_ours = (status.st_dev, status.st_ino) == (rested.device, rested.inode)
            if not is_ours or status.st_nlink > 1:
                os.close(number)
                return None
            os.replace(self._resting_path, self._spare_path)
        except OSError:
            os.close(number)
            raise
        _lock(number)
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
            # Somebody may have put another file in its place.
            return os.path.samestat(os.stat(self._retired_path), os.fstat(self._public.number))
        except OSError:  # Some file systems have no links.
            return False

    def _ready_spare(self, source: _File | None = None) -> _File:
        """The spare, with the whole front in it; what it lacks comes from ``source``.

        That is the published file unless another is given.
        """
        if self._spare is None:
            self._spare_path.parent.mkdir(parents=True, exist_ok=True)
            # A new file, whoever has the old one.
            self._spare_path.unlink(missing_ok=True)
            number = os.open(self._spare_path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
            _lock(number)
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
                raise OSError(f"{self.path} ends before its entries do")
            _write_all(spare.number, block, spare.has)
            spare.has += len(block)
        return spare

    def close(self) -> None:
        """Drop the files that are not shown. The published file stays."""
        for file in (self._spare, self._public):
            if file is not None:
                os.close(file.number)
        self._spare = self._public = self._resting = None
        for path in (self._spare_path, self._resting_path, self._retired_path):
            path.unlink(missing_ok=True)


def _lock(file: int) -> None:
    """Show that the file is in use, as long as it is open; not all file systems can."""
    with suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _write_all(file: int, block: bytes, offset: int) -> None:
    view = memoryview(block)
    while view:
        written = os.pwrite(file, view, offset)
        view = view[written:]
        offset += written
