"""Makes README's links absolute and adds the project's URLs.

Usage: ``repository_links.py URL [REVISION [DIRECTORY]]``.

PyPI shows README without the repository around it. `make dist` runs this on a copy of the
repository, because only whoever publishes knows its address.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!\w+:|#)([^)\s]+)\)")
_URLS = "[project.urls]\n"
_GITHUB = re.compile(r"https://github\.com/([^/]+)/([^/]+)")


def absolute(markdown: str, url: str, revision: str) -> str:
    """The text with absolute links: to pages as they are shown, to pictures as they are."""

    def lead(link: re.Match[str]) -> str:
        mark, text, target = link.groups()
        kind = "raw" if mark else "blob" if Path(target.partition("#")[0]).suffix else "tree"
        return f"{mark}[{text}]({url}/{kind}/{revision}/{target})"

    return _LINK.sub(lead, markdown)


def with_urls(project: str, url: str, revision: str) -> str:
    """The text of ``pyproject.toml`` with the addresses that follow from the repository's."""
    on_github = _GITHUB.fullmatch(url)
    # The workflow `release` publishes the site there.
    site = "https://{}.github.io/{}/".format(*on_github.groups()) if on_github else None
    more = {
        "Source": url,
        "Documentation": site or f"{url}/blob/{revision}/docs/index.md",
        "Changelog": f"{url}/blob/{revision}/CHANGELOG.md",
        "Issues": f"{url}/issues",
    }
    lines = "".join(f'{name} = "{address}"\n' for name, address in more.items())
    head, found, tail = project.partition(_URLS)
    if not found:
        raise ValueError("pyproject.toml has no [project.urls]")
    return head + _URLS + lines + tail


def main(url: str, revision: str = "HEAD", root: str = ".") -> None:
    """Change README.md and pyproject.toml below ``root``."""
    url = url.rstrip("/")
    for name, change in (("README.md", absolute), ("pyproject.toml", with_urls)):
        path = Path(root, name)
        path.write_text(change(path.read_text(encoding="utf-8"), url, revision), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
