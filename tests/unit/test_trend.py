"""Growth is told from noise, from one step, and from what comes and goes."""

from __future__ import annotations

import math
import random

import pytest

from ray_tune_memguard.diagnostics.trend import MIN_POINTS, trend

X = list(range(100, 600, 25))


def noise(seed: int, size: float) -> list[float]:
    made = random.Random(seed)
    return [made.gauss(0, size) for _ in X]


@pytest.mark.parametrize("seed", range(5))
def test_a_leak_in_noise(seed: int) -> None:
    found = trend(X, [100.0 * x + e for x, e in zip(X, noise(seed, 3000), strict=True)])
    assert found is not None
    assert found.steady
    assert found.low - 5 < 100 < found.high + 5
    assert found.slope == pytest.approx(100, rel=0.15)


@pytest.mark.parametrize("seed", range(20))
def test_noise_alone_hardly_ever_grows(seed: int) -> None:
    found = trend(X, noise(seed, 3000))
    assert found is not None
    # Of a hundred series two or three are taken for growth; then of a small one.
    assert not found.steady or found.slope < 20


@pytest.mark.parametrize("at", [150, 300, 450])
def test_one_step_is_not_growth(at: int) -> None:
    found = trend(X, [1e6 * (x > at) + e for x, e in zip(X, noise(1, 10), strict=True)])
    assert found is not None
    assert not found.steady


def test_what_comes_and_goes_is_not_growth() -> None:
    found = trend(X, [1000.0 * (x % 250) for x in X])
    assert found is not None
    assert not found.steady


def test_what_has_stopped_growing() -> None:
    found = trend(X, [1000.0 * min(x, 250) for x in X])
    assert found is not None
    assert not found.steady


def test_an_exact_line() -> None:
    found = trend(X, [7.0 * x for x in X])
    assert found is not None
    assert (found.slope, found.uncertainty, found.steady) == (7.0, 0.0, True)


def test_one_outlier_does_not_move_it() -> None:
    y = [10.0 * x for x in X]
    y[7] = 1e9
    found = trend(X, y)
    assert found is not None
    assert found.slope == pytest.approx(10, rel=0.05)


def test_unknown_points_do_not_count() -> None:
    y = [math.nan if i % 2 else 10.0 * x for i, x in enumerate(X)]
    found = trend(X, y)
    assert found is not None
    assert found.slope == 10


def test_too_few_points_or_no_trials() -> None:
    few = MIN_POINTS - 1
    assert trend(X[:few], X[:few]) is None
    assert trend([5] * 20, list(range(20))) is None
