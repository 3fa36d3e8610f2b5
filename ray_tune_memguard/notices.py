"""Logs messages to the user, each once a run, with the logger ``ray_tune_memguard``."""

from __future__ import annotations

import logging
import sys
import uuid

logger = logging.getLogger("ray_tune_memguard")


#: An attribute of log records that a later one of their run makes out of date.
_IS_PROGRESS = "is_memguard_progress"


def show_lines() -> None:
    """Show the messages on stderr, unless the user has configured logging. Begins a run."""
    if not logger.hasHandlers():
        handler = _NotebookHandler() if _in_notebook() else logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("[memguard] %(message)s"))
        logger.addHandler(handler)
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    for known in logger.handlers:
        if isinstance(known, _NotebookHandler):
            known.begin_run()


def progress(line: str) -> None:
    """Log a line about how a run goes on. In a notebook it replaces the one before."""
    logger.info("%s", line, extra={_IS_PROGRESS: True})


class _NotebookHandler(logging.Handler):
    """Shows messages under a cell, and of a run's progress the latest line only."""

    def __init__(self) -> None:
        super().__init__()
        self._lines = logging.StreamHandler(sys.stderr)
        self._display_id: str | None = None

    def setFormatter(self, fmt: logging.Formatter | None) -> None:
        super().setFormatter(fmt)
        self._lines.setFormatter(fmt)

    def begin_run(self) -> None:
        """Show the next line of progress in a place of its own, under the cell that runs then."""
        self._display_id = None

    def emit(self, record: logging.LogRecord) -> None:
        if not getattr(record, _IS_PROGRESS, False):
            self._lines.emit(record)
            return
        try:
            from IPython.display import display

            is_new = self._display_id is None
            self._display_id = self._display_id or uuid.uuid4().hex
            text = {"text/plain": self.format(record)}
            display(text, raw=True, display_id=self._display_id, update=not is_new)
        except Exception:  # As all handlers do.
            self.handleError(record)


def _in_notebook() -> bool:
    """Whether a kernel of Jupyter's runs this process."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")


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
