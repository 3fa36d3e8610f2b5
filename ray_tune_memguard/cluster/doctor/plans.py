"""Reads what the user plans: free inodes of the storage, and calls in the code."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from ray_tune_memguard.cluster.doctor.facts import PlanFacts

#: Calls that are named; more of them say nothing new.
_MAX_CALLS = 20


def plan(trials: int | None, storage: str | None, code: Iterable[str]) -> PlanFacts:
    """The facts about the user's plan.

    Args:
        trials: how many trials are planned.
        storage: the directory of the results.
        code: Python files, or directories of them.
    """
    calls = [call for path in code for call in owner_calls(Path(path))]
    return PlanFacts(
        trials=trials,
        storage=storage or "",
        free_inodes=None if storage is None else free_inodes(storage),
        owner_calls=tuple(calls[:_MAX_CALLS]),
    )


def free_inodes(path: str) -> int | None:
    """Free inodes of the file system; None if it does not count them (btrfs, Windows)."""
    if not hasattr(os, "statvfs"):
        return None
    found = os.statvfs(path)
    return found.f_favail if found.f_files else None


def owner_calls(path: Path) -> Iterator[str]:
    """``file:line`` of each call ``….put(…, _owner=…)``. Files that do not parse are skipped."""
    for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
        try:
            tree = ast.parse(file.read_bytes())
        except (OSError, SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr == "put"
                and any(keyword.arg == "_owner" for keyword in node.keywords)
            ):
                yield f"{file}:{node.lineno}"
