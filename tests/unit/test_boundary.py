"""The boundary between Ray and this package: whose error it is, and what happens then."""

from __future__ import annotations

import functools
import logging
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from ray_tune_memguard.adapter import boundary
from ray_tune_memguard.adapter.boundary import Entry, Policy


class RaysError(Exception):
    """What Ray, or the user's code, raises."""


@pytest.fixture(autouse=True)
def _new_run(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    boundary.begin_run()
    with caplog.at_level(logging.WARNING, logger="ray_tune_memguard"):
        yield


calls: list[str] = []


def rays(text: str) -> str:
    calls.append(text)
    if text == "bad":
        raise RaysError(text)
    return f"Ray's {text}"


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    calls.clear()


def test_ours_is_called_and_may_call_rays() -> None:
    entry = Entry("entry", Policy.CALL_RAY, lambda rays, text: f"<{rays(text)}>")
    assert entry.in_place_of(rays)("word") == "<Ray's word>"
    assert calls == ["word"]


def test_after_an_error_of_ours_rays_is_called(caplog: pytest.LogCaptureFixture) -> None:
    entry = Entry("entry", Policy.CALL_RAY, lambda rays, text: 1 / 0)
    assert entry.in_place_of(rays)("word") == "Ray's word"
    assert entry.in_place_of(rays)("again") == "Ray's again"
    [record] = caplog.records
    assert "entry raised an unexpected error" in record.getMessage()
    assert "Ray's own code runs instead" in record.getMessage()


def test_rays_is_not_called_twice() -> None:
    def ours(rays: Any, text: str) -> str:
        rays(text)
        raise ZeroDivisionError

    assert Entry("entry", Policy.CALL_RAY, ours).in_place_of(rays)("word") == "Ray's word"
    assert calls == ["word"]


def test_rays_own_error_passes_unchanged(caplog: pytest.LogCaptureFixture) -> None:
    stand_in = Entry("entry", Policy.CALL_RAY, lambda rays, text: rays(text)).in_place_of(rays)
    with pytest.raises(RaysError) as raised:
        stand_in("bad")
    assert raised.value.__cause__ is None
    assert raised.value.__context__ is None
    assert calls == ["bad"]
    assert caplog.records == []


def test_an_error_of_a_lazy_trial_that_ray_reads_is_ours() -> None:
    """Ray's own code is the caller of ours here, so where it comes from decides."""
    from ray_tune_memguard.lazy.containers import LazyTrialDict

    broken = LazyTrialDict(None, str)  # type: ignore[arg-type]

    def length(of: Any) -> int:
        return len(of)

    entry = Entry("entry", Policy.CALL_RAY, lambda rays, of: rays(broken))
    assert entry.in_place_of(length)([1, 2]) == 2


def test_keeping_calls_nothing() -> None:
    entry = Entry("entry", Policy.KEEP, lambda rays, text: 1 / 0)
    assert entry.in_place_of(rays)("word") is None
    assert calls == []


def test_taking_out_comes_before_rays_own() -> None:
    entry = Entry(
        "entry", Policy.TAKE_OUT, lambda rays, text: 1 / 0, lambda text, error: calls.append("out")
    )
    assert entry.in_place_of(rays)("word") == "Ray's word"
    assert calls == ["out", "word"]


def test_what_cannot_be_taken_out_ends_nothing_and_stays() -> None:
    """Ray's own function would write an experiment without the spilled trials."""
    entry = Entry("entry", Policy.TAKE_OUT, lambda rays, text: 1 / 0, lambda text, error: 1 / 0)
    assert entry.in_place_of(rays)("word") is None
    assert calls == []
    assert entry.on_its_own()("word", "text") is None


def test_an_interrupt_passes() -> None:
    def ours(rays: Any, text: str) -> str:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Entry("entry", Policy.CALL_RAY, ours).in_place_of(rays)("word")


def end(*arguments: object) -> None:
    raise TimeoutError("the sweep takes too long")


def end_once(number: int, frame: object) -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    raise TimeoutError("the sweep takes too long")


class End:
    def __call__(self, *arguments: object) -> None:
        raise TimeoutError("the sweep takes too long")

    def end(self, *arguments: object) -> None:
        raise TimeoutError("the sweep takes too long")


@pytest.fixture(
    params=[end, end_once, functools.partial(end, 1), End(), End().end],
    ids=["function", "once", "partial", "object", "method"],
)
def alarm(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The user's handler: it limits the time of a sweep."""
    before = signal.signal(signal.SIGALRM, request.param)
    boundary.begin_run()
    yield request.param
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("policy", [Policy.CALL_RAY, Policy.KEEP])
def test_an_error_of_a_signal_handler_is_nobodys_here(policy: Policy, alarm: Any) -> None:
    def ours(*arguments: object) -> None:
        signal.signal(signal.SIGALRM, alarm)
        signal.raise_signal(signal.SIGALRM)

    entry = Entry("entry", policy, ours)
    with pytest.raises(TimeoutError, match="takes too long"):
        entry.in_place_of(rays)("word")
    with pytest.raises(TimeoutError, match="takes too long"):
        entry.on_its_own()()
    assert calls == []


def test_a_new_run_is_warned_again(caplog: pytest.LogCaptureFixture) -> None:
    stand_in = Entry("entry", Policy.KEEP, lambda rays, text: 1 / 0).in_place_of(rays)
    for _ in range(2):
        boundary.begin_run()
        stand_in("word")
        stand_in("word")
    assert len(caplog.records) == 2
