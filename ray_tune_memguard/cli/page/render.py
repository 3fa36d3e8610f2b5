"""Renders the page: one file that loads nothing, neither from the network nor beside it."""

from __future__ import annotations

import base64
import hashlib
import time
from pathlib import Path

import jinja2

from ray_tune_memguard.cli.measured import Measured
from ray_tune_memguard.cli.page.sections import Page
from ray_tune_memguard.report.texts import moment

_PARTS = Path(__file__).parent


def render(measured: Measured, rows: int) -> tuple[str, list[str]]:
    """The page, and what of the measurements cannot be read or drawn.

    Args:
        measured: what was measured.
        rows: the most rows of a table.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_PARTS),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (_PARTS / "sort.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = Page.of(measured, rows)
    sections = page.sections()
    text = environment.get_template("page.html.jinja").render(
        name=measured.path.name,
        path=measured.path,
        run=measured.run,
        sections=sections,
        problems=page.problems,
        made=moment(time.time()),
        script=script,
        script_hash=f"sha256-{digest}",
    )
    return text, page.problems
