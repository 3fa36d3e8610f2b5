"""What the metrics of a run tell at one moment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class NodeLevel:
    """How full a node is for the launch gate.

    Attributes:
        node: its id.
        used: the used share of its fullest limit.
        pause: the share at which trials wait.
        is_paused: whether trials wait.
    """

    node: str
    used: float
    pause: float
    is_paused: bool


@dataclass(frozen=True)
class RunningTrial:
    """A trial that runs, at the last look at it. Sizes are in bytes."""

    trial_id: str
    node: str
    rss: float
    anonymous: float


@dataclass(frozen=True)
class Readings:
    """What a scrape tells. What is not measured is empty.

    Attributes:
        step_time: when the driver's loop made its last step, in seconds since the epoch.
        rss: the driver's resident memory in bytes.
        categories: what it consists of, in bytes.
        trials: number of trials by status.
        running: the trials that run.
        deaths: number of deaths in this run, by cause.
        nodes: how full each node is for the launch gate.
        gate_actions: number of actions of the gate in this run.
        head: RSS and anonymous memory in bytes of Ray's processes on the head node.
    """

    step_time: float
    rss: float
    categories: Mapping[str, float] = field(default_factory=dict)
    trials: Mapping[str, int] = field(default_factory=dict)
    running: Iterable[RunningTrial] = ()
    deaths: Mapping[str, int] = field(default_factory=dict)
    nodes: Iterable[NodeLevel] = ()
    gate_actions: Mapping[str, int] = field(default_factory=dict)
    head: Mapping[str, tuple[float, float]] = field(default_factory=dict)
