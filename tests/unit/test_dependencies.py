"""What the package imports is what it declares, so that it works wherever it was installed."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:  # What mypy, which is always there, brings along.
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "ray_tune_memguard"
#: Imported in a function that is called only where the user's own code uses the library.
USERS_OWN = {"IPython", "optuna", "tensorboardX"}
#: Where a distribution has another name than the module.
DISTRIBUTIONS = {"prometheus_client": "prometheus-client"}
#: Imported in functions only, and of no use without the extra.
OF_EXTRAS = (PACKAGE / "cli" / "page", PACKAGE / "report" / "metrics.py")


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=!~; ]", requirement)[0] for requirement in requirements}


def imports(tree: ast.AST, inside_function: bool = False) -> Iterator[tuple[str, bool]]:
    """Each imported top-level module, and whether it is imported in a function."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], inside_function) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0], inside_function
        is_function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        yield from imports(node, inside_function or is_function)


def test_imports_are_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    mandatory = names(project["dependencies"])
    of_extras = project["optional-dependencies"]
    extras = {name for extra in of_extras if extra != "dev" for name in names(of_extras[extra])}
    ours = set(sys.stdlib_module_names) | {PACKAGE.name}
    used = set()
    for path in PACKAGE.rglob("*.py"):
        is_of_an_extra = any(place in (path, *path.parents) for place in OF_EXTRAS)
        for module, inside_function in imports(ast.parse(path.read_text()), is_of_an_extra):
            if module in ours:
                continue
            used.add(module)
            module = DISTRIBUTIONS.get(module, module)
            allowed = mandatory | extras | USERS_OWN if inside_function else mandatory
            assert module in allowed, f"{path.relative_to(ROOT)} imports {module}"
    assert mandatory <= used, "declared and not imported"
