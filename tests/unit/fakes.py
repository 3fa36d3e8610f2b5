"""A stand-in for Ray's trial, for tests of rooms that know no more of it than a codec does."""

from __future__ import annotations

import pickle
from typing import Any

from ray_tune_memguard.lazy.summaries import TrialSummaryIndex
from ray_tune_memguard.store.trial_store import TrialRow

#: The summaries of a snapshot without finished trials.
NO_SUMMARIES = TrialSummaryIndex(lambda metric, result: None).dump()


def summary(*values: float) -> dict[str, float]:
    """What Ray keeps of a metric that was reported so."""
    return {
        "max": max(values),
        "min": min(values),
        "avg": sum(values) / len(values),
        "last": values[-1],
        "last-5-avg": sum(values[-5:]) / len(values[-5:]),
        "last-10-avg": sum(values[-10:]) / len(values[-10:]),
    }


class FakeTrial:
    """An object with an id, a status and some state."""

    def __init__(self, number: int, status: str = "TERMINATED", **last_result: Any) -> None:
        self.trial_id = f"t{number:05d}"
        self.status = status
        self.config = {"number": number, "layers": (8, 8)}
        self.last_result = {"score": float(number), **last_result}
        self.metric_analysis = {
            name: summary(value)
            for name, value in self.last_result.items()
            if isinstance(value, (int, float))
        }
        self.error_file: str | None = None

    def is_finished(self) -> bool:
        return self.status in ("TERMINATED", "ERROR")

    def __repr__(self) -> str:
        return f"FakeTrial({self.trial_id})"


class FakeCodec:
    trial_class: type = FakeTrial

    def dump(self, trial: Any) -> bytes:
        return pickle.dumps(dict(trial.__dict__))

    def has_error(self, trial: Any) -> bool:
        return trial.error_file is not None

    def load(self, raw: bytes) -> dict[str, Any]:
        return pickle.loads(raw)

    load_for_report = load

    def load_state_record(self, entry: bytes) -> dict[str, Any]:
        return pickle.loads(entry)

    load_record_for_report = load_state_record


def fake_row(
    trial_id: str, status: str = "TERMINATED", state: bytes = b"state", **other: Any
) -> TrialRow:
    """A row whose entry is its state."""
    return TrialRow(trial_id, status, status == "ERROR", state_record=state, state=state, **other)


class Clock:
    """Stands in for the module ``time``; a test sets what it says."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now

    def perf_counter(self) -> float:
        return self.now
