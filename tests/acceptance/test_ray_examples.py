"""Ray's own examples end with MemGuard as they do without it.

``python -m tests.acceptance ray-examples`` runs all that need nothing from a network.
"""

from __future__ import annotations

import pytest

from tests.acceptance.ray_examples import examine, examples_directory

pytestmark = pytest.mark.slow

TIMEOUT = 240.0
#: A scheduler that pauses and exchanges trials, and checkpoints. Others take minutes.
EXAMPLES = ["pbt_function.py", "custom_func_checkpointing.py"]


@pytest.mark.parametrize("name", EXAMPLES)
def test_ends_as_without_memguard(name: str) -> None:
    directory = examples_directory()
    example = examine(directory / name, directory, TIMEOUT, scratch=None)
    assert example.why_not == ""
    assert example.verdict == "same"
    assert example.guarded is not None
    assert example.guarded.spilled > 0
