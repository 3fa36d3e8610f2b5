"""The results in ``docs/results`` as Markdown, so that no figure is typed twice.

What a benchmark printed is in ``NAME.txt``: the machine and the commit, and tables in columns. Some
have only ``NAME.json``.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"

_COLUMNS = re.compile(r"-+(?:  -+)+")


def sections() -> str:
    """All results, one section each."""
    names = sorted(
        {file.with_suffix("") for file in RESULTS.rglob("*") if file.suffix in (".txt", ".json")}
    )
    return "\n".join(section(name.relative_to(RESULTS).as_posix()) for name in names)


def section(name: str) -> str:
    """One result: its commit and date, its tables, its picture."""
    lines = [f"## {name.replace('/', ', ')}", "", _origin(name), "", *body(name)]
    if (RESULTS / f"{name}.png").exists():
        lines += ["", f"![{name}, as a picture](results/{name}.png)"]
    return "\n".join([*lines, ""])


def body(name: str) -> Iterator[str]:
    """What a benchmark printed, or else the totals in its JSON file."""
    text = RESULTS / f"{name}.txt"
    if text.exists() and text.stat().st_size:
        yield from _from_text(text.read_text(encoding="utf-8").strip().splitlines())
        return
    stored = _json(name)
    if "totals" in stored:
        yield from _from_totals(stored["totals"])
    elif "sweeps" in stored:
        yield from _from_rows(stored["sweeps"])
    elif "rows" in stored:
        yield from _from_plants(stored["rows"])
    else:
        for key, found in stored.items():
            if isinstance(found, dict) and "table" in found:
                yield from ("", f"`{key}`", "", "```text", found["table"], "```")


def _origin(name: str) -> str:
    """The commit and the date of a result."""
    stored = _json(name)
    text = RESULTS / f"{name}.txt"
    printed = text.read_text(encoding="utf-8") if text.exists() else ""
    commits = re.findall(r"\bcommit (\w+\+?)", printed)
    commit = ", ".join(dict.fromkeys(commits)) or stored.get("machine", {}).get("commit")
    dates = re.findall(r"\bdate (\d{4}-\d\d-\d\d)", printed)
    date = ", ".join(dict.fromkeys(dates)) or str(stored.get("date", ""))[:10]
    if not date and commit:
        of_commit = _git("show", "--no-patch", "--format=%cs", commit.split(", ")[-1].rstrip("+"))
        date = f"commit of {of_commit}" if of_commit else "no date recorded"
    if not commit:
        file = next(RESULTS.glob(f"{name}.*"))
        commit = _git("log", "-1", "--format=%h", "--", str(file)) or "not recorded"
        commit = f"the result was stored in {commit}"
        date = date or _git("log", "-1", "--format=%cs", "--", str(file)) or "no date recorded"
    return f"Commit: {commit}. Date: {date}."


def _from_text(lines: list[str]) -> Iterator[str]:
    at = 0
    while at < len(lines):
        if at + 1 < len(lines) and _COLUMNS.fullmatch(lines[at + 1]):
            spans = [match.span() for match in re.finditer("-+", lines[at + 1])]
            rows = [lines[at]]
            at += 2
            while at < len(lines) and lines[at].strip():
                rows.append(lines[at])
                at += 1
            yield from _table([[_cell(row[a:b]) for a, b in spans] for row in rows])
        elif lines[at].startswith(("cores ", "date ")):
            yield from ("", f"*{lines[at]}*", "")
            at += 1
        elif lines[at].startswith(("kills, run", "Ray 2", "    ")):
            yield f"    {lines[at]}"
            at += 1
        else:
            yield from ("", lines[at], "")
            at += 1


def _cell(text: str) -> str:
    """A cell; leading blanks show that it is a part of the row above."""
    text = text.rstrip()
    indent = "&emsp;" * ((len(text) - len(text.lstrip())) // 3)
    return indent + text.strip().replace("|", "\\|")


def _table(rows: list[list[str]]) -> Iterator[str]:
    head, *rest = rows
    yield ""
    yield f"| {' | '.join(head)} |"
    yield f"|{' --- |' * len(head)}"
    yield from (f"| {' | '.join(row)} |" for row in rest)
    yield ""


def _from_totals(totals: dict[str, dict[str, Any]]) -> Iterator[str]:
    labels = list(next(iter(totals.values())))
    titles = {"ray": "Ray alone", "memguard": "MemGuard"}
    rows = [["", *(titles.get(name, name) for name in totals)]]
    rows += [[label, *(f"{found[label]:,}" for found in totals.values())] for label in labels]
    yield from _table(rows)


def _from_rows(sweeps: list[dict[str, Any]]) -> Iterator[str]:
    for sweep in sweeps:
        # Older results have the values in the row itself.
        values = [
            row.get("values") or {name: value for name, value in row.items() if type(value) is list}
            for row in sweep["rows"]
        ]
        names = list(dict.fromkeys(name for found in values for name in found))
        rows = [[sweep["title"], *names, "threshold"]]
        for row, found in zip(sweep["rows"], values, strict=True):
            cells = [", ".join(map(_number, found.get(name, []))) for name in names]
            rows.append([row["label"], *cells, row.get("threshold", row.get("bar", ""))])
        yield from _table(rows)


def _from_plants(plants: list[dict[str, Any]]) -> Iterator[str]:
    rows = [["leak case", "planted, B per trial", "named first", "measured, B per trial", "error"]]
    for plant in plants:
        error = plant.get("error")
        rows.append(
            [
                plant["plant"],
                _number(plant["planted"]),
                plant["first"] or plant["part"] or "nothing",
                "" if plant["slope"] is None else _number(plant["slope"]),
                "" if error is None else f"{100 * error:+.1f} %",
            ]
        )
    yield from _table(rows)


def _number(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


def _json(name: str) -> dict[str, Any]:
    path = RESULTS / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def _git(*arguments: str) -> str:
    """What git prints; nothing outside of a repository."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
