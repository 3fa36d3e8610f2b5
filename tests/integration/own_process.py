"""Runs a module in a process of its own, for tests and benchmarks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 280.0
#: Arguments of `ray.init` for a small cluster of such a process.
CLUSTER: dict[str, Any] = {
    "address": "local",
    "num_cpus": 2,
    "include_dashboard": False,
    "log_to_driver": False,
    "logging_level": "ERROR",
    "object_store_memory": 80 * 2**20,
}


def run(
    command: Sequence[str],
    timeout: float = TIMEOUT_S,
    python: str = sys.executable,
    variables: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m command`` to its end, whatever that is.

    Args:
        command: the module and its arguments.
        timeout: seconds that it may take.
        python: the interpreter, for an environment with another Ray.
        variables: of its environment, beside our own.

    Raises:
        RuntimeError: it took longer.
    """
    try:
        return subprocess.run(
            [python, "-m", *command],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **(variables or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{command[0]} was not over after {timeout:.0f} s") from error


def said_by(
    command: Sequence[str],
    timeout: float = TIMEOUT_S,
    python: str = sys.executable,
    variables: Mapping[str, str] | None = None,
) -> Any:
    """Run ``python -m command``, see :func:`run`; what it printed last, JSON.

    Raises:
        RuntimeError: it failed, took longer, or said nothing; with the end of its errors.
    """
    done = run(command, timeout, python, variables)
    try:
        if done.returncode == 0:
            return json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        pass  # It was killed, or has ended early.
    raise RuntimeError(f"{command[0]} ended with {done.returncode}: {done.stderr[-4000:]}")
