"""Sends functions and classes to processes that need not have this package."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from ray import cloudpickle


@contextmanager
def by_value(*modules: ModuleType) -> Iterator[None]:
    """Pickle what these modules define by value meanwhile.

    A process that imports this package imports Tune: 118 MiB of private memory instead of 58.

    Args:
        modules: they use nothing else of this package.
    """
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)
