"""Reads an experiment state file record by record, so that a large one need not fit into memory.

Ray parses the whole file, which is 96 MB of JSON for 10,000 trials. Here one window of it is parsed
at a time, also if the file is corrupt: reading stops at a record that is not valid JSON, and
continues if a record is only longer than the window.
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
# The maximal length of a JSON token that is not a string (`-Infinity`), and of an escape
# (`\u00e9`).
_MAX_TOKEN = 24
# The end of the list of records, and then another member or the end of the file.
_MIN_AFTER_RECORDS = 256
_AFTER_RECORDS = re.compile(r'\]\s*(,\s*"|\}\s*$)')
# Enough of a file's end to hold what follows the trials.
_END_BYTES = 64 * 1024
# The last member of the state that Ray writes. In the text of a trial the quotes are escaped.
_LAST_MEMBER = re.compile(rb',\s*(?="stats"\s*:)')


class SeekableFile(Protocol):
    """A file of Python's or of Arrow's that is open for reading."""

    def seek(self, offset: int, whence: int = 0, /) -> int: ...

    def read(self, size: int = ..., /) -> bytes: ...


def is_complete(file: SeekableFile) -> bool:
    """Whether an experiment state file was written completely.

    Reads the end of the file. Only if that is not as Ray and this package write it, it reads the
    whole file, a window at a time.
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
        for _ in reader.records():
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
    """Reads the records of a state file, and then the rest of it.

    Args:
        read: returns the next bytes of the file, at most as many as its argument says; none at the
            end of the file.
        progress: called with the number of bytes after each read.

    Raises:
        ValueError: the file is not a complete experiment state file. All methods raise it as well.
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

    def records(self) -> Iterator[tuple[list[str], str]]:
        """Each record of ``trial_data``, parsed (two texts) and as JSON."""
        decoder = json.JSONDecoder()
        while True:
            if (mark := self._next_mark()) == "]":
                return
            if mark == ",":
                self._at += 1
                continue
            start = self._at
            try:
                record, self._at = decoder.raw_decode(self._text, start)
            except json.JSONDecodeError as error:
                if not _may_continue(error):
                    raise ValueError(f"One of its records is corrupt: {error}") from error
                self._more()
                continue
            yield record, self._text[start : self._at]

    def rest(self) -> str:
        """The file without its records. Call it after :meth:`records`.

        Raises:
            ValueError: the list of records does not end properly, because one is corrupt.
        """
        while len(self._text) - self._at < _MIN_AFTER_RECORDS and self._fill():
            pass
        if not _AFTER_RECORDS.match(self._text, self._at):
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
        # Double the window each time, so that a long record is not parsed too often.
        block = self._read(max(_CHUNK_BYTES, len(self._text) - self._at))
        self._progress(len(block))
        self._text = self._text[self._at :] + self._decode(block, not block)
        self._at = 0
        return bool(block)


def _may_continue(error: json.JSONDecodeError) -> bool:
    """Whether the text that was parsed may be the beginning of valid JSON."""
    at_end = error.pos >= len(error.doc) - _MAX_TOKEN
    return at_end or error.msg.startswith("Unterminated string")
