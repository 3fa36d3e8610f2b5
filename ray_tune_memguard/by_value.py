"""Sends functions and classes to processes that need not have this package."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from ray import cloudpickle


@contextmanager
def by_value(module: ModuleType) -> Iterator[None]:
    """Pickle what a module defines by value meanwhile.

    A process that imports this package imports Tune: 118 MiB of private memory instead of 58.

    Args:
        module: it uses nothing else of this package.
    """
    cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        cloudpickle.unregister_pickle_by_value(module)
