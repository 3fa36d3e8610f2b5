"""Every private name of Ray and its companions is in the contract, and used in the adapter only."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

import ray_tune_memguard
from ray_tune_memguard.adapter import contract
from ray_tune_memguard.cluster import core_names
from ray_tune_memguard.private_names import PrivateName

PACKAGE = Path(ray_tune_memguard.__file__).parent
FOREIGN = ("ray", "optuna", "tensorboardX")
PRIVATE = re.compile(r"_[A-Za-z]\w*")
#: Python's own, and keys of Ray's JSON and of cloudpickle's states.
OTHERS = {
    "_getframe",
    "_current_frames",
    "_lru_cache_wrapper",
    "_active",
    "_fields_",
    "_debugmallocstats",
    "_PyObject_DebugMallocStats",
    "_type",
    "_abc_impl",
}


def names_in(rows: Iterable[PrivateName]) -> set[str]:
    """The names of rows, and the private ones in the paths to their owners."""
    rows = list(rows)
    paths = {part for row in rows for part in re.split(r"[.:]", row.owner)}
    return {name for row in rows for name in (row.name, row.older) if name} | {
        part for part in paths if PRIVATE.fullmatch(part)
    }


IN_CONTRACT = names_in(contract.NAMES)
#: By package: the names that it may use.
ALLOWED = {
    "adapter": names_in(row for row in contract.NAMES if row not in core_names.NAMES),
    "cluster": names_in(core_names.NAMES),
}
MODULES = sorted(PACKAGE.rglob("*.py"))


def own_names(tree: ast.Module) -> set[str]:
    """What a module defines itself: functions, classes, variables, attributes of its objects."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.alias):
            found.add(node.asname or node.name)
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and ast.unparse(node.value) in ("self", "cls")
        ):
            found.add(node.attr)
    return found


OURS = set().union(*(own_names(ast.parse(path.read_text())) for path in MODULES))


def at_run_time(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those that only a type checker reads."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node
        yield from at_run_time(node)


def private_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and name of each use of a private name that the module does not define."""
    own = own_names(tree)
    for node in at_run_time(tree):
        names: list[str] = []
        if isinstance(node, ast.Attribute):
            # A name of our own objects may come from a base class elsewhere.
            is_inherited = ast.unparse(node.value) in ("self", "cls") and node.attr in OURS
            names = [] if is_inherited else [node.attr]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names = re.findall(r"^\.?(_[a-z]\w*)$", node.value)
        elif isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] in FOREIGN:
            names = [*str(node.module).split("."), *(alias.name for alias in node.names)]
            own = own - set(names)
        elif isinstance(node, ast.Import):
            names = [part for alias in node.names for part in alias.name.split(".")]
        for name in names:
            is_own = name in own or name.startswith("_memguard") or name in OTHERS
            # One of our classes may look into another object of its kind.
            is_own = is_own or (name in OURS and name not in IN_CONTRACT)
            if PRIVATE.fullmatch(name) and not is_own:
                yield node.lineno, name


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_private_names_are_in_the_contract(path: Path) -> None:
    found = set(private_names(ast.parse(path.read_text())))
    allowed = ALLOWED.get(path.relative_to(PACKAGE).parts[0], set())
    assert {(line, name) for line, name in found if name not in allowed} == set()


def test_a_use_of_a_private_name_is_found() -> None:
    """What the test above looks for."""
    source = """
from ray.tune._one import Two
from ray.tune import _three
import ray._four
if TYPE_CHECKING:
    from ray.tune._five import Six
class Ours:
    def __init__(self, theirs):
        self._own = theirs._seven
        getattr(theirs, "_eight")
        self._inherited_nine()
"""
    found = {name for _, name in private_names(ast.parse(source))}
    assert found == {"_one", "_three", "_four", "_seven", "_eight", "_inherited_nine"}
