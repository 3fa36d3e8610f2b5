"""``memguard report``: one HTML file, of ended, damaged, huge and maliciously named experiments."""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner

from ray_tune_memguard.cli.exit_codes import ExitCode
from ray_tune_memguard.cli.main import main
from ray_tune_memguard.cli.measured import Measured
from ray_tune_memguard.diagnostics.diagnosis import Diagnosis
from ray_tune_memguard.diagnostics.findings import GrowingSite
from ray_tune_memguard.diagnostics.growth import GrowthRow
from ray_tune_memguard.report.gate_records import GateRecord, waits
from ray_tune_memguard.report.head_records import HeadRecord
from ray_tune_memguard.report.records import RecordFile
from ray_tune_memguard.report.series_file import SeriesFile
from tests.unit.measured_experiments import (
    LATER,
    LATER_RUN,
    RUN,
    death,
    experiment_of_ray,
    measured,
    resume,
    trial_memory,
)

pytest.importorskip("jinja2", reason="the page needs jinja2")
pytest.importorskip("matplotlib", reason="the page needs matplotlib")
charts = pytest.importorskip("ray_tune_memguard.cli.page.charts")

EVIL = '<script>alert("1")</script>&$x$'
NOT_MEASURED = "This was not measured in the runs of this experiment."


