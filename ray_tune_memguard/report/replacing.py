"""Replaces a file when the new one is complete."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Where to write the new file. After an error the old one stays.

    Of a symbolic link the file that it names is replaced. What is no regular file, such as
    ``/dev/stdout``, is written to.

    Args:
        target: the file.

    Examples:
        >>> from pathlib import Path
        >>> with replacing(Path("results.txt")) as part:
        ...     part.write_text("complete")
        8
    """
    if target.exists() and not target.is_file():
        yield target
        return
    place = target.resolve()
    part = place.with_name(f".{place.name}.part")
    try:
        yield part
        part.replace(place)
    finally:
        part.unlink(missing_ok=True)
