"""The sections of the page: words, a picture and a table each, or the reason why there is none."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ray_tune_memguard.cli.experiments import DAMAGE, Readings
from ray_tune_memguard.cli.measured import Measured, signed
from ray_tune_memguard.cli.output import Table
from ray_tune_memguard.cli.page import charts
from ray_tune_memguard.cli.trials import CONFIG, config_of
from ray_tune_memguard.diagnostics import text
from ray_tune_memguard.report.gate_records import KIND, GateRecord, read_gate, waits
from ray_tune_memguard.report.records import file_pattern
from ray_tune_memguard.report.series import FILE_PATTERN, read_rss_series
from ray_tune_memguard.report.series_file import report_files, run_of
from ray_tune_memguard.report.texts import one_line, size
from ray_tune_memguard.report.trial_memory import read_spans

if TYPE_CHECKING:
    import pandas as pd

_MAX_PARAMETERS = 5
#: Trials that a rank correlation needs, and how strong it must be to be told of in words.
_MIN_RANKED, _MIN_CORRELATION = 10, 0.5
_NOT_MEASURED = "This was not measured in the runs of this experiment."


@dataclass
class Section:
    """A part of the page.

    Attributes:
        title: its heading.
        words: sentences; what the page says of it on top as well.
        picture: an SVG; empty if there is none.
        caption: what the picture shows.
        tables: under the picture.
        note: a sentence under the tables.
        text: text of fixed width.
        absent: why there is nothing.
    """

    title: str
    words: list[str] = field(default_factory=list)
    picture: str = ""
    caption: str = ""
    tables: list[Table] = field(default_factory=list)
    note: str = ""
    text: str = ""
    absent: str = ""


@dataclass
class Page:
    """What was measured, in sections.

    Attributes:
        measured: what was measured.
        rows: the most rows of a table.
        problems: what cannot be read, and what cannot be drawn.
    """

    measured: Measured
    rows: int
    problems: list[str]

    @classmethod
    def of(cls, measured: Measured, rows: int) -> Page:
        return cls(measured, rows, list(measured.problems))

    def sections(self) -> list[Section]:
        """All sections, in their order."""
        return [self._driver(), self._trials(), self._time_line(), self._head(), self._store()]

    def _draw(self, section: Section, draw: Callable[[], str]) -> None:
        try:
            section.picture = draw()
        except (ValueError, TypeError, KeyError, OverflowError, OSError) as error:
            # A value of a damaged record, which its reader did not look at.
            self.problems.append(f"{section.title} cannot be drawn: {error!r}.")

    def _samples(self) -> pd.DataFrame | None:
        from ray_tune_memguard.diagnostics.growth import read_growth

        readings = Readings(self.measured.path)
        samples = readings.read("growth series", read_growth)
        self.problems += [one for one in readings.problems if one not in self.problems]
        return samples

    def _driver(self) -> Section:
        found, section = self.measured, Section("Memory of the driver")
        samples = self._samples()
        if found.series is None and samples is None and found.diagnosis is None:
            section.absent = _NOT_MEASURED
            return section
        if found.series is not None:
            section.words.append(f"The driver's resident memory (RSS). {found.series_words()}")
        section.words += self._growth_words()
        section.tables = _present(found.growth_table(), found.series_table())
        section.text = str(found.diagnosis or "")
        if found.series is not None or samples is not None:
            section.caption = "RSS over the trials" + (
                "." if samples is None else ", and what it consists of where that was measured."
            )
            self._draw(section, lambda: charts.driver(found.series, samples))
        names = self._growing_sites()
        if samples is not None and names:
            section.caption += " Below: the retention sites that grow."
            above = section.picture
            self._draw(section, lambda: above + charts.growing(samples, names))
        return section

    def _growing_sites(self) -> list[str]:
        found = self.measured
        if found.diagnosis is not None:
            return [site.name for site in found.diagnosis.holders]
        return [
            one.name for one in found.growth if one.kind == "holder" and (one.per_trial or 0) > 0
        ]

    def _growth_words(self) -> list[str]:
        found = self.measured.diagnosis
        if found is None:
            return []
        sites = [
            f"{one_line(site.name)} grows by {size(site.slope)} per {site.unit}. "
            f"{one_line(site.advice)}".rstrip()
            for site in found.holders[:3]
        ]
        if sites:
            return sites
        return [text.no_growth(found)] if found.is_judged else []

    def _trials(self) -> Section:
        memory, section = self.measured.trials, Section("Memory of the trials")
        if memory is None:
            section.absent = _NOT_MEASURED
            return section
        most = memory.iloc[0].to_dict()
        section.words = [
            f"{len(memory):,} trials were measured. {one_line(most['trial_id'])} took most: "
            f"{size(most['peak_rss_bytes'])} ({config_of(most) or 'no configuration'})."
        ]
        parameters = _parameters(memory)
        if parameters and abs(parameters[0][1]) >= _MIN_CORRELATION:
            name, rho = parameters[0]
            section.words.append(
                f"The peaks {'rise' if rho > 0 else 'fall'} with {one_line(name)} "
                f"(rank correlation {rho:+.2f})."
            )
        section.caption = (
            "The peak of each trial in the order of the starts, and against the numbers of its "
            "configuration; ρ is the rank correlation."
        )
        self._draw(section, lambda: charts.trials(memory, parameters, CONFIG))
        section.tables = _present(self.measured.trials_table(self.rows))
        if len(memory) > self.rows:
            section.note = (
                f"The table has the first {self.rows:,}; “memguard trials --limit 0” prints all."
            )
        return section

    def _time_line(self) -> Section:
        found, section = self.measured, Section("Deaths and waiting trials")
        deaths, gate = found.deaths_table(self.rows), found.gate_table(self.rows)
        section.words = [f"{table.title}." for table in _present(deaths, gate)]
        if deaths is None:
            section.words.append("No death of a trial is recorded.")
        if gate is None:
            section.words.append("No trial is recorded to have waited for memory.")
        section.tables = _present(deaths, gate)
        if deaths or gate or found.trials is not None:
            section.caption = (
                "The number of measured trials that ran, when the launch gate let trials wait, and "
                "when trials died, by cause. Times are those of the machine that made this page."
            )
            spans = [] if found.trials is None else read_spans(found.path)
            self._draw(
                section,
                lambda: charts.time_line(spans, found.deaths, found.gate, self._waits()),
            )
        return section

    def _waits(self) -> list[tuple[float, float]]:
        """When trials waited, run by run, because a killed one has closed no pause."""
        found: list[tuple[float, float]] = []
        pattern = file_pattern(KIND)
        for file in report_files(self.measured.path, pattern):
            with contextlib.suppress(*DAMAGE):
                gate = read_gate(file)
                found += waits(gate, self._end_of(run_of(file, pattern), gate))
        return found

    def _end_of(self, run: str, gate: Sequence[GateRecord]) -> float:
        """When the last thing was measured in a run; now, while it goes on."""
        measured = self.measured
        series = report_files(measured.path, FILE_PATTERN)
        own = [file for file in series if run_of(file, FILE_PATTERN) == run]
        if measured.run.state == "running" and own == series[-1:]:
            return time.time()
        times = [record.time for record in gate]
        with contextlib.suppress(*DAMAGE):
            times += [time for file in own for time in read_rss_series(file)["time"]]
        return max(times, default=0.0)

    def _head(self) -> Section:
        head, section = self.measured.head, Section("Ray's processes on the head node")
        if head is None:
            section.absent = _NOT_MEASURED
            return section
        processes = self.measured.head_processes()
        section.words = [
            f"{one_line(one.name)} is the largest process of Ray's on the head node: "
            f"{size(one.rss_bytes)}"
            + ("." if one.per_trial is None else f", {signed(one.per_trial)} per trial.")
            for one in processes[:1]
        ]
        section.caption = "Anonymous memory of the largest processes over the finished trials."
        self._draw(section, lambda: charts.head(head, [one.name for one in processes]))
        section.tables = _present(self.measured.head_table())
        return section

    def _store(self) -> Section:
        store, section = self.measured.store, Section("Ray's object store")
        if store is None:
            section.absent = _NOT_MEASURED
            return section
        section.words = self.measured.store_words()
        section.caption = "Primary copies in memory, and what is spilled to disk, on all nodes."
        self._draw(section, lambda: charts.store(store))
        return section


def _present(*tables: Table | None) -> list[Table]:
    return [table for table in tables if table is not None]


def _parameters(memory: pd.DataFrame) -> list[charts.Parameter]:
    """The numeric parameters that vary, those first that go with the peaks."""
    ranks = memory["peak_rss_bytes"].rank()
    found = []
    for name in memory.columns:
        values = memory[name]
        if not name.startswith(CONFIG) or values.dtype.kind not in "if" or values.nunique() < 2:
            continue
        known = values.notna()
        rho = values[known].rank().corr(ranks[known]) if known.sum() >= _MIN_RANKED else 0.0
        found.append((name.removeprefix(CONFIG), 0.0 if rho != rho else float(rho)))
    return sorted(found, key=lambda one: -abs(one[1]))[:_MAX_PARAMETERS]
