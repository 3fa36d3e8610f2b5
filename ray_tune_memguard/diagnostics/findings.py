"""The parts of a diagnosis."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class GrowingSite:
    """A retention site, or a category of RSS, that grows steadily.

    Attributes:
        name: the name of the site or of the category.
        part: the category of the driver's RSS: ``python``, ``native``, ``slack`` or ``shared``.
        slope: bytes per ``unit``.
        uncertainty: half the width of the slope's 95 % interval, in bytes per ``unit``.
        bytes: its size in bytes at the last sample.
        path: the chain of references from the site to the objects that it keeps.
        advice: what to do about it.
        unit: ``trial``, or ``result`` in a run of few, long trials.
        is_estimated: whether its size is estimated from few of its entries, because there was no
            time to measure more of them.
    """

    name: str
    part: str
    slope: float
    uncertainty: float
    bytes: float
    path: str = ""
    advice: str = ""
    unit: str = "trial"
    is_estimated: bool = False

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
    """The size in bytes, and its slopes if known, of a category of RSS or of another process."""

    name: str
    bytes: float
    per_trial: float | None = None
    uncertainty: float | None = None
    per_result: float | None = None
    advice: str = ""


@dataclass(frozen=True)
class Unjudged:
    """A retention site of which too little was measured to judge its growth.

    Attributes:
        name: the name of the site.
        bytes: its size in bytes when it was measured last; NaN if it never was.
        measured: how often it was measured since warm-up.
        is_no_time: whether it was too big to be measured in the time of a sample; otherwise it is
            new.
        slope: bytes per ``unit`` by which it grew between its measurements; 0 if that is little, or
            not known.
        unit: ``trial``, or ``result`` in a run of few, long trials.
    """

    name: str
    bytes: float
    measured: int
    is_no_time: bool
    slope: float = 0.0
    unit: str = "trial"


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """Whether growth can be judged, and what is known if it cannot.

    Attributes:
        is_judged: whether it can.
        unit: ``trial``, or ``result`` in a run of few, long trials.
        span: number of finished trials (or of results) since warm-up.
        samples: number of samples since warm-up.
        absent: quantities that could not be measured, by name, with the reason.
        most: the retention sites that have grown fastest since warm-up, if none is known to grow
            steadily.
        unjudged: the retention sites of which too little was measured to judge them.
        rss_slope: bytes per ``unit`` by which RSS grows steadily; 0 if it does not.
    """

    is_judged: bool = False
    unit: str = "trial"
    span: int = 0
    samples: int = 0
    absent: dict[str, str] = field(default_factory=dict)
    most: list[Quantity] = field(default_factory=list)
    unjudged: list[Unjudged] = field(default_factory=list)
    rss_slope: float = 0.0

    @property
    def is_open(self) -> bool:
        """Whether it is not known what grows, or that nothing does."""
        return not self.is_judged or self.rss_slope > 0

    @property
    def without_time(self) -> list[str]:
        """The names of the sites that were too big to be measured in time."""
        return [site.name for site in self.unjudged if site.is_no_time]


@dataclass(frozen=True)
class TypeGrowth:
    """A type whose number of objects grows steadily.

    Attributes:
        slope: objects per ``unit``.
        path: the chain of references to one of the objects.
    """

    name: str
    count: int
    slope: float
    uncertainty: float
    path: str = ""
    unit: str = "trial"
