"""What was measured of an experiment, all of it: what ``show`` and ``top`` print."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_tune_memguard.cli import deaths as deaths_command
from ray_tune_memguard.cli import output
from ray_tune_memguard.cli import trials as trials_command
from ray_tune_memguard.cli.experiments import DAMAGE, LastRun, Readings, last_run
from ray_tune_memguard.cli.texts import duration, sparkline, spread
from ray_tune_memguard.report.records import file_pattern
from ray_tune_memguard.report.series_file import report_files, run_of
from ray_tune_memguard.report.texts import UNKNOWN, moment, one_line, size

if TYPE_CHECKING:
    import pandas as pd

    from ray_tune_memguard.diagnostics.deaths.record import Death
    from ray_tune_memguard.diagnostics.diagnosis import Diagnosis
    from ray_tune_memguard.report.gate_records import GateRecord
    from ray_tune_memguard.report.line import Line

_POINTS = 8
_BARS = 60
_MAX_GROWING = 10
#: The entry of a frame's ``attrs`` with the time at which its last run begins.
_BEGIN = "begin of the last run"
_STATE_STYLES = {"finished": "green", "running": "cyan", "killed": "bold red"}


@dataclass(frozen=True)
class Growth:
    """How a quantity has grown by now.

    Attributes:
        kind, name: as :func:`ray_tune_memguard.read_growth` gives them; the kind is ``unmeasured``
            if there was no time for it in the last sample.
        value: the latest value: bytes, or a number of objects.
        per_trial: the slope; None if there were too few samples.
    """

    kind: str
    name: str
    value: float
    per_trial: float | None

    @property
    def is_unmeasured(self) -> bool:
        """Whether there was no time to measure it."""
        return self.kind == "unmeasured"


@dataclass(frozen=True)
class HeadProcess:
    """A process of Ray's on the head node, at the last look.

    Attributes:
        name: its command.
        rss_bytes, anonymous_bytes: its memory.
        per_trial: the slope of its anonymous memory; None if there were too few looks.
    """

    name: str
    rss_bytes: float
    anonymous_bytes: float
    per_trial: float | None


@dataclass(frozen=True)
class Measured:
    """What was measured of an experiment. What was not is None or empty.

    Attributes:
        path: the experiment's directory.
        run: how its last run stands.
        series: the driver's RSS.
        diagnosis: who holds memory, of the last run if it has ended.
        growth: of a last run that has not: the quantities that grow fastest.
        trials: the memory of trials, the largest first.
        deaths: the deaths of trials.
        gate: what the launch gate did.
        head: memory of Ray's processes on the head node, a row for each process and time.
        store: what the object store held, a row for each time.
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
    store: pd.DataFrame | None
    problems: list[str]

    @classmethod
    def of(cls, path: Path) -> Measured:
        """Read all that was measured of an experiment."""
        from ray_tune_memguard.diagnostics.deaths.reading import read_deaths
        from ray_tune_memguard.diagnostics.diagnosis import read_diagnosis
        from ray_tune_memguard.report.gate_records import read_gate
        from ray_tune_memguard.report.trial_memory import read_trial_memory

        readings = Readings(path)
        diagnosis = None
        if not _is_diagnosis_outdated(path):
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
            readings.read("measurements of the object store", _store_of),
            readings.problems,
        )

    @property
    def is_empty(self) -> bool:
        """Whether nothing was measured, and nothing is damaged."""
        tables = (self.series, self.diagnosis, self.trials, self.head, self.store)
        lists: tuple[list[Any], ...] = (self.growth, self.deaths, self.gate, self.problems)
        return all(one is None for one in tables) and not any(lists)

    def slope(self) -> Line | None:
        """The growth of the driver's RSS per trial, without the first trials; None if unknown."""
        from ray_tune_memguard.report.line import fit_line
        from ray_tune_memguard.report.series import MIN_SLOPE_TRIALS, WARM_UP_TRIALS

        if self.series is None:
            return None
        chosen = _of_last_run(self.series)
        # Each run's driver is another process, which has to warm up.
        before = self.series.iloc[: -len(chosen)]["trials"].max() if self.is_resumed else 0
        last = chosen.iloc[-1]["trials"]
        if last - before >= 3 * WARM_UP_TRIALS:
            chosen = chosen[chosen["trials"] >= before + WARM_UP_TRIALS]
        if last - chosen.iloc[0]["trials"] < MIN_SLOPE_TRIALS:
            return None
        return fit_line(chosen["trials"].tolist(), chosen["rss_bytes"].tolist())

    @property
    def is_resumed(self) -> bool:
        """Whether the series of the driver's RSS is that of several runs."""
        return self.series is not None and len(_of_last_run(self.series)) < len(self.series)

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
            "store": [] if self.store is None else self.store.to_dict("records"),
            "problems": self.problems,
        }

    def show(self, rows: int) -> None:
        """Print it.

        Args:
            rows: how many trials and deaths.
        """
        output.show_text(one_line(self.path), "bold")
        output.show_text(one_line(self.run.sentence), _STATE_STYLES.get(self.run.state, ""))
        self._show(self.series_table())
        if self.series is not None:
            bars = self.series["rss_bytes"].iloc[spread(len(self.series), _BARS)]
            output.show_text(sparkline(bars.tolist()))
            output.show_text(self.series_words())
        if self.diagnosis is not None:
            output.show_text()
            for line in str(self.diagnosis).splitlines():
                output.show_text(line.rstrip())
        for table in (
            self.growth_table(),
            self.trials_table(rows),
            self.deaths_table(rows),
            self.gate_table(rows),
            self.head_table(),
        ):
            self._show(table)
        for number, sentence in enumerate(self.store_words()):
            if number == 0:
                output.show_text()
            output.show_text(sentence)
        if self.is_empty:
            output.show_text("Nothing has been measured yet.")
        for problem in self.problems:
            output.show_text()
            output.show_text(one_line(problem), "yellow")

    @staticmethod
    def _show(table: output.Table | None) -> None:
        if table is not None:
            output.show_text()
            table.show()

    def series_table(self) -> output.Table | None:
        """The driver's RSS over its trials."""
        if self.series is None:
            return None
        chosen = self.series.iloc[spread(len(self.series), _POINTS)]
        return output.Table(
            ("time", "trials", "errors", "RSS"),
            [
                (moment(row["time"]), f"{row['trials']:,}", f"{row['errored']:,}", _rss(row))
                for row in chosen.to_dict("records")
            ],
            "Driver",
            ("trials", "errors", "RSS"),
        )

    def series_words(self) -> str:
        """The driver's RSS in a sentence; empty if it was not measured."""
        series, slope = self.series, self.slope()
        if series is None:
            return ""
        took = series["time"].iloc[-1] - series["time"].iloc[0]
        where = " in the last run" if self.is_resumed else ""
        grows = "" if slope is None else f", {signed(slope.slope)} per trial{where}"
        return (
            f"Highest {size(series['rss_bytes'].max())}{grows}, "
            f"{len(series):,} measurement{'' if len(series) == 1 else 's'} in {duration(took)}."
        )

    def growth_table(self) -> output.Table | None:
        """What grows fastest, of a run that has no diagnosis."""
        if not self.growth:
            return None
        return output.Table(
            ("what", "name", "now", "per trial"),
            [
                (
                    "no time" if one.is_unmeasured else one.kind,
                    one_line(one.name, 60),
                    _size_so_far(one),
                    _signed_or_unknown(one.per_trial),
                )
                for one in self.growth
            ],
            "Memory of the driver so far",
            ("now", "per trial"),
        )

    def trials_table(self, rows: int) -> output.Table | None:
        """The trials that took most."""
        if self.trials is None:
            return None
        title = f"Heaviest of {len(self.trials):,} trials"
        return trials_command.table(self.trials.head(rows), title)

    def deaths_table(self, rows: int) -> output.Table | None:
        """The latest deaths."""
        if not self.deaths:
            return None
        title = f"Deaths: {_counts(death.cause for death in self.deaths)}"
        return deaths_command.table(self.deaths[-rows:], title)

    def gate_table(self, rows: int) -> output.Table | None:
        """What the launch gate did last."""
        if not self.gate:
            return None
        return output.Table(
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
            f"Launch gate: {_counts(record.action for record in self.gate)}",
            ("running", "in use", "limit"),
        )

    def head_processes(self) -> list[HeadProcess]:
        """Ray's processes on the head node in the last run, the largest first."""
        if self.head is None:
            return []
        processes = [
            HeadProcess(
                str(name),
                rows["rss_bytes"].iloc[-1],
                rows["anonymous_bytes"].iloc[-1],
                _slope(rows, "anonymous_bytes"),
            )
            for name, rows in _of_last_run(self.head).groupby("process", sort=False)
        ]
        return sorted(processes, key=lambda one: -one.rss_bytes)

    def head_table(self) -> output.Table | None:
        """Ray's processes on the head node."""
        if self.head is None:
            return None
        return output.Table(
            ("process", "RSS", "anonymous", "per trial"),
            [
                (
                    one_line(one.name),
                    size(one.rss_bytes),
                    size(one.anonymous_bytes),
                    _signed_or_unknown(one.per_trial),
                )
                for one in self.head_processes()
            ],
            "Ray's processes on the head node",
            ("RSS", "anonymous", "per trial"),
        )

    def store_words(self) -> list[str]:
        """What stayed in the object store, in sentences; none if it was not measured."""
        store = self.store
        if store is None:
            return []
        last = store.iloc[-1]
        held = store["primary_bytes"] + store["spilled_bytes"]
        slope = _slope(_of_last_run(store.assign(held=held)), "held")
        grows = "" if slope is None else f", {signed(slope)} per trial"
        return [
            f"Object store: {size(last['primary_bytes'])} of {size(last['capacity_bytes'])} in "
            f"memory, {size(last['spilled_bytes'])} on disk{grows}.",
            *(
                f"Trials have left objects behind: {one_line(leak)}"
                for leak in store["leak"][store["leak"] != ""]
            ),
        ]


