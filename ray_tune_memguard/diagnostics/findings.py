"""What a diagnosis consists of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GrowingSite:
    """A retention site, or a category of RSS, that grows steadily.

    ``part``: the category of the driver's RSS: ``python``, ``native``, ``slack`` or ``shared``.
    ``slope``: bytes per ``unit`` (``trial``; ``result`` in a sweep of few, long trials), with half
    the width of its 95 % interval, ``uncertainty``. ``bytes``: what it had at the last sample.
    ``path``: the chain of references from the site to what it keeps.
    """

    name: str
    part: str
    slope: float
    uncertainty: float
    bytes: float
    path: str = ""
    advice: str = ""
    unit: str = "trial"

    @property
    def bytes_per_trial(self) -> float | None:
        """The slope; None if it is one per result."""
        return self.slope if self.unit == "trial" else None

    @property
    def bytes_per_result(self) -> float | None:
        """The slope; None if it is one per trial."""
        return self.slope if self.unit == "result" else None


@dataclass(frozen=True)
class Quantity:
    """A category of the driver's RSS, or another process. Bytes; a slope not known is None."""

    name: str
    bytes: float
    per_trial: float | None = None
    uncertainty: float | None = None
    per_result: float | None = None
    advice: str = ""


@dataclass(frozen=True)
class TypeGrowth:
    """A type of which there are steadily more objects: ``slope`` of them per ``unit``.

    ``path`` is that of one of them.
    """

    name: str
    count: int
    slope: float
    uncertainty: float
    path: str = ""
    unit: str = "trial"
