"""What the benchmarks print of their runs."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as command
from benchmarks import metrics, runner
from benchmarks.baselines import BASELINES, MEMGUARD, RAY
from benchmarks.measures import STEPS
from benchmarks.metrics import Record, Round
from benchmarks.report import Table, draw, format_table, write_results
from benchmarks.rows import FORMATS, Metric, Row, table
from benchmarks.runner import ROOT, Job, Scenario, Section, run_command
from benchmarks.scenarios import SCENARIOS
from tests.acceptance.out_of_memory import ray_of
from tests.acceptance.pytest_plugin import Outcome
from tests.integration.own_process import said_by

SLOPE = "slope rss finished 0.75"


def _run(slope: float, best: str = "0") -> Record:
    samples = [[n, n, 1000 + slope * n, 0.01 * n, 0] for n in range(0, 101, 10)]
    outcome: dict[str, Any] = {"len": 100, "best": best}
    return {"samples": samples, "outcome": outcome, "fit_s": 1.0}


def _rounds() -> list[Round]:
    return [{RAY: _run(ray), MEMGUARD: _run(guarded)} for ray, guarded in [(40.0, 1.0)] * 3]


def _row(line: str, rounds: list[Round] | None = None) -> Row:
    [metric] = table(line)
    return metric.row(rounds or _rounds())


def test_a_figure_is_compared_with_its_threshold() -> None:
    row = _row(f"slope | B | {SLOPE} | <= 2")
    assert row.values[RAY] == pytest.approx([40.0] * 3)
    assert row.ratio == pytest.approx(1 / 40)
    assert row.passed
    assert row.threshold == "at most 2 B"
    assert not _row(f"slope | B | {SLOPE} | <= 0.5").passed
    assert _row(f"slope | B | {SLOPE} | min >= 0.5").passed


def test_a_reading_is_made_of_terms() -> None:
    record = {"fit_s": 6.0, "parts": {"a spill": 2.0}, "none": None}
    one = {RAY: {"fit_s": 12.0}, MEMGUARD: record}
    assert metrics.read("fit_s - parts:a spill / of ray fit_s", record, one) == 4 / 12
    assert math.isnan(metrics.read("none", record, one))


def test_results_that_differ_are_a_failure_of_memguards_alone() -> None:
    other, line = "naive-pruner", "results | yes | same_results"
    row = _row(line, [{RAY: _run(1), other: _run(1, best="1"), MEMGUARD: _run(1)}])
    assert row.passed
    assert row.values[other] == ["100, differ: best"]
    assert not _row(line, [{RAY: _run(1), MEMGUARD: _run(1, best="1")}]).passed


def test_a_table_names_the_baselines_and_says_what_was_missed() -> None:
    rows = [_row(f"slope | B | {SLOPE} | <= 0.5")]
    text = format_table(rows, judged=True)
    assert BASELINES[RAY].title in text
    assert "MISS" in text
    assert "not judged" in format_table(rows, judged=False)


def test_what_only_memguard_has_is_in_the_same_table() -> None:
    rows = [_row(f"spill | B | {SLOPE} | <= 2 | own"), _row(f"slope | B | {SLOPE}")]
    head, _, spill, slope = format_table(rows, judged=True).splitlines()
    columns = [head.index(BASELINES[name].title) for name in (RAY, MEMGUARD)]
    assert spill[columns[0] : columns[1]].strip() == ""
    assert spill[columns[1] :].startswith("1 B")
    assert spill.endswith("pass")
    assert slope[columns[0] :].startswith("40 B")


@pytest.mark.parametrize("options", ["drawn", "drawn own"])
def test_figures_are_drawn_as_bars(tmp_path: Path, options: str) -> None:
    pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    rows = [_row(f"slope | B | {SLOPE} | | {options}")]
    path = tmp_path / "bars.png"
    draw("some", [Table("one", rows, _rounds()), Table("other", rows, _rounds())], path)
    assert path.read_bytes().startswith(b"\x89PNG")


def _missed(name: str, one: Round) -> int:
    [section, *_] = SCENARIOS[name].sections
    return [metric.row([one]).passed for metric in section.metrics].count(False)


def _opened(at: float) -> Record:
    keys = ("seconds", "rss", "peak", "seconds_to_best", "seconds_to_dataframe", "rss_at_setup")
    steps = {*STEPS[RAY], *STEPS[MEMGUARD]}
    return {step: dict.fromkeys(keys, at) | {"trials": 1} for step in steps}


@pytest.mark.parametrize(("at", "missed"), [(0.5, 0), (10.0, 5)])
def test_restoring_is_judged_by_memguards_figures(at: float, missed: int) -> None:
    assert _missed("restore", {RAY: _opened(9.0), MEMGUARD: _opened(at)}) == missed


@pytest.mark.parametrize(("median", "missed"), [(2e-4, 0), (4e-4, 1)])
def test_overhead_is_judged_by_its_median(median: float, missed: int) -> None:
    own = [m for m in SCENARIOS["overhead"].sections[0].metrics if m.reading.startswith("parts:")]
    record = {
        "per_trial_s": 2e-3,
        "read_back_s": 1e-4,
        "store_bytes_per_trial": 1000,
        "state_file_bytes_per_trial": 6000,
        "parts": {metric.reading.partition(":")[2]: 1e-4 for metric in own},
    }
    added = dict.fromkeys(("median_s", "mean_s", "p95_s", "mean_of_all_s"), median)
    assert _missed("overhead", {RAY: record, MEMGUARD: record | {"added": added}}) == missed


def test_time_per_trial_is_that_of_parts_of_the_sweep() -> None:
    points = metrics.trial_milliseconds(_run(1), parts=5)
    assert [trials for trials, _ in points] == [20, 40, 60, 80, 100]
    assert [each for _, each in points] == pytest.approx([10.0] * 5)


METRICS = [
    (section, metric)
    for scenario in SCENARIOS.values()
    for section in scenario.sections
    for metric in section.metrics
]


@pytest.mark.parametrize(("section", "metric"), METRICS)
def test_every_metric_names_what_there_is(section: Section, metric: Metric) -> None:
    assert metric.unit in {*FORMATS, "yes", "text"}
    assert set(metric.judged) <= set(section.baselines)
    for term in re.split(r" [-/] ", re.sub(r"of \S+ ", "", metric.reading)):
        name = term.split()[0]
        is_key = ":" in term or name == term
        is_function = callable(getattr(metrics, name, None))
        assert is_function or (is_key and metric.unit not in ("yes", "text"))


def test_what_is_printed_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def some(options: Sequence[str]) -> int:
        print(*options)
        return 3

    options = ["--results", str(tmp_path), "figures"]
    assert run_command("some", some, options) == 3
    assert (
        capsys.readouterr().out == (tmp_path / "some.txt").read_text() == " ".join(options) + "\n"
    )
    with pytest.raises(SystemExit):
        command.main(["nonsense"])


def test_a_command_that_fails_says_why_and_keeps_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(_: Sequence[str]) -> int:
        raise RuntimeError("a child ended")

    assert run_command("some", fails, ["--results", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "\nsome: a child ended\n"
    assert not (tmp_path / "some.txt").exists()


def test_an_experiment_checkpoint_is_one_that_came_in_its_turn() -> None:
    run = _run(1)
    run["checkpoints"] = [
        {"finished": 10, "forced": False, "save_s": 1.0},
        {"finished": 90, "forced": False, "save_s": 2.0},
        {"finished": 100, "forced": True, "save_s": 3.0},
    ]
    assert metrics._checkpoint(run, 0, 50) == 1.0
    assert metrics._checkpoint(run, 50, 100) == 2.0
    assert metrics._checkpoint(run, 95, 100) == 3.0


def two_sections(measure: Any) -> Scenario:
    """The same section twice, but for its title."""
    rows = "RSS per trial | B | slope rss finished 0.75"
    return Scenario("two", *(Section(title, 100, measure, rows) for title in ("one", "other")))


def test_what_was_measured_can_be_judged_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SCENARIOS, "carried", two_sections(None))
    head = {"machine": {"ray": "9.9.9"}, "runs": 3, "judged": True}
    tables = [Table("one", [], _rounds()), Table("other", [], _rounds())]
    write_results(tmp_path / "carried.json", head, tables)
    assert command.main(["carried", "--again", "--results", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "ray 9.9.9" in printed
    assert printed.count("RSS per trial") == 2
    assert command.main(["losses", "--again", "--results", str(tmp_path)]) == 2


def test_an_interrupt_leaves_the_rounds_that_were_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [_run(1), _run(2), _run(3)]

    def measure(job: Job) -> Record:
        if not records:
            raise KeyboardInterrupt
        return records.pop()

    monkeypatch.setitem(SCENARIOS, "carried", two_sections(measure))
    assert command.main(["carried", "--results", str(tmp_path)]) == 130
    [sweep] = json.loads((tmp_path / "carried.json").read_text())["sweeps"]
    assert sweep["title"] == "one"
    assert len(sweep["runs"]) == 1


def test_only_some_sections_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs: list[Job] = []

    def measure(job: Job) -> Record:
        jobs.append(job)
        return _run(1)

    options = ["ot", "--trials", "30", "--runs", "2", "--results", str(tmp_path)]
    assert runner.run_scenario("two", two_sections(measure), options) == 0
    assert [job.baseline for job in jobs] == [RAY, MEMGUARD, MEMGUARD, RAY]
    assert {job.size for job in jobs} == {30}
    assert "other: 30 trials, runs: 2" in capsys.readouterr().out
    assert run_command("two", lambda _: 0, options) == 0


def test_thresholds_need_ray_and_memguard(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["losses", "--baselines", "ray"])
    assert "memguard must be among them" in capsys.readouterr().err


def test_an_interrupt_ends_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[str] = []

    def interrupted(name: str, *_: object) -> int:
        begun.append(name)
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "run_scenario", interrupted)
    assert command.main(["all"]) == 130
    assert len(begun) == 1


@pytest.mark.parametrize(
    ("program", "timeout", "said"),
    [
        ("raise ValueError('planned')", 60, "ValueError: planned"),
        ("import os; os._exit(0)", 60, "ended with 0"),
        ("print('no JSON')", 60, "ended with 0"),
        ("import time; time.sleep(600)", 1, "was not over after 1 s"),
    ],
)
def test_a_process_that_fails_ends_its_benchmark_and_not_all(
    program: str,
    timeout: float,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "failing_child.py").write_text(program)
    variables = {"PYTHONPATH": str(tmp_path)}

    def failing(*_: object) -> int:
        said_by(["failing_child"], timeout, variables=variables)
        return 0

    monkeypatch.setattr(command, "run_scenario", failing)
    results = tmp_path / "new" / "results"
    assert command.main(["gate", f"--results={results}"]) == 2
    assert said in capsys.readouterr().err
    assert results.is_dir()


def test_what_a_process_says_last_counts(tmp_path: Path) -> None:
    (tmp_path / "talking_child.py").write_text("print('begin'); print('[1, 2]')")
    variables = {"PYTHONPATH": str(tmp_path)}
    assert said_by(["talking_child"], 60, variables=variables) == [1, 2]


def test_an_environment_without_ray_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="has no Ray"):
        ray_of(str(tmp_path / "python"))


NAMED = (
    "The memory grows.\nWhat grows, by bytes per trial:\n  +9.8 ± 0.0 KiB  Watcher.kept (python)\n"
)


@pytest.mark.parametrize(
    ("leaks", "message", "is_right"),
    [
        (True, NAMED, True),
        (True, NAMED.replace("Watcher.kept", "Another.kept"), False),
        (True, "", False),
        (False, "", True),
        (False, NAMED, False),
    ],
)
def test_a_leak_test_is_right_if_it_names_the_leak(
    leaks: bool, message: str, is_right: bool
) -> None:
    assert Outcome("Watcher.kept: bytes", leaks, message, {}).is_right is is_right


def test_every_module_can_be_imported() -> None:
    """Children of a benchmark are started by module name, so nothing else says that one is gone."""
    code = """
import importlib, pkgutil
import benchmarks, benchmarks.children, tests.acceptance
for package in (benchmarks, benchmarks.children, tests.acceptance):
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
