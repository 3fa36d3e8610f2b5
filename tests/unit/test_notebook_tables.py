"""What a notebook shows of a diagnosis and of deaths: all of it, and escaped."""

from __future__ import annotations

import logging
from html.parser import HTMLParser
from pathlib import Path

import pytest

from ray_tune_memguard import notices, read_deaths
from ray_tune_memguard.diagnostics.deaths.record import Death, MemoryUser
from ray_tune_memguard.diagnostics.diagnosis import Diagnosis
from ray_tune_memguard.diagnostics.findings import GrowingSite, Quantity, TypeGrowth
from ray_tune_memguard.report.records import RecordFile
from ray_tune_memguard.report.tables import Table

HOSTILE = '<script>alert("1 & 2")</script>'


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def parse(html: str) -> list[str]:
    """The texts between tags, of HTML that has tables and paragraphs only."""
    parser = _Parser()
    parser.feed(html)
    assert parser.tags <= {"table", "thead", "tbody", "tr", "th", "td", "p"}
    return parser.texts


def test_numbers_are_on_the_right_and_texts_on_the_left() -> None:
    html = Table(("what", "bytes"), [("a < b", "17 B")], "Two", ("bytes",)).html()
    assert html == (
        "<p>Two</p><table><thead><tr>"
        '<th style="text-align: left">what</th><th style="text-align: right">bytes</th>'
        "</tr></thead><tbody><tr>"
        '<td style="text-align: left">a &lt; b</td><td style="text-align: right">17 B</td>'
        "</tr></tbody></table>"
    )


def test_a_diagnosis_shows_who_grows_first() -> None:
    texts = parse(
        Diagnosis(
            1000,
            2000,
            is_judged=True,
            holders=[
                GrowingSite(HOSTILE, "python", 2048.0, 1.0, 2e6, f"{HOSTILE} → list", "Clear it.")
            ],
            parts=[Quantity("rss", 300 * 2**20, 2100.0, 30.0, advice="Trim.")],
            types=[TypeGrowth("mine.Node", 300, 1.0, 0.1, path="Mine.kept → Node")],
            processes=[Quantity("raylet", 30 * 2**20)],
            absent={"shared": "this system has no <smaps>"},
        )._repr_html_()
    )
    first = texts.index(HOSTILE)
    assert texts[first - 7 : first - 6] == ["What grows"]
    assert texts[first : first + 6] == [
        HOSTILE,
        "python",
        "+2.0 ± 0.0 KiB",
        "1.9 MiB",
        f"{HOSTILE} → list",
        "Clear it.",
    ]
    assert "Memory of the driver after 1,000 trials and 2,000 results of this run" in texts[first:]
    for text in ("mine.Node", "+1.00", "Mine.kept → Node", "rss", "300.0 MiB", "Trim.", "raylet"):
        assert text in texts
    assert "shared: not known, because this system has no <smaps>" in texts


def test_a_diagnosis_without_growth_says_so() -> None:
    assert parse(Diagnosis(1000, 1000, is_judged=True)._repr_html_())[0] == (
        "Nothing grows steadily with trials."
    )
    assert parse(Diagnosis(10, 10)._repr_html_())[0].startswith("Too early to tell what grows")


def test_deaths_are_a_table(tmp_path: Path) -> None:
    records = RecordFile(tmp_path / ".memguard" / "deaths-2026-11-22_10-00-00.jsonl")
    assert parse(read_deaths(tmp_path)._repr_html_()) == ["No trial has died."]
    for number in range(120):
        records.add(
            Death(
                float(number),
                f"{number:05}",
                HOSTILE,
                "kernel_oom",
                "certain",
                size_bytes=110 * 2**20,
                culprit=MemoryUser(7, 890 * 2**20, "train_00000", "00000"),
                advice="Use less.",
            )
        )
    found = read_deaths(tmp_path)
    assert [death.trial_id for death in found][-1] == "00119"
    texts = parse(found._repr_html_())
    assert texts[0] == "120 deaths, the latest 100 of them"
    assert texts.count(HOSTILE) == 100
    row = texts[texts.index(HOSTILE) :][:7]
    assert row == [
        HOSTILE,
        "kernel_oom",
        "certain",
        "110 MiB",
        "train_00000: 890 MiB",
        "failed",
        "Use less.",
    ]


def test_outside_a_notebook_each_line_of_progress_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = logging.Logger("ray_tune_memguard")
    monkeypatch.setattr(notices, "logger", logger)
    notices.show_lines()
    notices.progress("trial#100  RSS 231 MiB")
    notices.progress("trial#200  RSS 100 % of 231 MiB")
    lines = ["[memguard] trial#100  RSS 231 MiB", "[memguard] trial#200  RSS 100 % of 231 MiB"]
    assert capsys.readouterr().err.splitlines() == lines
