"""What was measured of an experiment, all of it: what ``show`` and ``top`` print."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_tune_memguard.cli import deaths as deaths_command
from ray_tune_memguard.cli import output
from ray_tune_memguard.cli import trials as trials_command
from ray_tune_memguard.cli.experiments import LastRun, Readings, last_run
from ray_tune_memguard.cli.texts import UNKNOWN, duration, moment, one_line, size, sparkline, spread

if TYPE_CHECKING:
    import pandas as pd

    from ray_tune_memguard.diagnostics.deaths.record import Death
    from ray_tune_memguard.diagnostics.diagnosis import Diagnosis
    from ray_tune_memguard.report.gate_records import GateRecord
    from ray_tune_memguard.report.line import Line

_POINTS = 8
_BARS = 60
_MAX_GROWING = 10
_STATE_STYLES = {"finished": "green", "running": "cyan", "killed": "bold red"}


@dataclass(frozen=True)
class Growth:
    """How a quantity has grown by now.

    Attributes:
        kind, name: as :func:`ray_tune_memguard.read_growth` gives them.
        value: the latest value: bytes, or a number of objects.
        per_trial: the slope; None if there were too few samples.
    """

    kind: str
    name: str
    value: float
    per_trial: float | None


@dataclass(frozen=True)
class Measured:
    """What was measured of an experiment. What was not is None or empty.

    Attributes:
        path: the experiment's directory.
        run: how its last run stands.
        series: the driver's RSS.
        diagnosis: who holds memory, of the last run that has ended.
        growth: of a run that has not: the quantities that grow fastest.
        trials: the memory of trials, the largest first.
        deaths: the deaths of trials.
        gate: what the launch gate did.
        head: memory of Ray's processes on the head node, a row for each process and time.
        problems: what cannot be read.
    """

    path: Path
    run: LastRun
    series: pd.DataFrame | None
    diagnosis: Diagnosis | None
    growth: list[Growth]
    trials: pd.DataFrame | None
    deaths: list[Death]
    gate: list[GateRecord]
    head: pd.DataFrame | None
    problems: list[str]

    @classmethod
    def of(cls, path: Path) -> Measured:
        """Read all that was measured of an experiment."""
        from ray_tune_memguard.diagnostics.deaths.record import read_deaths
        from ray_tune_memguard.diagnostics.diagnosis import read_diagnosis
        from ray_tune_memguard.report.gate_records import read_gate
        from ray_tune_memguard.report.trial_memory import read_trial_memory

        readings = Readings(path)
        diagnosis = readings.read("diagnosis", read_diagnosis)
        growth = None if diagnosis is not None else readings.read("growth series", growth_of)
        return cls(
            path,
            last_run(path),
            readings.read("RSS series", _series_of),
            diagnosis,
            growth or [],
            readings.read("memory of trials", read_trial_memory),
            readings.read("records of deaths", read_deaths) or [],
            readings.read("records of the launch gate", read_gate) or [],
            readings.read("measurements of the head node", _head_of),
            readings.problems,
        )

    @property
    def is_empty(self) -> bool:
        """Whether nothing was measured, and nothing is damaged."""
        tables = (self.series, self.diagnosis, self.trials, self.head)
        lists: tuple[list[Any], ...] = (self.growth, self.deaths, self.gate, self.problems)
        return all(one is None for one in tables) and not any(lists)

    def slope(self) -> Line | None:
        """The growth of the driver's RSS per trial, without the first trials; None if unknown."""
        from ray_tune_memguard.report.line import fit_line
        from ray_tune_memguard.report.series import MIN_SLOPE_TRIALS, WARM_UP_TRIALS

        if self.series is None:
            return None
        last = self.series.iloc[-1]["trials"]
        warm_up = WARM_UP_TRIALS if last >= 3 * WARM_UP_TRIALS else 0
        chosen = self.series[self.series["trials"] >= warm_up]
        if last - chosen.iloc[0]["trials"] < MIN_SLOPE_TRIALS:
            return None
        return fit_line(chosen["trials"].tolist(), chosen["rss_bytes"].tolist())

    def as_dict(self) -> dict[str, object]:
        """All of it, for JSON."""
        slope = self.slope()
        return {
            "path": str(self.path),
            "run": self.run,
            "rss": None
            if self.series is None
            else {
                "bytes_per_trial": None if slope is None else slope.slope,
                "uncertainty": None if slope is None else slope.uncertainty,
                "series": self.series.to_dict("records"),
            },
            "diagnosis": None if self.diagnosis is None else asdict(self.diagnosis),
            "growth": self.growth,
            "trials": [] if self.trials is None else self.trials.to_dict("records"),
            "deaths": self.deaths,
            "gate": self.gate,
            "head": [] if self.head is None else self.head.to_dict("records"),
            "problems": self.problems,
        }

    def show(self, rows: int) -> None:
        """Print it.

        Args:
            rows: how many trials and deaths.
        """
        output.show_text(str(self.path), "bold")
        output.show_text(one_line(self.run.sentence), _STATE_STYLES.get(self.run.state, ""))
        self._show_series()
        self._show_holders()
        if self.trials is not None:
            output.show_text()
            trials_command.show_table(
                self.trials.head(rows), title=f"Heaviest of {len(self.trials):,} trials"
            )
        self._show_deaths(rows)
        self._show_gate(rows)
        self._show_head()
        if self.is_empty:
            output.show_text("Nothing has been measured yet.")
        for problem in self.problems:
            output.show_text()
            output.show_text(one_line(problem), "yellow")

    def _show_series(self) -> None:
        series = self.series
        if series is None:
            return
        output.show_text()
        chosen = series.iloc[spread(len(series), _POINTS)]
        output.show_table(
            ("time", "trials", "errors", "RSS"),
            [
                (moment(row["time"]), f"{row['trials']:,}", f"{row['errored']:,}", _rss(row))
                for row in chosen.to_dict("records")
            ],
            title="Driver",
            numbers=("trials", "errors", "RSS"),
        )
        bars = series["rss_bytes"].iloc[spread(len(series), _BARS)]
        output.show_text(sparkline(bars.tolist()))
        took = series["time"].iloc[-1] - series["time"].iloc[0]
        slope = self.slope()
        grows = "" if slope is None else f", {_signed(slope.slope)} per trial"
        output.show_text(
            f"Highest {size(series['rss_bytes'].max())}{grows}, "
            f"{len(series):,} measurements in {duration(took)}."
        )

    def _show_holders(self) -> None:
        if self.diagnosis is not None:
            output.show_text()
            for line in str(self.diagnosis).splitlines():
                output.show_text(line.rstrip())
        if self.growth:
            output.show_text()
            output.show_table(
                ("what", "name", "now", "per trial"),
                [
                    (
                        one.kind,
                        one_line(one.name, 60),
                        size(one.value),
                        _signed_or_unknown(one.per_trial),
                    )
                    for one in self.growth
                ],
                title="Memory by now (no run has ended with a diagnosis)",
                numbers=("now", "per trial"),
            )

    def _show_deaths(self, rows: int) -> None:
        if not self.deaths:
            return
        causes = Counter(death.cause for death in self.deaths).most_common()
        output.show_text()
        deaths_command.show_table(
            self.deaths[-rows:],
            title=f"Deaths: {', '.join(f'{number} {cause}' for cause, number in causes)}",
        )

    def _show_gate(self, rows: int) -> None:
        if not self.gate:
            return
        actions = Counter(record.action for record in self.gate).most_common()
        output.show_text()
        output.show_table(
            ("time", "action", "running", "in use", "limit", "why"),
            [
                (
                    moment(record.time),
                    one_line(record.action),
                    str(record.running),
                    size(record.used_bytes) if record.total_bytes else "",
                    size(record.total_bytes) if record.total_bytes else "",
                    one_line(record.reason),
                )
                for record in self.gate[-rows:]
            ],
            title=f"Launch gate: {', '.join(f'{number} {action}' for action, number in actions)}",
            numbers=("running", "in use", "limit"),
        )

    def _show_head(self) -> None:
        if self.head is None:
            return
        processes = [(str(name), rows) for name, rows in self.head.groupby("process", sort=False)]
        processes.sort(key=lambda one: -one[1]["rss_bytes"].iloc[-1])
        output.show_text()
        output.show_table(
            ("process", "RSS", "anonymous", "per trial"),
            [
                (
                    one_line(name),
                    size(rows["rss_bytes"].iloc[-1]),
                    size(rows["anonymous_bytes"].iloc[-1]),
                    _signed_or_unknown(_slope(rows, "anonymous_bytes")),
                )
                for name, rows in processes
            ],
            title="Ray's processes on the head node",
            numbers=("RSS", "anonymous", "per trial"),
        )