class Page(HTMLParser):
    """What a browser would find on a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.styles: list[str] = []
        self.scripts: list[str] = []
        self.policy = ""
        self._texts: list[str] = []
        self.feed(text)
        self.close()

    @property
    def text(self) -> str:
        return " ".join(" ".join(self._texts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        found = {name: value or "" for name, value in attrs}
        self.addresses += [
            found[name] for name in ("href", "src", "xlink:href", "action") if name in found
        ]
        self.styles.append(found.get("style", ""))
        if found.get("http-equiv") == "Content-Security-Policy":
            self.policy = found["content"]

    def handle_data(self, data: str) -> None:
        kinds = {"style": self.styles, "script": self.scripts}
        kinds.get(self.tags[-1] if self.tags else "", self._texts).append(data)

    def handle_endtag(self, tag: str) -> None:
        self.tags.append(f"/{tag}")


def report(experiment: Path, *options: object, code: int = ExitCode.OK) -> Page:
    target = experiment.parent / "page.html"
    arguments = ["report", experiment, "-o", target, *options]
    done = CliRunner().invoke(main, list(map(str, arguments)))
    assert done.exit_code == code, done.output
    assert done.output == f"Wrote {target}\n"
    return Page(target.read_text())


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    return measured(tmp_path / "sweep")


def sections(experiment: Path) -> Iterator[str]:
    """The HTML of each section."""
    yield from (experiment.parent / "page.html").read_text().split("<section")[1:]


def test_the_page_says_what_show_says_and_draws_it(experiment: Path) -> None:
    page = report(experiment)
    for text in (
        "Its last run has ended.",
        "+2.0 KiB per trial, 21 measurements",
        "Memory of the driver after 400 trials",
        "30 trials were measured. t00029 took most: 129 MiB (layers=29).",
        "The peaks rise with layers (rank correlation +1.00).",
        "Deaths: 1 kernel_oom",
        "train_t00001: 900 MiB",
        "93 % of its memory is in use",
        "gcs_server is the largest process of Ray's on the head node: 90.0 MiB, +16.0 KiB",
        "Object store: 57.2 MiB of 1.0 GiB in memory, 20.9 MiB on disk, +200 KiB per trial.",
    ):
        assert text in page.text
    found = list(sections(experiment))
    assert [section.count("<svg") for section in found] == [1, 1, 1, 1, 1]
    assert [section.count("<table") for section in found] == [1, 1, 2, 1, 0]
    assert "layers (ρ = +1.00)" in page.text
    assert "died: kernel_oom" in page.text


def test_a_trial_that_two_runs_ran_did_not_run_between_them() -> None:
    times, running = charts._running([(0.0, 60.0), (1000.0, 1060.0), (30.0, 50.0)])
    assert running == [1, 2, 1, 0, 1, 0]
    assert [time.timestamp() for time in times] == [0, 30, 50, 60, 1000, 1060]


def test_a_pause_ends_with_its_run(experiment: Path) -> None:
    """The run was killed while trials waited, and another one went on a day later."""
    later = experiment / ".memguard" / f"gate-{LATER_RUN}.jsonl"
    for action, after in (("pause", 7.0), ("resume", 9.0), ("pause", 20.0)):
        RecordFile(later).add(GateRecord(LATER + after, action, "n", ""))  # type: ignore[arg-type]
    killed = [(1200.0, 1400.0)]
    assert waits_of(experiment) == [*killed, (LATER + 7, LATER + 9), (LATER + 20, LATER + 20)]
    resume(experiment)
    *others, (begin, end) = waits_of(experiment)
    assert others == [*killed, (LATER + 7, LATER + 9)]
    assert begin == LATER + 20
    assert end == pytest.approx(time.time(), abs=60)  # The run goes on.


def waits_of(experiment: Path) -> list[tuple[float, float]]:
    from ray_tune_memguard.cli.page.sections import Page as Sections

    return Sections.of(Measured.of(experiment), 5)._waits()


def test_the_stop_of_a_run_ends_all_pauses() -> None:
    given = [("pause", "a"), ("pause", "b"), ("stop", "a"), ("pause", "a")]
    records = [GateRecord(at, *one, "") for at, one in enumerate(given)]  # type: ignore[arg-type]
    assert waits(records, 9.0) == [(0, 2), (1, 2)]


def test_of_a_resumed_experiment(experiment: Path) -> None:
    page = report(resume(experiment))
    assert "+4.0 KiB per trial in the last run" in page.text
    assert "raylet is the largest process" in page.text


def test_it_loads_nothing(experiment: Path) -> None:
    page = report(experiment)
    assert page.addresses
    assert all(address.startswith(("#", "data:image/png;")) for address in page.addresses)
    assert not re.search(r"@import|url\((?!#)", " ".join(page.styles))
    [script] = page.scripts
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert page.policy == (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
        f"script-src 'sha256-{digest}'"
    )


def test_every_name_is_escaped(tmp_path: Path) -> None:
    """Also in pictures, where ``$`` would begin a formula."""
    experiment = measured(tmp_path / "<b>sweep")
    own = experiment / ".memguard"
    trial = replace(trial_memory(99), trial_id=EVIL, config={EVIL: 3.5}, end=EVIL)
    RecordFile(own / f"trial-memory-{RUN}.jsonl").add(trial)
    user = replace(death().culprit, name=EVIL)
    RecordFile(own / f"deaths-{RUN}.jsonl").add(
        replace(death(), trial_name=EVIL, cause=EVIL, culprit=user)
    )
    RecordFile(own / f"gate-{RUN}.jsonl").add(GateRecord(1250.0, "stop", "n", EVIL))
    RecordFile(own / f"head-{RUN}.jsonl").add(HeadRecord(1500.0, 500, {EVIL: (2**30, 2**30)}))
    growth = SeriesFile(own / f"growth-{RUN}.csv", GrowthRow)
    growth.add([GrowthRow(1000.0 + at, at, at, "holder", EVIL, at * 1e6) for at in (0, 400)])
    site = GrowingSite(EVIL, "python", 1e6, 1.0, 4e8, path=EVIL, advice=EVIL)
    Diagnosis(400, 400, is_judged=True, holders=[site]).save(own / f"diagnosis-{RUN}.json")
    page = report(experiment)
    assert page.tags.count("script") == 1
    assert "b" not in page.tags
    assert page.text.count("<b>sweep") == 3  # The title, the heading and the path.
    assert page.text.count(EVIL) >= 12
    assert f"died: {EVIL[:23]}…" in page.text


def test_a_section_without_measurements_says_so(experiment: Path) -> None:
    for file in (experiment / ".memguard").iterdir():
        if not file.name.startswith("rss-"):
            file.unlink()
    page = report(experiment)
    found = list(sections(experiment))
    assert [NOT_MEASURED in section for section in found] == [False, True, False, True, True]
    assert "No death of a trial is recorded." in page.text
    assert "No trial is recorded to have waited" in page.text


@pytest.mark.parametrize("is_alive", [True, False])
def test_of_a_run_without_an_end(tmp_path: Path, is_alive: bool) -> None:
    """There is no diagnosis; the page has the samples."""
    page = report(measured(tmp_path / "sweep", ended=False, is_alive=is_alive))
    assert "Memory of the driver so far" in page.text
    assert "Mine.history" in page.text


def test_damaged_records_are_named_and_the_rest_is_shown(experiment: Path) -> None:
    own = experiment / ".memguard"
    (own / f"diagnosis-{RUN}.json").write_text("{")
    (own / f"deaths-{RUN}.jsonl").write_text('{"time": 1}\n')
    (own / f"rss-{RUN}.csv").write_text("time,trials\n1,2\n")
    page = report(experiment, code=ExitCode.WARNING)
    assert "Not everything can be read" in page.text
    for what in ("diagnosis", "records of deaths", "RSS series"):
        assert f"The {what} cannot be read" in page.text
    assert "30 trials were measured." in page.text


@pytest.mark.parametrize("command", ["report", "show"])
@pytest.mark.parametrize(
    ("file", "text", "what"),
    [
        ("trial-memory-{}.jsonl", '{"peak_rss_bytes": "much"}', "memory of trials"),
        ("deaths-{}.jsonl", '{"time": "late"}', "records of deaths"),
        ("gate-{}.jsonl", '{"time": [1]}', "records of the launch gate"),
        ("head-{}.jsonl", '{"processes": {"raylet": ["a", 1]}}', "measurements of the head node"),
        ("head-{}.jsonl", '{"time": null}', "measurements of the head node"),
        ("objects-{}.jsonl", '{"trials": "x"}', "measurements of the object store"),
        ("rss-{}.csv", "time,trials,completed,errored,rss_bytes\n1,2,3,4,much\n", "RSS series"),
        ("rss-{}.csv", "time,trials\n1,2\n", "RSS series"),
    ],
)
def test_a_damaged_number(experiment: Path, command: str, file: str, text: str, what: str) -> None:
    (experiment / ".memguard" / file.format(RUN)).write_text(text)
    target = experiment.parent / "page.html"
    options = ["--json"] + (["-o", str(target)] if command == "report" else [])
    done = CliRunner().invoke(main, [command, str(experiment), *options])
    assert done.exit_code == ExitCode.WARNING, done.output
    assert any(f"The {what} cannot be read" in one for one in json.loads(done.output)["problems"])


def test_a_line_that_a_kill_has_cut_is_skipped(experiment: Path) -> None:
    with (experiment / ".memguard" / f"rss-{RUN}.csv").open("a") as file:
        file.write("1500.0,4")
    assert "21 measurements" in report(experiment).text


def test_ten_thousand_trials_are_less_than_two_megabytes(tmp_path: Path) -> None:
    experiment = measured(tmp_path / "sweep")
    lines = [
        json.dumps(asdict(replace(trial_memory(n), config={"layers": n % 7, "lr": 1 / (n + 1)})))
        for n in range(10_000)
    ]
    (experiment / ".memguard" / f"trial-memory-{RUN}.jsonl").write_text("\n".join(lines))
    page = report(experiment, "--rows", 5000)
    assert "10,000 trials were measured." in page.text
    assert "The table has the first 5,000" in page.text
    assert page.tags.count("tr") > 5000
    assert (tmp_path / "page.html").stat().st_size < 2_000_000


def test_an_experiment_in_which_nothing_was_measured(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["report", str(experiment_of_ray(tmp_path))])
    assert done.exit_code == ExitCode.NOT_FOUND
    assert "had no MemGuard()" in done.output


def test_a_file_that_cannot_be_written(experiment: Path, tmp_path: Path) -> None:
    target = tmp_path / "none" / "page.html"
    done = CliRunner().invoke(main, ["report", str(experiment), "-o", str(target)])
    assert done.exit_code == ExitCode.FAILED
    assert "cannot be written" in done.output


def test_a_device_is_written_to(experiment: Path, tmp_path: Path) -> None:
    """It was replaced by a file."""
    device = tmp_path / "pipe"
    os.mkfifo(device)
    received: list[str] = []
    reader = threading.Thread(target=lambda: received.append(device.read_text()))
    reader.start()
    done = CliRunner().invoke(main, ["report", str(experiment), "-o", str(device)])
    reader.join()
    assert done.exit_code == ExitCode.OK
    assert done.output == ""  # The page may go to where this output goes.
    assert received[0].startswith("<!DOCTYPE html>")
    assert device.is_fifo()


def test_of_a_link_its_file_is_replaced(experiment: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    page, link = tmp_path / "disk" / "sweep.html", tmp_path / "link.html"
    link.symlink_to(page)
    done = CliRunner().invoke(main, ["report", str(experiment), "-o", str(link)])
    assert done.exit_code == ExitCode.OK
    assert link.is_symlink()
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert list(page.parent.iterdir()) == [page]


def test_a_disk_without_room_keeps_no_half_page(
    experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "page.html"
    target.write_text("old")
    write = Path.write_text

    def write_half(path: Path, text: str, **options: str) -> int:
        write(path, text[:100], **options)
        raise OSError(errno.ENOSPC, "planned")

    monkeypatch.setattr(Path, "write_text", write_half)
    done = CliRunner().invoke(main, ["report", str(experiment), "-o", str(target)])
    assert done.exit_code == ExitCode.FAILED
    assert target.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["page.html"]


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_without_the_extra(experiment: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    for name in list(sys.modules):
        if name.startswith("ray_tune_memguard.cli.page"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    done = CliRunner().invoke(main, ["report", str(experiment)])
    assert done.exit_code == ExitCode.MISSING_EXTRA
    assert 'pip install "ray-tune-memguard[report]"' in done.output


BROWSER = shutil.which("chromium-headless-shell") or shutil.which("chromium")


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_a_browser_sorts_tables(experiment: Path, tmp_path: Path) -> None:
    report(experiment)
    page = tmp_path / "page.html"
    click = """
      const table = [...document.querySelectorAll("table")][1];
      const headings = [...table.querySelectorAll("button")];
      const heading = (name) => headings.find((one) => one.textContent === name);
      const first = () => table.tBodies[0].rows[0].cells[0].textContent;
      heading("anonymous").click();
      document.title = first();
      heading("anonymous").click();
      document.title += " " + first();
    """
    text = re.sub(r"<meta http-equiv[^>]*>", "", page.read_text())
    page.write_text(text.replace("</body>", f"<script>{click}</script></body>"))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", page.as_uri()]
    done = subprocess.run([BROWSER, *options], capture_output=True, check=True, timeout=300)
    assert "<title>t00000 t00029</title>" in done.stdout.decode()
