"""Writes a summary of each object above its entry in ``docs/api.md``: ``python -m tools.api_page``.

The site shows whole docstrings there. GitHub shows nothing for these entries, but the summaries.
"""

from __future__ import annotations

import inspect
import pkgutil
import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "api.md"
_ENTRY = re.compile(r"^(?:`[^\n]*\n\n)?::: (\S+)$", re.MULTILINE)


def page() -> str:
    """The page, with the summaries of today's code."""
    return _ENTRY.sub(lambda entry: f"{_summary(entry[1])}\n\n::: {entry[1]}", PAGE.read_text())


def _summary(path: str) -> str:
    """The name and parameters of an object, and the first sentence of its docstring."""
    module, _, name = path.rpartition(".")
    found = getattr(pkgutil.resolve_name(module), name)
    parameters = ", ".join(inspect.signature(found).parameters)
    first = " ".join((inspect.getdoc(found) or "").split("\n\n")[0].split())
    first = re.sub(r":\w+:`~?([\w.]+)`", r"`\1`", re.sub(r"::$", ".", first))
    first = re.sub(r"`([^`<]+) <(\S+)>`_", r"[\1](\2)", first)
    return f"`{name}({parameters})`: {first}"


if __name__ == "__main__":
    PAGE.write_text(page())
