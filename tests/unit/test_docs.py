"""README and the pages in docs/ are complete, and true where a test can say so."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

import ray_tune_memguard
from ray_tune_memguard.adapter import contract
from tools import api_page, benchmark_tables, command_page, repository_links

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
LINK = re.compile(r"\]\((?!\w+:|#)([^)\s#]+)[^)]*\)")
FIGURE = re.compile(r"\d[\d,.]*\d|\d")


def readme_figures() -> list[tuple[str, list[str], str]]:
    """Of each row of README's table: its name, its figures, and the text of its results."""
    table = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Figures")[2]
    found = []
    for line in table.partition("\n## ")[0].splitlines():
        files = LINK.findall(line)
        if line.startswith("|") and files:
            name, rays, ours = line.split("|")[1:4]
            results = "\n".join((ROOT / file).read_text(encoding="utf-8") for file in files)
            found.append((name.strip(), FIGURE.findall(rays + ours), results))
    return found


@pytest.mark.parametrize(("name", "figures", "results"), readme_figures())
def test_figures_in_readme_are_those_of_the_results(
    name: str, figures: list[str], results: str
) -> None:
    there = {figure.replace(",", "") for figure in FIGURE.findall(results)}
    assert figures, name
    assert [figure for figure in figures if figure.replace(",", "") not in there] == []


def test_readme_has_few_figures() -> None:
    assert 1 <= len(readme_figures()) <= 6


def test_each_row_of_figures_in_readme_links_to_a_result() -> None:
    table = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Figures")[2]
    rows = [line for line in table.partition("\n## ")[0].splitlines() if line.startswith("|")][2:]
    without = [
        row
        for row in rows
        if not any(file.startswith("docs/results/") for file in LINK.findall(row))
    ]
    assert rows
    assert without == []


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files(page: Path) -> None:
    links = LINK.findall(page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_published_links_are_absolute() -> None:
    published = repository_links.absolute(
        (ROOT / "README.md").read_text(encoding="utf-8"), "https://example.org/it", "v1"
    )
    assert LINK.findall(published) == []
    assert "](https://example.org/it/raw/v1/docs/results/reused.png)" in published
    assert "](https://example.org/it/blob/v1/docs/options.md)" in published
    assert "](https://example.org/it/tree/v1/docs/results)" in published


def test_published_metadata_has_the_repository() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    published = repository_links.with_urls(project, "https://example.org/it", "v1")
    assert '[project.urls]\nSource = "https://example.org/it"\n' in published
    assert 'Documentation = "https://example.org/it/blob/v1/docs/index.md"\n' in published
    on_github = repository_links.with_urls(project, "https://github.com/owner/it", "v1")
    assert 'Documentation = "https://owner.github.io/it/"\n' in on_github


def test_the_api_page_has_every_public_name() -> None:
    listed = (DOCS / "api.md").read_text(encoding="utf-8")
    missing = [
        name
        for name in ray_tune_memguard.__all__
        if f"::: ray_tune_memguard.{name}\n" not in listed
    ]
    assert missing == [], "docs/api.md lacks a line for these"


def test_the_options_page_has_every_option() -> None:
    listed = (DOCS / "options.md").read_text(encoding="utf-8")
    options = inspect.signature(ray_tune_memguard.MemGuard).parameters
    rows = [f"| `{name}` | `TUNE_MEMGUARD_{name.upper()}` |" for name in options]
    of_profiles = inspect.signature(ray_tune_memguard.MemrayProfiler).parameters
    rows += [f"| `{name}` | `TUNE_MEMGUARD_PROFILE_{name.upper()}` |" for name in of_profiles]
    assert [row for row in rows if row not in listed] == [], "docs/options.md lacks these"


def test_the_command_line_page_is_the_help_of_the_commands() -> None:
    listed = (DOCS / "command-line.md").read_text(encoding="utf-8")
    assert listed == command_page.page(), "run `python -m tools.command_page`"


def test_the_api_page_says_what_each_object_is() -> None:
    listed = (DOCS / "api.md").read_text(encoding="utf-8")
    assert listed == api_page.page(), "run `python -m tools.api_page`"


def test_the_page_of_ray_issues_has_every_capability() -> None:
    listed = (DOCS / "ray-issues.md").read_text(encoding="utf-8")
    missing = [name for name in contract.WITHOUT if f"`{name}`" not in listed]
    assert missing == [], "docs/ray-issues.md lacks these"


def test_results_become_tables() -> None:
    text = ["", "name      Ray alone", "--------  ---------", "fit()     10 s", "   alone  9 s"]
    table = "\n".join(benchmark_tables._from_text(text))
    assert "| name | Ray alone |" in table
    assert "| fit() | 10 s |\n| &emsp;alone | 9 s |" in table


def test_every_result_says_its_commit() -> None:
    for name in ("reused", "overhead", "restore"):
        assert re.search(r"Commit: \w{7}", benchmark_tables.section(name)), name


def test_named_tests_exist() -> None:
    named = re.findall(r"`(test_\w+\.py)`", (DOCS / "compatibility.md").read_text(encoding="utf-8"))
    existing = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    assert named
    assert set(named) <= existing


def python_blocks() -> list[tuple[str, str]]:
    pages = [ROOT / "README.md", *DOCS.rglob("*.md")]
    return [
        (page.name, block)
        for page in pages
        for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    ]


@pytest.mark.parametrize(("page", "block"), python_blocks())
def test_examples_are_python(page: str, block: str) -> None:
    compile(block, page, "exec")