def growth_of(path: Path) -> list[Growth]:
    """The categories of the driver's RSS, and what else grows fastest, of the last run.

    Raises:
        FileNotFoundError: there are no samples.
    """
    from ray_tune_memguard.diagnostics.growth import FILE_PATTERN, UNMEASURED, read_growth

    frame = read_growth(next(reversed(report_files(path, FILE_PATTERN)), path))
    is_last = frame["trials"] == frame["trials"].max()
    without_time = set(frame[is_last & (frame["kind"] == UNMEASURED)]["name"])
    frame = frame[frame["kind"].isin(["part", "holder", "process"])]
    found = []
    for (kind, name), rows in frame.groupby(["kind", "name"], sort=False):
        value, per_trial = float(rows["value"].iloc[-1]), _slope(rows, "value")
        is_unmeasured = kind == "holder" and name in without_time
        found.append(Growth(UNMEASURED if is_unmeasured else kind, name, value, per_trial))
    never = without_time - {one.name for one in found}
    found += [Growth(UNMEASURED, name, 0.0, None) for name in sorted(never)]
    parts = [one for one in found if one.kind == "part"]
    others = sorted(
        (one for one in found if one.kind != "part"),
        key=lambda one: (not one.is_unmeasured, -(one.per_trial or 0.0), -one.value),
    )
    return [*parts, *others[:_MAX_GROWING]]


