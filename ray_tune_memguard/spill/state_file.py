"""The experiment state file: complete at every moment, written at the cost of what is new.

Ray rewrites this JSON file whole at every experiment checkpoint. Here its front part, the entries
of finished trials, only ever grows, and the rest (unfinished trials, the controller's own state)
follows it::

    {"trial_data": [ENTRY, ENTRY, …, | UNFINISHED, …], "runner_data": …, "stats": …}
                    front            | tail

Two files take turns. The *spare* is brought up to date out of sight (the missing entries are
copied from the published one, the tail is written behind them) and then takes the published one's
name in one atomic step; that one becomes the spare. So whoever opens the name, Ray's own restore
included, at any moment, a killed driver's too, finds one whole file.

Knows nothing of what an entry means.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

HEAD = '{"trial_data": ['
_SPARE_SUFFIX = ".spare"
_RETIRED_SUFFIX = ".retired"
_COPY_BYTES = 1 << 20


def has_links(directory: Path) -> bool:
    """Whether a file here can have two names, by which two of them take turns.

    Raises:
        OSError: nothing can be written here.
    """
    one, other = directory / f".link{_SPARE_SUFFIX}", directory / f".link{_RETIRED_SUFFIX}"
    other.unlink(missing_ok=True)
    one.touch()
    try:
        os.link(one, other)
    except OSError:
        return False
    finally:
        one.unlink(missing_ok=True)
        other.unlink(missing_ok=True)
    return True


def remove_spares(directory: Path) -> None:
    """Remove what drivers that were killed have left."""
    for suffix in (_SPARE_SUFFIX, _RETIRED_SUFFIX):
        for path in directory.glob(f"*{suffix}"):
            path.unlink(missing_ok=True)


class ExperimentStateFile:
    """Writes the state file ``published``; keeps its spare in ``work_dir``, on the same disk.

    Invariants: the published file, once there, is whole; what was added is in the spare, or in the
    published file from where the spare is brought up to date.
    """

    def __init__(self, published: Path, work_dir: Path) -> None:
        self.path = published
        self._spare_path = work_dir / f"{published.name}{_SPARE_SUFFIX}"
        self._retired_path = work_dir / f"{published.name}{_RETIRED_SUFFIX}"
        work_dir.mkdir(parents=True, exist_ok=True)
        self._spare: int | None = None
        self._public: int | None = None
        self._front_end = len(HEAD)
        # How much of the front the spare holds, and how much of it the published file does.
        self._spare_has = 0
        self._public_has = 0

    def add(self, entries: Iterable[str]) -> None:
        """Append entries of finished trials, all or none. They show at the next :meth:`publish`.

        Raises:
            OSError: for example, no room. The entries are as before.
        """
        text = ",\n".join(entries)
        if not text:
            return
        spare = self._ready_spare()
        block = (self._separator() + text).encode()
        _write_all(spare, block, self._front_end)
        self._front_end += len(block)
        self._spare_has = self._front_end

    def mark(self) -> int:
        """Where the entries end now, for :meth:`rewind`."""
        return self._front_end

    def rewind(self, mark: int) -> None:
        """Take back what was added after ``mark``; the surplus bytes are written over."""
        self._front_end = mark
        self._spare_has = min(self._spare_has, mark)

    def publish(self, tail: str, *, keep_old: bool = False) -> None:
        """Show all entries, and ``tail`` behind them, under the name.

        ``tail`` is the rest of the file after the opening ``[``. ``keep_old``: somebody is reading
        the file that is published now, so it must not become the next spare; a copy of the new one
        will, at the cost of its whole size.

        Raises:
            OSError: for example, no room. The published file is as before.
        """
        spare = self._ready_spare()
        separator = "" if tail.lstrip().startswith("]") else self._separator()
        block = (separator + tail).encode()
        _write_all(spare, block, self._front_end)
        os.ftruncate(spare, self._front_end + len(block))
        # Without it a power cut could leave the new name on a file without its bytes.
        os.fsync(spare)
        recycle = self._public is not None and not keep_old and self._link_public()
        try:
            os.replace(self._spare_path, self.path)
        except FileNotFoundError:
            # Somebody removed the work directory. The bytes are there as long as it is open.
            self._spare, self._spare_has = None, 0
            self._ready_spare(source=spare)
            os.close(spare)
            raise
        outgoing, outgoing_has = self._public, self._public_has
        self._public, self._public_has = spare, self._front_end
        self._spare, self._spare_has = None, 0
        if outgoing is not None and recycle:
            os.replace(self._retired_path, self._spare_path)
            self._spare, self._spare_has = outgoing, outgoing_has
        elif outgoing is not None:
            os.close(outgoing)

    def _separator(self) -> str:
        return ",\n" if self._front_end > len(HEAD) else ""

    def _link_public(self) -> bool:
        """Give the published file a second name, under which it outlives its replacement."""
        assert self._public is not None
        try:
            self._retired_path.unlink(missing_ok=True)
            os.link(self.path, self._retired_path)
            # Somebody may have put another file in its place.
            return os.path.samestat(os.stat(self._retired_path), os.fstat(self._public))
        except OSError:  # Some file systems have no links.
            return False

    def _ready_spare(self, source: int | None = None) -> int:
        """The spare, with the whole front in it; what it lacks comes from ``source``.

        That is the published file unless another is given.
        """
        if self._spare is None:
            self._spare_path.parent.mkdir(parents=True, exist_ok=True)
            self._spare = os.open(self._spare_path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
            _write_all(self._spare, HEAD.encode(), 0)
            self._spare_has = len(HEAD)
        while self._spare_has < self._front_end:
            source = self._public if source is None else source
            assert source is not None
            size = min(_COPY_BYTES, self._front_end - self._spare_has)
            block = os.pread(source, size, self._spare_has)
            if not block:
                raise OSError(f"{self.path} ends before its entries do")
            _write_all(self._spare, block, self._spare_has)
            self._spare_has += len(block)
        return self._spare

    def close(self) -> None:
        """Drop the spare. The published file stays."""
        for file in (self._spare, self._public):
            if file is not None:
                os.close(file)
        self._spare = self._public = None
        for path in (self._spare_path, self._retired_path):
            path.unlink(missing_ok=True)


def _write_all(file: int, block: bytes, offset: int) -> None:
    view = memoryview(block)
    while view:
        written = os.pwrite(file, view, offset)
        view = view[written:]
        offset += written
