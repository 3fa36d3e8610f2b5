"""What the benchmarks print of their runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as command
from benchmarks.record import Round, Run
from benchmarks.report import format_table
from benchmarks.rivals import MEMGUARD, RAY, RIVALS
from benchmarks.rows import Bar, Row, figure, plain_bytes, same_results
from benchmarks.suite import BENCHMARKS


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
    assert not figure("slope", plain_bytes, _rounds(), _slope, Bar(0.01, of_ratio=True)).passed


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


def test_time_per_trial_is_that_of_parts_of_the_sweep() -> None:
    points = _run(1).trial_seconds(parts=5)
    assert [trials for trials, _ in points] == [20, 40, 60, 80, 100]
    assert [each for _, each in points] == pytest.approx([0.01] * 5)


def test_every_benchmark_has_rays_figures_beside_memguards() -> None:
    for benchmark in BENCHMARKS.values():
        for leg in benchmark.legs:
            assert {RAY, MEMGUARD} <= set(leg.rivals)


def test_what_is_printed_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with command._kept("some", tmp_path):
        print("figures")
    assert (tmp_path / "some.txt").read_text() == "figures\n"
    assert capsys.readouterr().out == "figures\n"
    with pytest.raises(SystemExit):
        command.main(["nonsense"])
