"""What the benchmarks print of their runs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as command
from benchmarks import overhead, restore
from benchmarks.commands import run_command
from benchmarks.picture import draw_bars
from benchmarks.record import Round, Run
from benchmarks.report import format_table, write_results
from benchmarks.rivals import MEMGUARD, RAY, RIVALS
from benchmarks.rows import Bar, Row, figure, memguards, plain_bytes, same_results
from benchmarks.runs import ROOT
from benchmarks.suite import BENCHMARKS, Benchmark, Leg
from tests.acceptance.out_of_memory import ray_of
from tests.acceptance.pytest_plugin import Outcome
from tests.integration.own_process import said_by


def _run(slope: float, best: str = "0") -> Run:
    samples = [[n, n, 1000 + slope * n, 0.01 * n, 0] for n in range(0, 101, 10)]
    outcome: dict[str, Any] = {"len": 100, "best": best}
    return Run({"samples": samples, "outcome": outcome, "fit_s": 1.0})


def _rounds() -> list[Round]:
    return [Round({RAY: _run(ray), MEMGUARD: _run(guarded)}) for ray, guarded in [(40.0, 1.0)] * 3]


def _slope(run: Run) -> float:
    return run.slope(2, 0, 0.75)


def test_a_figure_is_compared_with_its_bar() -> None:
    row = figure("slope", plain_bytes, _rounds(), _slope, Bar(2))
    assert row.values[RAY] == pytest.approx([40.0] * 3)
    assert row.ratio == pytest.approx(1 / 40)
    assert row.passed
    assert not figure("slope", plain_bytes, _rounds(), _slope, Bar(0.5)).passed


def test_results_that_differ_are_a_failure_of_memguards_alone() -> None:
    other = "naive-pruner"
    rounds = [Round({RAY: _run(1), other: _run(1, best="1"), MEMGUARD: _run(1)})]
    row = same_results(rounds)
    assert row.passed
    assert row.values[other] == ["100, differ: best"]
    assert not same_results([Round({RAY: _run(1), MEMGUARD: _run(1, best="1")})]).passed


def test_a_table_names_the_rivals_and_says_what_was_missed() -> None:
    rows: list[Row] = [figure("slope", plain_bytes, _rounds(), _slope, Bar(0.5))]
    text = format_table(rows, judged=True)
    assert RIVALS[RAY].title in text
    assert "MISS" in text
    assert "not judged" in format_table(rows, judged=False)


def test_what_only_memguard_has_is_in_the_same_table() -> None:
    rows: list[Row] = [
        memguards("spill", plain_bytes, _rounds(), _slope, Bar(2)),
        figure("slope", plain_bytes, _rounds(), _slope),
    ]
    head, _, spill, slope = format_table(rows, judged=True).splitlines()
    columns = [head.index(RIVALS[name].title) for name in (RAY, MEMGUARD)]
    assert spill[columns[0] : columns[1]].strip() == ""
    assert spill[columns[1] :].startswith("1 B")
    assert spill.endswith("pass")
    assert slope[columns[0] :].startswith("40 B")


def test_figures_are_drawn_as_bars(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    rows = [
        figure("slope", plain_bytes, _rounds(), _slope),
        memguards("spill", plain_bytes, _rounds(), _slope),
    ]
    path = tmp_path / "bars.png"
    draw_bars("some", [("one", rows), ("other", rows)], path)
    assert path.read_bytes().startswith(b"\x89PNG")


def _opened(at: float) -> Run:
    keys = ("seconds", "rss", "peak", "seconds_to_best", "seconds_to_dataframe", "rss_at_setup")
    steps = {*restore.STEPS[RAY], *restore.STEPS[MEMGUARD]}
    return Run({step: dict.fromkeys(keys, at) | {"trials": 1} for step in steps})


@pytest.mark.parametrize(("at", "missed"), [(0.5, 0), (10.0, 5)])
def test_restoring_is_judged_by_memguards_figures(at: float, missed: int) -> None:
    rows, drawn = restore._evaluate([Round({RAY: _opened(9.0), MEMGUARD: _opened(at)})])
    assert [row.passed for row in rows].count(False) == missed
    assert {row.values[RAY][0] for row in drawn} == {9.0}


def test_overhead_is_judged_by_its_median() -> None:
    record = {
        "per_trial_s": 2e-3,
        "read_back_s": 1e-4,
        "store_bytes_per_trial": 1000,
        "state_file_bytes_per_trial": 6000,
        "parts": dict.fromkeys(overhead.PARTS, 1e-4),
    }
    for median, kept in ((2e-4, True), (4e-4, False)):
        added = dict.fromkeys(("median_s", "mean_s", "p95_s", "mean_of_all_s"), median)
        guarded = Run(record | {"added": added})
        rows, parts = overhead._evaluate([Round({RAY: Run(record), MEMGUARD: guarded})])
        assert [row.passed for row in rows if row.passed is not None] == [kept]
        assert len(parts) == len(overhead.PARTS)


def test_time_per_trial_is_that_of_parts_of_the_sweep() -> None:
    points = _run(1).trial_seconds(parts=5)
    assert [trials for trials, _ in points] == [20, 40, 60, 80, 100]
    assert [each for _, each in points] == pytest.approx([0.01] * 5)


def test_every_benchmark_has_rays_figures_beside_memguards() -> None:
    for benchmark in BENCHMARKS.values():
        for leg in benchmark.legs:
            assert {RAY, MEMGUARD} <= set(leg.rivals)


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
    run.record["checkpoints"] = [
        {"finished": 10, "forced": False, "save_s": 1.0},
        {"finished": 90, "forced": False, "save_s": 2.0},
        {"finished": 100, "forced": True, "save_s": 3.0},
    ]
    assert run.periodic_checkpoint(0, 50) == 1.0
    assert run.periodic_checkpoint(50, 100) == 2.0
    assert run.periodic_checkpoint(95, 100) == 3.0


def two_legs(monkeypatch: pytest.MonkeyPatch) -> Leg:
    """Let ``carried`` have the same leg twice."""
    [leg] = BENCHMARKS["carried"].legs
    monkeypatch.setitem(BENCHMARKS, "carried", Benchmark("two legs", (leg, leg)))
    return leg


def test_what_was_measured_can_be_judged_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "draw", lambda *_: None)
    leg = two_legs(monkeypatch)
    head = {"machine": {"ray": "9.9.9"}, "runs": 3, "judged": True}
    measured = [("one", [], _rounds()), ("other", [], _rounds())]
    write_results(tmp_path / "carried.json", head, measured)
    assert command.main(["carried", "--again", "--results", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "ray 9.9.9" in printed
    assert leg.title in printed
    assert printed.count("RSS per trial") == 2
    assert command.main(["losses", "--again", "--results", str(tmp_path)]) == 2


def test_an_interrupt_leaves_the_legs_that_were_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "draw", lambda *_: None)
    two_legs(monkeypatch)
    measured = [_rounds()]

    def run_rounds(*_: object, **__: object) -> list[Round]:
        if not measured:
            raise KeyboardInterrupt
        return measured.pop()

    monkeypatch.setattr(command, "run_rounds", run_rounds)
    assert command.main(["carried", "--results", str(tmp_path)])
    head, legs = command._read_results(tmp_path / "carried.json")
    assert head["legs"] == [1]
    assert [len(rounds) for rounds in legs] == [3]
    assert command.main(["carried", "--again", "--results", str(tmp_path)]) == 0


def test_bars_need_ray_and_memguard(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["losses", "--rivals", "ray"])
    assert "memguard must be among them" in capsys.readouterr().err


def test_an_interrupt_ends_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[str] = []

    def interrupted(name: str, *_: object) -> bool:
        begun.append(name)
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_run_benchmark", interrupted)
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

    def failing(options: list[str]) -> int:
        said_by(["failing_child"], timeout, variables=variables)
        return 0

    monkeypatch.setitem(command.COMMANDS, "gate", failing)
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
import benchmarks, tests.acceptance
for package in (benchmarks, tests.acceptance):
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
