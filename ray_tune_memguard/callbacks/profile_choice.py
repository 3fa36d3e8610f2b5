"""Decides which trials are profiled."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from ray_tune_memguard.report.trial_memory import plain_config

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

#: Peaks are expected by those of so many finished trials, the latest ones.
MAX_FINISHED = 256
#: A trial is profiled if it is expected to need so many times the memory of all that were profiled.
HEAVIER = 1.1
# From this ratio of the largest to the smallest value on, values are compared by their logarithms.
_WIDE = 100.0

Config = Mapping[str, object]


class Choice(Protocol):
    """Decides about each trial, when it starts for the first time in a run."""

    def wants(self, trial: Trial) -> bool:
        """Whether to profile the trial."""
        ...

    def give_up(self, trial_id: str) -> None:
        """The trial could not be profiled."""
        ...


class FirstTrials:
    """The first trials that start.

    Args:
        count: how many.
    """

    def __init__(self, count: int) -> None:
        self._left = count

    def wants(self, trial: Trial) -> bool:
        if self._left < 1:
            return False
        self._left -= 1
        return True

    def give_up(self, trial_id: str) -> None:
        self._left += 1


class ChosenTrials:
    """The trials that a user's function chooses.

    Args:
        function: takes a trial.
        report: is called with the error if the function raises; the trial is not profiled then.
    """

    def __init__(
        self, function: Callable[[Trial], object], report: Callable[[Exception], None]
    ) -> None:
        self._function = function
        self._report = report

    def wants(self, trial: Trial) -> bool:
        try:
            return bool(self._function(trial))
        except Exception as error:
            self._report(error)
            return False

    def give_up(self, trial_id: str) -> None:
        pass


class LargestTrials:
    """Trials that are expected to need the most memory.

    A trial is expected to need what the finished trial with the nearest configuration has needed.
    It is profiled if that is a tenth above the peaks of all trials that were profiled before.
    """

    def __init__(self) -> None:
        # By each finished trial: its configuration and its peak in bytes.
        self._finished: deque[tuple[Config, int]] = deque(maxlen=MAX_FINISHED)
        #: By profiled trial that has not finished: the peak that is expected of it.
        self._expected: dict[str, int] = {}
        self._highest = 0

    def add(self, trial_id: str, config: Config, peak_bytes: int) -> None:
        """A trial has finished. Any thread may call it."""
        if self._expected.pop(trial_id, None) is not None:
            self._highest = max(self._highest, peak_bytes)
        self._finished.append((config, peak_bytes))

    def wants(self, trial: Trial) -> bool:
        expected = self.expected_peak(plain_config(trial.config))
        highest = max([self._highest, *self._expected.copy().values()])
        if not expected or expected < HEAVIER * highest:
            return False
        self._expected[trial.trial_id] = expected
        return True

    def give_up(self, trial_id: str) -> None:
        self._expected.pop(trial_id, None)

    def expected_peak(self, config: Config) -> int:
        """The peak of the finished trial with the nearest configuration, in bytes; 0 if none has.

        Of several that are equally near, the highest.
        """
        finished = self._finished.copy()
        near = distances(config, [other for other, _ in finished])
        peaks = zip(near, (-peak for _, peak in finished), strict=True)
        return -min(peaks, default=(0.0, 0))[1]


def distances(config: Config, others: Sequence[Config]) -> list[float]:
    """How far a configuration is from others.

    A number counts by its share of the range of all, a positive one of wide range by its logarithm;
    anything else, and an entry that one of the two lacks, counts 0 if it is equal and otherwise 1.

    Args:
        config: a configuration.
        others: further ones.

    Examples:
        >>> distances({"layers": 8, "kind": "a"}, [{"layers": 8, "kind": "b"}, {"layers": 2}])
        [1.0, 2.0]
    """
    found = [0.0] * len(others)
    for name in {name for one in (config, *others) for name in one}:
        values = [one.get(name) for one in (config, *others)]
        numbers = [_number(value) for value in values]
        known = [number for number in numbers if number is not None]
        low, high = min(known, default=0.0), max(known, default=0.0)
        if low > 0 and high >= _WIDE * low:
            numbers = [None if number is None else math.log(number) for number in numbers]
            low, high = math.log(low), math.log(high)
        own = numbers[0]
        for index, (value, number) in enumerate(zip(values[1:], numbers[1:], strict=True)):
            if own is not None and number is not None:
                found[index] += abs(number - own) / ((high - low) or 1.0)
            else:
                found[index] += value != values[0]
    return found


def _number(value: object) -> float | None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
