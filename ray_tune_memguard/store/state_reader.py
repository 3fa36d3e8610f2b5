"""Reads an experiment state file entry by entry, so that a big one need not fit into memory.

Such a file of 10,000 trials is 96 MB of JSON, which Ray parses whole. Here a window of it is parsed
at a time, also if the file is corrupt: an entry that is not valid JSON is told from one that
continues behind the window, and nothing more is read.
"""

from __future__ import annotations

import codecs
import io
import json
import re
from collections.abc import Callable, Iterator
from typing import Protocol

from ray_tune_memguard.store.state_file import HEAD

_CHUNK_BYTES = 1 << 20
# A token of JSON that is not a string, or an escape in one, is no longer: `-Infinity`, `\u00e9`.
_LONGEST_TOKEN = 24
# The list is closed, and then comes another member or the end.
_MIN_AFTER_ENTRIES = 256
_AFTER_ENTRIES = re.compile(r'\]\s*(,\s*"|\}\s*$)')
# Enough of a file's end to hold what follows the trials.
_END_BYTES = 64 * 1024
# The last member of the state that Ray writes. In the text of a trial the quotes are escaped.
_LAST_MEMBER = re.compile(rb',\s*(?="stats"\s*:)')


class SeekableFile(Protocol):
    """A file that is open for reading; Python's and Arrow's both are."""

    def seek(self, offset: int, whence: int = 0, /) -> int: ...

    def read(self, size: int = ..., /) -> bytes: ...


def is_complete(file: SeekableFile) -> bool:
    """Whether an experiment state file was written to its end.

    That costs a look at the end of the file; only if that is not as Ray and this package write it,
    the whole file is read, a window at a time.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - _END_BYTES))
    end = file.read()
    if not end.rstrip().endswith(b"}"):
        return False
    starts = [before.end() for before in _LAST_MEMBER.finditer(end)]
    if starts and _is_json(b"{" + end[starts[-1] :]):
        return True
    file.seek(0)
    if file.read(len(HEAD)) != HEAD.encode():
        file.seek(0)
        return _is_json(file.read())
    file.seek(0)
    try:
        reader = StateReader(file.read)
        for _ in reader.entries():
            pass
        return _is_json(reader.rest().encode())
    except ValueError:
        return False


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


class StateReader:
    """The entries of a state file, and then the rest of it.

    ``read``: gives up to so many bytes of the file, none at its end. ``progress``: told how many
    bytes were read, each time.

    Raises, on construction and later:
        ValueError: this is not a whole experiment state file.
    """

    def __init__(
        self, read: Callable[[int], bytes], progress: Callable[[int], object] = lambda _: None
    ) -> None:
        self._read = read
        self._progress = progress
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self._text = ""
        self._at = 0
        while len(self._text) < len(HEAD):
            self._more()
        if not self._text.startswith(HEAD):
            raise ValueError(f"It does not begin with {HEAD!r}")
        self._at = len(HEAD)

    def entries(self) -> Iterator[tuple[list[str], str]]:
        """Each element of ``trial_data``, two texts, and the text that it is made of."""
        decoder = json.JSONDecoder()
        while True:
            if (mark := self._next_mark()) == "]":
                return
            if mark == ",":
                self._at += 1
                continue
            start = self._at
            try:
                entry, self._at = decoder.raw_decode(self._text, start)
            except json.JSONDecodeError as error:
                if not _may_continue(error):
                    raise ValueError(f"An entry of it is corrupt: {error}") from error
                self._more()
                continue
            yield entry, self._text[start : self._at]

    def rest(self) -> str:
        """What follows the entries, as a whole file that has none. After :meth:`entries`.

        Raises:
            ValueError: nothing follows that can end the file: an entry before it is corrupt.
        """
        while len(self._text) - self._at < _MIN_AFTER_ENTRIES and self._fill():
            pass
        if not _AFTER_ENTRIES.match(self._text, self._at):
            raise ValueError("Its list of trials ends in the middle")
        while self._fill():
            pass
        text = HEAD + self._text[self._at :]
        self._text, self._at = "", 0
        return text

    def _next_mark(self) -> str:
        """The next character that is not a blank."""
        while True:
            while self._at < len(self._text) and self._text[self._at].isspace():
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            self._more()

    def _more(self) -> None:
        if not self._fill():
            raise ValueError("It ends in the middle")

    def _fill(self) -> bool:
        # As much again as is here already: a long entry is then not parsed too often in vain.
        block = self._read(max(_CHUNK_BYTES, len(self._text) - self._at))
        self._progress(len(block))
        self._text = self._text[self._at :] + self._decode(block, not block)
        self._at = 0
        return bool(block)


def _may_continue(error: json.JSONDecodeError) -> bool:
    """Whether the text that was parsed may be the beginning of valid JSON."""
    at_end = error.pos >= len(error.doc) - _LONGEST_TOKEN
    return at_end or error.msg.startswith("Unterminated string")
