"""A row of the contract with Ray: one private name, and the capabilities that need it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Literal

Key = Literal["trial", "trial_id"]


@dataclass(frozen=True)
class PrivateName:
    """One name, and the capabilities that are off without it.

    Attributes:
        owner: ``module``, of a module's global; or ``module:Class``, of an attribute or method of
            that class or its instances.
        name: the attribute, method or global.
        needed_by: capabilities.
        takes: for a method or function, the names of its first parameters; None for the rest.
        released: for a container that keeps finished trials for ever: the kind of its keys.
        emptied: whether the rollback of a restore empties the container.
        optional: whether the name matters only once something else has imported its module.
        older: the name that older versions of Ray have instead.
    """

    owner: str
    name: str
    needed_by: tuple[str, ...]
    takes: tuple[str, ...] | None = None
    released: Key | None = None
    emptied: bool = False
    optional: bool = False
    older: str | None = None

    @property
    def module(self) -> str:
        return self.owner.partition(":")[0]

    @property
    def class_name(self) -> str:
        return self.owner.partition(":")[2]

    def __str__(self) -> str:
        owner = self.class_name or self.module
        return f"{owner}.{self.name}" + (f"({', '.join(self.takes)})" if self.takes else "")

    def owner_class(self) -> type | None:
        """The class, if its module is imported already; otherwise None."""
        found = getattr(sys.modules.get(self.module), self.class_name, None)
        return found if isinstance(found, type) else None


def rows_of(
    owner: str,
    needed_by: str | tuple[str, ...],
    *names: str,
    released: Key | None = None,
    emptied: bool = False,
    optional: bool = False,
    older: str | None = None,
) -> list[PrivateName]:
    """Rows for several names of one owner. A method is written with its parameters.

    Args:
        owner: see :class:`PrivateName`.
        needed_by: one capability, or several.
        names: ``name``, or ``name(first, second)``.
        released, emptied, optional, older: see :class:`PrivateName`; they apply to all names.
    """
    capabilities = (needed_by,) if isinstance(needed_by, str) else needed_by
    rows = []
    for written in names:
        name, bracket, parameters = written.rstrip(")").partition("(")
        takes = tuple(filter(None, parameters.split(", "))) if bracket else None
        rows.append(
            PrivateName(owner, name, capabilities, takes, released, emptied, optional, older)
        )
    return rows
