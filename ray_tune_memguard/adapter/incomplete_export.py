"""The error of an export that has left something out. It needs no Ray."""

from __future__ import annotations

from collections.abc import Sequence

_MAX_NAMED = 10


class IncompleteExportError(RuntimeError):
    """Some files could not be written, or lack something; all others are there.

    Args:
        left_out: a line for each.
    """

    def __init__(self, left_out: Sequence[str]) -> None:
        self.left_out = list(left_out)
        more = len(self.left_out) - _MAX_NAMED
        super().__init__(
            "\n  ".join(
                [
                    "Some files are missing or lack something; all others were written.",
                    *self.left_out[:_MAX_NAMED],
                    *([f"and {more} more"] if more > 0 else []),
                ]
            )
        )