def _is_diagnosis_outdated(path: Path) -> bool:
    """Whether a run after the one that was diagnosed last has samples."""
    from ray_tune_memguard.diagnostics import diagnosis, growth

    diagnosed = _last_run_of(path, diagnosis.FILE_PATTERN)
    return diagnosed is not None and (_last_run_of(path, growth.FILE_PATTERN) or "") > diagnosed


def _last_run_of(path: Path, pattern: str) -> str | None:
    """The name of the last run that has a file of this kind."""
    files = report_files(path, pattern)
    return run_of(files[-1], pattern) if files else None


def _with_last_run(
    path: Path, pattern: str, read: Callable[[Path], pd.DataFrame]
) -> pd.DataFrame | None:
    """The rows of all runs, and in ``attrs`` when the last one begins; None without rows."""
    frame = read(path)
    frame.attrs[_BEGIN] = -math.inf
    # A single file needs no second look; of a file without an intact row nothing is in the frame.
    for file in reversed(report_files(path, pattern)[1:]):
        with contextlib.suppress(*DAMAGE):
            rows = read(file)
            if not rows.empty:
                frame.attrs[_BEGIN] = rows["time"].min()
                break
    return None if frame.empty else frame


def _of_last_run(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of the last run. Only between them a slope is one of one process."""
    return frame[frame["time"] >= frame.attrs.get(_BEGIN, -math.inf)]


def _slope(rows: pd.DataFrame, column: str) -> float | None:
    from ray_tune_memguard.report.line import fit_line
    from ray_tune_memguard.report.series import MIN_SLOPE_TRIALS

    trials: Sequence[float] = rows["trials"].tolist()
    if trials[-1] - trials[0] < MIN_SLOPE_TRIALS:
        return None
    line = fit_line(trials, rows[column].tolist())
    return None if line is None else line.slope


def _series_of(path: Path) -> pd.DataFrame | None:
    from ray_tune_memguard.report.series import FILE_PATTERN, read_rss_series

    return _with_last_run(path, FILE_PATTERN, read_rss_series)


def _head_of(path: Path) -> pd.DataFrame | None:
    from ray_tune_memguard.report.head_records import KIND, read_head_node

    return _with_last_run(path, file_pattern(KIND), read_head_node)


def _store_of(path: Path) -> pd.DataFrame | None:
    from ray_tune_memguard.report.object_records import KIND, read_object_store

    return _with_last_run(path, file_pattern(KIND), read_object_store)


def _rss(row: dict[str, float]) -> str:
    return size(row["rss_bytes"])


def _counts(kinds: Iterable[str]) -> str:
    """How many there are of each kind, such as ``3 pause, 2 resume``."""
    return ", ".join(f"{number} {one_line(kind)}" for kind, number in Counter(kinds).most_common())


def _size_so_far(growth: Growth) -> str:
    if not growth.is_unmeasured:
        return size(growth.value)
    return f"about {size(growth.value)}" if growth.value else UNKNOWN


def signed(count: float) -> str:
    """Bytes with their sign."""
    return f"{'+' if count >= 0 else ''}{size(count)}"


def _signed_or_unknown(count: float | None) -> str:
    return UNKNOWN if count is None else signed(count)
