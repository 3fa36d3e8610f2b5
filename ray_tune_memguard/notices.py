"""Logs messages to the user, each once a run, with the logger ``ray_tune_memguard``."""

from __future__ import annotations

import logging
import sys

logger = logging.getLogger("ray_tune_memguard")


def show_lines() -> None:
    """Show the messages on stderr, unless the user has configured logging."""
    if not logger.hasHandlers():
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)


class Notices:
    """The messages of one run. A repeated message of a topic is not logged."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def warn(self, topic: str, message: str) -> None:
        self._say(topic, message, logging.WARNING)

    def remark(self, topic: str, message: str) -> None:
        self._say(topic, message, logging.INFO)

    def again(self, topic: str) -> None:
        """Log the next message of this topic again, because its cause has ended."""
        self._said.discard(topic)

    def _say(self, topic: str, message: str, level: int) -> None:
        if topic not in self._said:
            self._said.add(topic)
            logger.log(level, message)
