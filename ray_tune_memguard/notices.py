"""What is said to the user: each thing once a sweep, under the name of this package."""

from __future__ import annotations

import logging
import sys

logger = logging.getLogger("ray_tune_memguard")


def show_lines() -> None:
    """Let the report lines be seen, unless the user has set up logging otherwise."""
    if not logger.hasHandlers():
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)


class Notices:
    """Warnings and remarks of one sweep; a repeated one is not said again."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def warn(self, topic: str, message: str) -> None:
        self._say(topic, message, logging.WARNING)

    def remark(self, topic: str, message: str) -> None:
        self._say(topic, message, logging.INFO)

    def again(self, topic: str) -> None:
        """The matter is settled: should it come back, it is said again."""
        self._said.discard(topic)

    def _say(self, topic: str, message: str, level: int) -> None:
        if topic not in self._said:
            self._said.add(topic)
            logger.log(level, message)
