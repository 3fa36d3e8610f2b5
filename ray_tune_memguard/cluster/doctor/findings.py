"""What the doctor reports: findings, each with the settings that mend it."""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass
from typing import TypeAlias

from ray_tune_memguard.cluster.settings import BY_NAME

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
        is_in_system_config: whether the head was started with a value of this setting, which wins
            over environment variables.
    """

    name: str
    value: Value
    is_start_argument: bool = False
    place: Place = Place.EVERYWHERE
    is_in_system_config: bool = False

    @property
    def kind(self) -> str:
        """What it is a value of, for programs."""
        if self.is_start_argument:
            return "ray start"
        return "system-config" if self.is_in_system_config else "setting"

    def __str__(self) -> str:
        if self.is_start_argument:
            return f"--{self.name}={self.value}"
        if self.is_in_system_config:
            return f"{self.name}={json.dumps(self.value)} {self._where_in_system_config()}"
        value = int(self.value) if isinstance(self.value, bool) else self.value
        return f"RAY_{self.name}={value}"

    def _where_in_system_config(self) -> str:
        is_default = self.value == BY_NAME[self.name].default
        change = "change it in, or remove it from," if is_default else "change it in"
        return f"({change} --system-config at the head)"


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
                {"name": remedy.name, "value": remedy.value, "kind": remedy.kind}
                for remedy in self.remedies
            ],
            "advice": self.advice,
            "where": self.where,
        }
