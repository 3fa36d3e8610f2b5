"""What runs inside a sweep that is to be killed: its trials, and the callback that logs them."""

from __future__ import annotations

from typing import Any

from ray import tune

from benchmarks.problem import METRIC, score
from tests.acceptance.kill_log import BEGIN, COMPLETE, START, write_line


def one_result(config: dict[str, Any]) -> None:
    """Say that this trial runs, then report a number made of the three sampled parameters."""
    write_line(START, tune.get_context().get_trial_id())
    tune.report({METRIC: score(config, 1)})


class Finished(tune.Callback):
    """Writes down when each trial is complete. Knows nothing of MemGuard; is to be the last."""

    def setup(self, **info: Any) -> None:
        """Write down that the sweep begins: MemGuard, if there is one, has set itself up."""
        write_line(BEGIN)

    def on_trial_complete(self, *, trial: Any, **info: Any) -> None:
        """Write the trial down."""
        # `repr` of a float is read back as the same float.
        write_line(COMPLETE, trial.trial_id, repr(float(trial.last_result[METRIC])))
