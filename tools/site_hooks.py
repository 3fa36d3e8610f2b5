"""Hooks of the documentation site (``mkdocs.yml``).

Pages in ``docs/`` can also be read where they are: a link to a file elsewhere in the repository is
an ordinary relative one. On the site it leads to the page made of that file or, with
``REPOSITORY_URL`` in the environment, to the file in the repository.
"""

from __future__ import annotations

import os
import posixpath
import re
from typing import TYPE_CHECKING

from benchmark_tables import ROOT, sections

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

#: Files of the repository that are pages of the site.
PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CODE_OF_CONDUCT.md": "code-of-conduct.md",
}
_TABLES_HERE = "<!-- benchmark tables -->"
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Let a page in ``docs/`` that the navigation does not name be the last of the guides."""
    named = _names(config.nav)
    guides = next(entry["Guides"] for entry in config.nav or [] if "Guides" in entry)
    pages = sorted(page.name for page in (ROOT / "docs").glob("*.md"))
    guides.extend(page for page in pages if page not in named)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are files elsewhere."""
    from mkdocs.structure.files import File

    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Fill in the tables, and let links that leave ``docs/`` lead somewhere."""
    if _TABLES_HERE in markdown:
        markdown = markdown.replace(_TABLES_HERE, sections())
    at = page.file.src_uri
    # A page made of a file elsewhere has that file's links.
    of = next((f"../{source}" for source, name in PAGES.items() if name == at), at)
    folder = posixpath.dirname(posixpath.join("docs", of))
    here = posixpath.dirname(at)

    def lead(match: re.Match[str]) -> str:
        mark, text, target, anchor = match.group(1), match.group(2), match.group(3), match.group(4)
        if "://" in target or target.startswith("mailto:"):
            return match.group(0)
        path = posixpath.normpath(posixpath.join(folder, target))
        if path.startswith("docs/") and not (ROOT / path).is_dir():
            on_site = path.removeprefix("docs/")
        elif path in PAGES:
            on_site = PAGES[path]
        elif not (ROOT / path).exists():
            return match.group(0)  # The build says that it leads nowhere.
        elif url := os.environ.get("REPOSITORY_URL"):
            return f"{mark}[{text}]({url}/tree/HEAD/{path})"
        else:
            return f"`{path}`" if text.strip("`") == path else f"{text} (`{path}`)"
        return f"{mark}[{text}]({posixpath.relpath(on_site, here or '.')}{anchor or ''})"

    return _LINK.sub(lead, markdown)


def _names(nav: object) -> set[str]:
    """All pages in a navigation, which is made of lists, dicts with one entry, and names."""
    if isinstance(nav, str):
        return {nav}
    if isinstance(nav, dict):
        nav = list(nav.values())
    return set().union(*map(_names, nav)) if isinstance(nav, list) else set()
