"""What a leak test judges, and what it refuses."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from ray.tune import Callback

from ray_tune_memguard.diagnostics.diagnosis import Diagnosis
from ray_tune_memguard.diagnostics.findings import GrowingSite, TypeGrowth
from ray_tune_memguard.diagnostics.trend import Trend, trend
from ray_tune_memguard.testing import LeakTest
from ray_tune_memguard.testing.verdict import Limit, Measurement, problem

LIMIT = Limit(bytes_per_trial=2000, trials=300)
SITE = GrowingSite("Mine.kept", "python", 9000.0, 10.0, 2e6, "Mine.kept → list[300]", "Clear it.")


def growth(values: list[float]) -> Trend | None:
    """Of values measured every ten trials."""
    return trend([10.0 * n for n in range(len(values))], values)


def test_growth_above_the_limit_is_a_problem_and_names_who_holds_it() -> None:
    types = [TypeGrowth("builtins.list", 11_000, 1.0, 0.1)]
    found = Diagnosis(300, 300, holders=[SITE], types=types)
    leaks = growth([90_000.0 * n for n in range(20)])
    lines = problem(Measurement(300, leaks, diagnosis=found), LIMIT).splitlines()
    assert lines[0] == (
        "The driver's memory grows by +8.8 KiB per trial (95 % interval: +8.8 KiB to +8.8 KiB); "
        "bytes_per_trial=2.0 KiB is allowed."
    )
    assert "Mine.kept (python, 1.9 MiB)" in lines[2]
    assert [line.strip() for line in lines[3:]] == ["Mine.kept → list[300]", "Clear it."]


def test_types_are_named_where_no_site_is_known() -> None:
    found = Diagnosis(300, 300, is_judged=True, types=[TypeGrowth("mine.Node", 300, 1.0, 0.1)])
    leaks = growth([90_000.0 * n for n in range(20)])
    assert "+1.00 a trial  mine.Node" in problem(Measurement(300, leaks, diagnosis=found), LIMIT)


@pytest.mark.parametrize(
    ("values", "fails"),
    [
        ([19_000.0 * n for n in range(20)], False),
        ([21_000.0 * n for n in range(20)], True),
        # A median slope above the limit, and an interval that reaches below it.
        ([21_000.0 * n + 40_000.0 * (n * 5 % 11) for n in range(20)], False),
        # An import in mid-sweep.
        ([0.0] * 10 + [5_000_000.0] * 10, False),
    ],
)
def test_only_certain_and_steady_growth_is_a_problem(values: list[float], fails: bool) -> None:
    assert bool(problem(Measurement(300, growth(values)), LIMIT)) is fails


def test_too_few_trials_are_a_problem() -> None:
    found = problem(Measurement(120), LIMIT)
    assert found.startswith("Too few trials to judge growth: 120 finished in a sweep")
    assert "trials=300" in found
    assert "num_samples=memguard.trials" in found


def test_a_number_of_waiting_trials_that_falls_is_a_problem() -> None:
    level = growth([0.0] * 20)
    assert problem(Measurement(300, level, span=200, unfinished=(4, 24)), LIMIT) == ""
    found = problem(Measurement(300, level, span=200, unfinished=(2, 195)), LIMIT)
    assert "the number of unfinished trials varied from 2 to 195" in found
    assert "Set max_concurrent_trials in TuneConfig." in found


def test_memory_that_cannot_be_measured_is_a_problem() -> None:
    found = problem(Measurement(300, absent={"python": "no allocator"}), LIMIT)
    assert found == (
        "Growth cannot be judged, because memory could not be measured. python: no allocator"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bytes_per_trial": "2 KX"}, "bytes_per_trial must be a positive number of bytes.*'2 KX'"),
        ({"bytes_per_trial": 0}, "bytes_per_trial must be a positive number of bytes.*got 0"),
        ({"bytes_per_trial": None}, "bytes_per_trial must be a positive number of bytes.*None"),
        ({"trials": 199}, "trials must be a whole number of at least 200; got 199"),
        ({"trials": 300.5}, r"trials must be a whole number of at least 200; got 300\.5"),
    ],
)
def test_bad_arguments_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        LeakTest(**options)


def test_the_environment_sets_what_no_argument_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNE_MEMGUARD_TRIALS", "1000")
    monkeypatch.setenv("TUNE_MEMGUARD_BYTES_PER_TRIAL", "1 MiB")
    assert Limit.of() == Limit(2**20, 1000)
    assert Limit.of("1 KB", 400) == Limit(1000, 400)
    monkeypatch.setenv("TUNE_MEMGUARD_TRIALS", "few")
    with pytest.raises(TypeError, match="TUNE_MEMGUARD_TRIALS must be a whole number"):
        LeakTest()


def test_a_class_in_place_of_a_callback_is_refused() -> None:
    with pytest.raises(TypeError, match=r"callbacks must be objects of ray.tune.Callback; got <cl"):
        LeakTest().run(Callback)  # type: ignore[arg-type]


def test_an_error_in_mid_sweep_is_a_problem() -> None:
    test = LeakTest()
    test.callback.setup()
    test.callback.disable(OSError("no /proc"))
    assert test.problem() == "Growth cannot be judged: an unexpected error (OSError('no /proc'))"


def test_a_restored_sweep_opens_without_the_test() -> None:
    test = LeakTest(trials=500)
    test.callback.measurements.append(Measurement(500))
    restored = pickle.loads(pickle.dumps(test.callback))
    assert type(restored) is type(test.callback)
    assert restored.measurements == []
