"""What holds the memory: what a person, or a program, can act on."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ray_tune_memguard.diagnostics import text
from ray_tune_memguard.diagnostics.findings import GrowingSite, Quantity, TypeGrowth
from ray_tune_memguard.report.series_file import report_files

FILE_PATTERN = "diagnosis-*.json"


@dataclass(frozen=True)
class Diagnosis:
    """All that is known of a sweep's memory. ``print(diagnosis)`` shows it as a table.

    ``span``: the finished trials since warm-up, by which it was judged; results, if ``unit`` says
    so, in a sweep of few, long trials. ``is_judged``: whether what grows can be told; it cannot if
    the span is too short (200 trials, 4,000 results) or not everything could be measured.
    ``holders``: the retention sites that grow, the fastest first; empty if nothing grows steadily.
    ``parts``: the categories of the driver's RSS, ``rss`` first. ``processes``: Ray's other
    processes on this machine.
    ``absent``: what could not be measured, by name, with the reason. ``cost_seconds``: what
    measuring took.
    """

    trials: int
    results: int
    span: int = 0
    unit: str = "trial"
    is_judged: bool = False
    holders: list[GrowingSite] = field(default_factory=list)
    parts: list[Quantity] = field(default_factory=list)
    types: list[TypeGrowth] = field(default_factory=list)
    processes: list[Quantity] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    cost_seconds: float = 0.0

    def part(self, name: str) -> Quantity | None:
        return next((part for part in self.parts if part.name == name), None)

    def __str__(self) -> str:
        grown = text.growth(self.holders, self.types, self.unit, self.is_judged, self.absent)
        return "\n".join(
            [
                *text.parts(self.trials, self.results, self.parts, self.unit, self.absent),
                *grown,
                *text.processes(self.processes, self.unit),
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
        kinds: dict[str, type[GrowingSite | Quantity | TypeGrowth]] = {
            "holders": GrowingSite,
            "parts": Quantity,
            "types": TypeGrowth,
            "processes": Quantity,
        }
        for name, kind in kinds.items():
            found[name] = [kind(**one) for one in found[name]]
        return cls(**found)


def read_diagnosis(path: str | os.PathLike[str]) -> Diagnosis:
    """What :class:`ray_tune_memguard.ObjectGrowthTracker` found in an experiment.

    Each run writes a diagnosis when it ends. This reads the latest.

    Args:
        path: the experiment's directory (``ResultGrid.experiment_path``, on a local disk), the
            ``.memguard`` directory in it, or one ``diagnosis-*.json`` file.

    Raises:
        FileNotFoundError: there is none.
    """
    files = report_files(path, FILE_PATTERN)
    if not files:
        raise FileNotFoundError(f"No diagnosis ({FILE_PATTERN}) at {path}")
    return Diagnosis.load(max(files, key=lambda file: file.name))