def growth_of(path: Path) -> list[Growth]:
    """The categories of the driver's RSS, and what else grows fastest.

    Raises:
        FileNotFoundError: there are no samples.
    """
    from ray_tune_memguard.diagnostics.growth import read_growth

    frame = read_growth(path)
    frame = frame[frame["kind"].isin(["part", "holder", "process"])]
    found = [
        Growth(str(kind), str(name), float(rows["value"].iloc[-1]), _slope(rows, "value"))
        for (kind, name), rows in frame.groupby(["kind", "name"], sort=False)
    ]
    parts = [one for one in found if one.kind == "part"]
    others = sorted(
        (one for one in found if one.kind != "part"),
        key=lambda one: (-(one.per_trial or 0.0), -one.value),
    )
    return [*parts, *others[:_MAX_GROWING]]


def _slope(rows: pd.DataFrame, column: str) -> float | None:
    from ray_tune_memguard.report.line import fit_line
    from ray_tune_memguard.report.series import MIN_SLOPE_TRIALS

    trials: Sequence[float] = rows["trials"].tolist()
    if trials[-1] - trials[0] < MIN_SLOPE_TRIALS:
        return None
    line = fit_line(trials, rows[column].tolist())
    return None if line is None else line.slope


def _series_of(path: Path) -> pd.DataFrame | None:
    from ray_tune_memguard.report.series import read_rss_series

    series = read_rss_series(path)
    return None if series.empty else series


def _head_of(path: Path) -> pd.DataFrame | None:
    from ray_tune_memguard.report.head_records import read_head_node

    head = read_head_node(path)
    return None if head.empty else head


def _rss(row: dict[str, float]) -> str:
    return size(row["rss_bytes"])


def _signed(count: float) -> str:
    return f"{'+' if count >= 0 else ''}{size(count)}"


def _signed_or_unknown(count: float | None) -> str:
    return UNKNOWN if count is None else _signed(count)
