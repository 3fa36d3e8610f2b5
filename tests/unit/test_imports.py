"""What importing and constructing costs: the diagnostics are imported when they are used."""

from __future__ import annotations

import subprocess
import sys

import pytest

LAZY = (
    "ray_tune_memguard.diagnostics",
    "ray_tune_memguard.cli",
    "ray_tune_memguard.cluster.doctor",
    "ray_tune_memguard.keeping",
    "ray_tune_memguard.testing",
    "_pytest",
    "objgraph",
    "jinja2",
    "matplotlib",
    "memray",
    "prometheus_client",
    "graphviz",
    "rich",
    "grpc",
)


def imported_by(code: str) -> set[str]:
    """Which of the lazy packages a process has imported after ``code``, beyond Ray's own."""
    script = (
        "import sys, ray.tune\n"
        "before = set(sys.modules)\n"
        f"{code}\n"
        "print(*sorted(set(sys.modules) - before), file=sys.__stdout__)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    new = done.stdout.decode().split()
    return {name for name in LAZY if any(module.startswith(name) for module in new)}


def test_a_guard_imports_no_diagnostics_until_it_measures() -> None:
    code = (
        "import ray_tune_memguard\n"
        "guard = ray_tune_memguard.MemGuard()\n"
        "guard.setup()\n"
        "guard.on_step_begin(0, [])\n"
        "guard.on_step_end(0, [])\n"
    )
    assert imported_by(code) == set()
    assert imported_by(f"{code}guard.tracker.sample()") == {"ray_tune_memguard.diagnostics"}


@pytest.mark.parametrize("name", ["read_diagnosis", "read_growth"])
def test_a_reader_imports_them(name: str) -> None:
    code = f"from ray_tune_memguard import {name}"
    assert imported_by(code) == {"ray_tune_memguard.diagnostics"}


def test_an_unknown_name_is_an_error() -> None:
    import ray_tune_memguard

    with pytest.raises(AttributeError, match="no attribute 'read_nothing'"):
        ray_tune_memguard.read_nothing  # noqa: B018
