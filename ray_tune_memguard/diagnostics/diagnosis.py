"""The diagnosis of a run's memory, as a table and as a file."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ray_tune_memguard.diagnostics import html, text
from ray_tune_memguard.diagnostics.findings import (
    GrowingSite,
    Judgement,
    Quantity,
    TypeGrowth,
    Unjudged,
)
from ray_tune_memguard.report.series_file import report_files

FILE_PATTERN = "diagnosis-*.json"


@dataclass(frozen=True)
class Diagnosis(Judgement):
    """The diagnosis of a run's memory. ``print(diagnosis)`` shows it as a table, and so
    does a notebook.

    Attributes:
        trials: number of finished trials.
        results: number of results.
        span: number of finished trials (or of results, see ``unit``) since warm-up.
        unit: ``trial``, or ``result`` in a run of few, long trials.
        is_judged: whether growth can be judged. It cannot if the span is shorter than 200 trials
            (4,000 results) or something could not be measured, see ``unjudged``.
        holders: the retention sites that grow steadily, the fastest first.
        parts: the categories of the driver's RSS, ``rss`` first.
        types: the types whose number of objects grows steadily.
        processes: Ray's other processes on this machine.
        absent: quantities that could not be measured, by name, with the reason.
        cost_seconds: seconds that the samples took.
        samples: number of samples since warm-up.
        most: the retention sites that have grown fastest since warm-up, if ``holders`` is empty.
        unjudged: the retention sites of which too little was measured to judge them, for example
            because they are too big to be measured in the time of a sample.
        rss_slope: bytes per ``unit`` by which RSS grows steadily; 0 if it does not.

    Examples:
        >>> from ray_tune_memguard import read_diagnosis
        >>> [site.name for site in read_diagnosis(experiment).holders]
        ['MyCallback.history']
    """

    trials: int
    results: int
    holders: list[GrowingSite] = field(default_factory=list)
    parts: list[Quantity] = field(default_factory=list)
    types: list[TypeGrowth] = field(default_factory=list)
    processes: list[Quantity] = field(default_factory=list)
    cost_seconds: float = 0.0

    def unexplained(self) -> str:
        """A line for the log about RSS that grows while no holder is known; empty otherwise."""
        rss = self.part("rss")
        return "" if rss is None or self.holders else text.unexplained(rss, self)

    def part(self, name: str) -> Quantity | None:
        return next((part for part in self.parts if part.name == name), None)

    def __str__(self) -> str:
        grown = text.growth(self.holders, self.types, self)
        return "\n".join(
            [
                *text.parts(self.trials, self.results, self.parts, self),
                *grown,
                *text.processes(self.processes, self.unit),
            ]
        )

    def _repr_html_(self) -> str:
        return "".join(
            [
                html.growth(self.holders, self.types, self),
                html.parts(self.trials, self.results, self.parts, self),
                html.processes(self.processes, self.unit),
            ]
        )

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.part")
        unfinished.write_text(json.dumps(asdict(self), indent=1, allow_nan=True), encoding="utf-8")
        unfinished.replace(path)

    @classmethod
    def load(cls, path: Path) -> Diagnosis:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        kinds: dict[str, type[GrowingSite | Quantity | TypeGrowth | Unjudged]] = {
            "holders": GrowingSite,
            "parts": Quantity,
            "types": TypeGrowth,
            "processes": Quantity,
            "most": Quantity,
            "unjudged": Unjudged,
        }
        for name, kind in kinds.items():
            # Earlier versions wrote no "most" and no "unjudged".
            found[name] = [kind(**one) for one in found.get(name, ())]
        return cls(**found)


def read_diagnosis(path: str | os.PathLike[str]) -> Diagnosis:
    """Read the latest diagnosis of an experiment.

    :class:`ray_tune_memguard.ObjectGrowthTracker` writes one when a run ends.

    Args:
        path: the experiment's directory (``ResultGrid.experiment_path``, on a local disk), the
            ``.memguard`` directory in it, or one ``diagnosis-*.json`` file.

    Returns:
        The diagnosis. Sizes are in bytes, slopes in bytes per trial or per result.

    Raises:
        FileNotFoundError: there is no diagnosis.

    Examples:
        >>> from ray_tune_memguard import read_diagnosis
        >>> diagnosis = read_diagnosis(experiment)
        >>> diagnosis.trials, diagnosis.holders[0].bytes_per_trial
        (1000, 2048.0)
    """
    files = report_files(path, FILE_PATTERN)
    if not files:
        raise FileNotFoundError(f"No diagnosis ({FILE_PATTERN}) at {path}")
    return Diagnosis.load(files[-1])
