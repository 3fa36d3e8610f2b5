"""Begins the commands ``ray-tune-memguard`` and ``memguard``.

It is not a module of the package ``ray_tune_memguard``, whose import takes Ray's and half of a
command's time. Nothing that is imported becomes garbage, so the garbage collector is off until then
and passes over it afterwards, which saves a command a seventh of its time.
"""

from __future__ import annotations

import gc


def main() -> None:
    """Run the command of ``sys.argv``."""
    gc.disable()
    try:
        from ray_tune_memguard.cli.main import main as command
    finally:
        gc.freeze()
        gc.enable()
    command()
