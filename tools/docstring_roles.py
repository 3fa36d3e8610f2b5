"""Docstrings on the site: their reStructuredText roles and ``::`` as Markdown."""

from __future__ import annotations

import re
from pathlib import Path

from griffe import Extension, Object

API_PAGE = Path(__file__).resolve().parent.parent / "docs" / "api.md"

_ROLE = re.compile(r":(?:class|meth|func|data|mod|attr):`~?([\w.]+)`")
_ON_PAGE = re.compile(r"^::: ([\w.]+)$", re.MULTILINE)


class DocstringRoles(Extension):
    """Turns ``:class:`X``` into a link to ``X``, if the API page has it, and ``::`` into ``:``."""

    def __init__(self) -> None:
        found = _ON_PAGE.findall(API_PAGE.read_text(encoding="utf-8"))
        self.paths = {path.rpartition(".")[2]: path for path in found}

    def on_object(self, *, obj: Object, **_: object) -> None:
        if obj.docstring is not None:
            text = re.sub(r"::$", ":", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = _ROLE.sub(self._link, text)

    def _link(self, role: re.Match[str]) -> str:
        name = role.group(1).rpartition(".")[2]
        path = self.paths.get(name)
        return f"[`{name}`][{path}]" if path else f"`{role.group(1)}`"
