"""What another program takes of the machine is not taken for our own time, within bounds."""

from __future__ import annotations

import pytest

from ray_tune_memguard.diagnostics import deadline


class Clocks:
    def __init__(self) -> None:
        self.cpu = self.wall = 100.0

    def thread_time(self) -> float:
        return self.cpu

    def perf_counter(self) -> float:
        return self.wall


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    found = Clocks()
    monkeypatch.setattr(deadline, "time", found)
    return found


@pytest.mark.parametrize(
    ("cpu", "wall", "is_over"),
    [(0.1, 0.1, False), (0.21, 0.21, True), (0.05, 0.9, False), (0.05, 1.01, True)],
)
def test_it_counts_cpu_time_and_at_most_five_times_as_much(
    clocks: Clocks, cpu: float, wall: float, is_over: bool
) -> None:
    limit = deadline.Deadline(0.2)
    clocks.cpu += cpu
    clocks.wall += wall
    assert limit.is_over() is is_over


def test_without_a_limit_it_is_never_over(clocks: Clocks) -> None:
    limit = deadline.Deadline()
    clocks.cpu = clocks.wall = 1e9
    assert limit.left() == float("inf")
