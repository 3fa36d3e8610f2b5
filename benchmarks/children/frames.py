"""Read all results of one experiment in this process, and return what it took."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray.tune import ExperimentAnalysis

from benchmarks import child
from benchmarks.probes import measured
from benchmarks.problem import METRIC, MODE


def _write_histories(path: Path) -> int:
    """Write each trial's ``result.json``, as Ray's logger does; return the number of trials."""
    import ray_tune_memguard  # noqa: F401

    written = 0
    for trial in ExperimentAnalysis(str(path)).trials:
        directory = path / trial.relative_logdir
        directory.mkdir(exist_ok=True)
        (directory / "result.json").write_text(json.dumps(trial.last_result) + "\n")
        written += 1
    return written


def _frame(path: Path) -> int:
    return len(ExperimentAnalysis(str(path)).dataframe())


def _filtered(path: Path) -> int:
    return len(ExperimentAnalysis(str(path)).dataframe(METRIC, MODE))


def _last_results(path: Path) -> int:
    return len(ExperimentAnalysis(str(path)).results_df)


def _configs(path: Path) -> int:
    return len(ExperimentAnalysis(str(path)).get_all_configs(prefix=True))


def _each_frame(path: Path) -> int:
    return sum(len(frame) for frame in ExperimentAnalysis(str(path)).trial_dataframes.values())


def _stream(path: Path) -> int:
    from ray_tune_memguard import iter_results

    return sum(1 for _ in iter_results(path))


def _whole(path: Path) -> int:
    from ray_tune_memguard import read_results

    return len(read_results(path))


def _arrow(path: Path) -> int:
    from ray_tune_memguard import read_results

    return int(read_results(path, as_arrow=True).num_rows)


#: What Ray alone can do as well.
READS: dict[str, Callable[[Path], int]] = {
    "frame": _frame,
    "filtered": _filtered,
    "last results": _last_results,
    "configs": _configs,
    "each frame": _each_frame,
}
STREAMS: dict[str, Callable[[Path], int]] = {"stream": _stream, "whole": _whole, "arrow": _arrow}


def read_frames(how: str, experiment: str, guarded: bool) -> dict[str, Any]:
    """Read an experiment in one way; or, as "write", make the files that are to be read."""
    child.set_environment(loggers=True)
    path = Path(experiment)
    if how == "write":
        return {"trials": _write_histories(path)}
    if guarded:
        import ray_tune_memguard  # noqa: F401
    record: dict[str, Any] = {}
    with measured(record):
        record["trials"] = {**READS, **STREAMS}[how](path)
    assert ("ray_tune_memguard" in sys.modules) == guarded
    return record


if __name__ == "__main__":
    child.answer(read_frames)
