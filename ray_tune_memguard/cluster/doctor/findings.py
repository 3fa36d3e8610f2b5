"""What the doctor reports: findings, each with the settings that mend it."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TypeAlias

Value: TypeAlias = "bool | int | float | str"


class Severity(enum.IntEnum):
    """How bad a finding is. Programs get the name in small letters."""

    NOTE = 1
    WARNING = 2
    SEVERE = 3

    @property
    def word(self) -> str:
        return self.name.lower()


class Place(enum.Enum):
    """Where a remedy belongs."""

    HEAD = "the head"
    NODE = "the node"
    EVERYWHERE = "every node"


@dataclass(frozen=True)
class Remedy:
    """One setting, and the value that mends a finding.

    Attributes:
        name: a setting of :mod:`ray_tune_memguard.cluster.settings`, or an argument of
            ``ray start`` as Ray writes it (``num-cpus``).
        value: the value.
        is_start_argument: whether it is an argument of ``ray start``.
        place: where it belongs as such an argument.
    """

    name: str
    value: Value
    is_start_argument: bool = False
    place: Place = Place.EVERYWHERE

    def __str__(self) -> str:
        return f"--{self.name}={self.value}" if self.is_start_argument else self._as_variable()

    def _as_variable(self) -> str:
        value = int(self.value) if isinstance(self.value, bool) else self.value
        return f"RAY_{self.name}={value}"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or will be.

    Attributes:
        check: the name of the check, for programs.
        severity: how bad it is.
        what: what is so.
        why: why it matters, in a sentence.
        evidence: the figures that led to it.
        remedies: the settings that mend it.
        advice: what to do, where that is no setting of Ray's.
        where: the node; empty for the whole cluster.
    """

    check: str
    severity: Severity
    what: str
    why: str
    evidence: str
    remedies: tuple[Remedy, ...] = ()
    advice: str = ""
    where: str = ""

    def as_dict(self) -> dict[str, object]:
        """The finding for JSON."""
        return {
            "check": self.check,
            "severity": self.severity.word,
            "what": self.what,
            "why": self.why,
            "evidence": self.evidence,
            "remedies": [
                {
                    "name": remedy.name,
                    "value": remedy.value,
                    "kind": "ray start" if remedy.is_start_argument else "setting",
                }
                for remedy in self.remedies
            ],
            "advice": self.advice,
            "where": self.where,
        }
